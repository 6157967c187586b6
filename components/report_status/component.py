"""KFP component of the stage report-status, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def report_status(
    tracking: dict,
    storage: dict,
    launch: dict,
    links: dict,
    final: dsl.PipelineTaskFinalStatus,
    pipeline_run: str,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Say how the run ended, where it failed and how to reproduce it; close what it left open."""
    arguments = locals()
    from components.runtime import run_component

    run_component("report-status", arguments)
