"""KFP component of the stage sft-warmup, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def sft_warmup(
    model: dict,
    sft: dict,
    tracking: dict,
    launch: dict,
    storage: dict,
    pipeline_run: str,
    dataset: dsl.Input[dsl.Dataset],
    policy: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Warm the model up by supervised fine-tuning."""
    arguments = locals()
    from components.runtime import run_component

    run_component("sft-warmup", arguments)
