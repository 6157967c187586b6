"""KFP component of the stage deploy-model, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def deploy_model(
    registry: dict,
    tracking: dict,
    service: dict,
    pipeline_run: str,
    record: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Serve a version of the registered model with KServe, where platform.yaml says so."""
    arguments = locals()
    from components.runtime import run_component

    run_component("deploy-model", arguments)
