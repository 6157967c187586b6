"""KFP component of the exit task, which runs when everything else has ended."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def report_status(
    tracking: dict,
    storage: dict,
    launch: dict,
    links: dict,
    pipeline_run: str,
    final: dsl.PipelineTaskFinalStatus,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Say how the run ended, where it failed and how to reproduce it; close what it left open."""
    from dataclasses import asdict

    from components.runtime import run_stage
    from rest_core import stages

    sections = {"tracking": tracking, "storage": storage, "launch": launch, "links": links}
    run_stage(
        stages.report_status,
        sections={**sections, "final": asdict(final)},
        pipeline_run=pipeline_run,
        out=report,
        metrics=metrics,
        pages={stages.PAGE_FILE: page},
        needs_mlflow=False,
    )
