"""KFP component of the stage evaluate-bfcl-base, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def evaluate_bfcl_base(
    model: dict,
    evaluation: dict,
    bfcl: dict,
    tracking: dict,
    pipeline_run: str,
    model_state: str,
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Evaluate a policy on BFCL, with the official checkers."""
    arguments = locals()
    from components.runtime import run_component

    run_component("evaluate-bfcl-base", arguments)
