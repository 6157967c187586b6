"""KFP component of the stage rest-rl."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def rest_rl(
    model: dict,
    rl: dict,
    tracking: dict,
    launch: dict,
    storage: dict,
    pipeline_run: str,
    dataset: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    trained: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    trial: dict = {},  # noqa: B006  (KFP reads the default; nothing changes it)
) -> None:
    """Train the policy with ResT, as a trial of an ablation where one is given."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.rest_rl,
        sections={
            "model": model,
            "rl": rl,
            "tracking": tracking,
            "launch": launch,
            "storage": storage,
            "trial": trial,
        },
        pipeline_run=pipeline_run,
        folders={"dataset": dataset, "policy": policy},
        out=trained,
        metrics=metrics,
    )
