"""KFP component of preflight, which runs before every stage."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def preflight(
    model: dict,
    data: dict,
    sft: dict,
    rl: dict,
    bfcl: dict,
    api_bank: dict,
    registry: dict,
    tracking: dict,
    storage: dict,
    launch: dict,
    surroundings: dict,
    pipeline_run: str,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    ablation: dict = {},  # noqa: B006  (KFP reads the default; nothing changes it)
    trials: list = [],  # noqa: B006
) -> None:
    """Check what the run needs of the cluster, before a GPU is taken; all problems in one report."""
    from components.runtime import run_stage
    from rest_core import stages

    sections = {"model": model, "data": data, "sft": sft, "rl": rl, "bfcl": bfcl, "api_bank": api_bank}
    sections |= {"registry": registry, "tracking": tracking, "storage": storage, "launch": launch}
    run_stage(
        stages.preflight,
        sections={**sections, "surroundings": surroundings, "ablation": ablation, "trials": trials},
        pipeline_run=pipeline_run,
        out=report,
        metrics=metrics,
        pages={stages.PAGE_FILE: page},
        needs_mlflow=False,
    )
