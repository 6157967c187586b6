"""KFP component of the stage prepare-data, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def prepare_data(
    model: dict,
    data: dict,
    api_bank: dict,
    tracking: dict,
    storage: dict,
    pipeline_run: str,
    model_state: str,
    data_state: str,
    api_bank_state: str,
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Read, validate, deduplicate and split the training data."""
    arguments = locals()
    from components.runtime import run_component

    run_component("prepare-data", arguments)
