"""KFP component of the stage compare-and-register, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def compare_and_register(
    registry: dict,
    gate: dict,
    tracking: dict,
    pipeline_run: str,
    dataset: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    bfcl_base: dsl.Input[dsl.Artifact],
    api_bank_base: dsl.Input[dsl.Artifact],
    bfcl_warmup: dsl.Input[dsl.Artifact],
    api_bank_warmup: dsl.Input[dsl.Artifact],
    bfcl_trained: dsl.Input[dsl.Artifact],
    api_bank_trained: dsl.Input[dsl.Artifact],
    bfcl_champion: dsl.Input[dsl.Artifact],
    api_bank_champion: dsl.Input[dsl.Artifact],
    record: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Register a policy in MLflow as `challenger` and put it to the gate before `champion`."""
    arguments = locals()
    from components.runtime import run_component

    run_component("compare-and-register", arguments)
