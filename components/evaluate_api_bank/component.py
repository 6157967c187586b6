"""KFP component of the stage evaluate-api-bank."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def evaluate_api_bank(
    model: dict,
    api_bank: dict,
    tracking: dict,
    pipeline_run: str,
    policy: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Evaluate the policy on API-Bank, levels 1 to 3."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.evaluate_api_bank,
        sections={"model": model, "api_bank": api_bank, "tracking": tracking},
        pipeline_run=pipeline_run,
        folders={"policy": policy},
        out=report,
        metrics=metrics,
    )
