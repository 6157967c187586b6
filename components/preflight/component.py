"""KFP component of the stage preflight, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("train"), install_kfp_package=False)
def preflight(
    model: dict,
    data: dict,
    sft: dict,
    rl: dict,
    evaluation: dict,
    bfcl: dict,
    api_bank: dict,
    registry: dict,
    gate: dict,
    tracking: dict,
    storage: dict,
    launch: dict,
    surroundings: dict,
    pipeline_run: str,
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    model_state: dsl.OutputPath(str),  # type: ignore[valid-type]
    data_state: dsl.OutputPath(str),  # type: ignore[valid-type]
    api_bank_state: dsl.OutputPath(str),  # type: ignore[valid-type]
    ablation: dict = {},  # noqa: B006
    trials: list = [],  # noqa: B006
) -> None:
    """Check what the run needs of the cluster, before a GPU is taken; all problems in one report."""
    arguments = locals()
    from components.runtime import run_component

    run_component("preflight", arguments)
