"""KFP component of the stage aggregate."""

from typing import List  # noqa: UP035  (KFP knows lists of artifacts by this name)

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def aggregate(
    ablation: dict,
    tracking: dict,
    pipeline_run: str,
    bfcl: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    api_bank: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare the trials of an ablation; KFP's pages show the report."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.aggregate,
        sections={"ablation": ablation, "tracking": tracking},
        pipeline_run=pipeline_run,
        folders={"bfcl": bfcl, "api_bank": api_bank},
        out=report,
        metrics=metrics,
        pages={"report.html": page},
    )
