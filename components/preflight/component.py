"""KFP component of preflight, which runs before every stage."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def preflight(
    model: dict,
    data: dict,
    sft: dict,
    rl: dict,
    api_bank: dict,
    registry: dict,
    tracking: dict,
    surroundings: dict,
    pipeline_run: str,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Check what the run needs of the cluster, before a GPU is taken; all problems in one report."""
    from components.runtime import run_stage
    from rest_core import stages

    sections = {"model": model, "data": data, "sft": sft, "rl": rl, "api_bank": api_bank}
    run_stage(
        stages.preflight,
        sections={**sections, "registry": registry, "tracking": tracking, "surroundings": surroundings},
        pipeline_run=pipeline_run,
        out=report,
        metrics=metrics,
        page=page,
    )
