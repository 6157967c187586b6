"""KFP component of the stage evaluate-api-bank-base, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def evaluate_api_bank_base(
    model: dict,
    evaluation: dict,
    api_bank: dict,
    tracking: dict,
    pipeline_run: str,
    model_state: str,
    api_bank_state: str,
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Evaluate a policy on API-Bank, levels 1 to 3."""
    arguments = locals()
    from components.runtime import run_component

    run_component("evaluate-api-bank-base", arguments)
