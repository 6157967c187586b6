"""KFP component of the stage rest-rl."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def rest_rl(
    model: dict,
    rl: dict,
    tracking: dict,
    pipeline_run: str,
    dataset: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    trained: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train the policy with ResT; passes it on where `rl.enabled` is false."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.rest_rl,
        sections={"model": model, "rl": rl, "tracking": tracking},
        pipeline_run=pipeline_run,
        folders={"dataset": dataset, "policy": policy},
        out=trained,
        metrics=metrics,
    )
