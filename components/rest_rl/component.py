"""KFP component of the stage rest-rl, written by `make compile` from the catalogue of stages."""

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
    trial: dict = {},  # noqa: B006
) -> None:
    """Train a policy with ResT."""
    arguments = locals()
    from components.runtime import run_component

    run_component("rest-rl", arguments)
