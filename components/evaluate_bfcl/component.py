"""KFP component of the stage evaluate-bfcl."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def evaluate_bfcl(
    model: dict,
    bfcl: dict,
    tracking: dict,
    pipeline_run: str,
    policy: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Evaluate the policy on BFCL with the official checker."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.evaluate_bfcl,
        sections={"model": model, "bfcl": bfcl, "tracking": tracking},
        pipeline_run=pipeline_run,
        folders={"policy": policy},
        out=report,
        metrics=metrics,
    )
