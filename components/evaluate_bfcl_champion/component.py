"""KFP component of the stage evaluate-bfcl-champion, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def evaluate_bfcl_champion(
    model: dict,
    evaluation: dict,
    bfcl: dict,
    tracking: dict,
    registry: dict,
    pipeline_run: str,
    report: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Evaluate a policy on BFCL, with the official checkers."""
    arguments = locals()
    from components.runtime import run_component

    run_component("evaluate-bfcl-champion", arguments)
