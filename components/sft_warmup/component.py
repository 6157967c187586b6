"""KFP component of the stage sft-warmup."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def sft_warmup(
    model: dict,
    sft: dict,
    tracking: dict,
    pipeline_run: str,
    dataset: dsl.Input[dsl.Dataset],
    policy: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Fine-tune the model on reference responses; passes the model on where `sft.enabled` is false."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.sft_warmup,
        sections={"model": model, "sft": sft, "tracking": tracking},
        pipeline_run=pipeline_run,
        folders={"dataset": dataset},
        out=policy,
        metrics=metrics,
    )
