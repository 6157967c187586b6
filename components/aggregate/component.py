"""KFP component of the stage aggregate, written by `make compile` from the catalogue of stages."""

from typing import List  # noqa: UP035  (KFP knows lists of artifacts by this name)

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def aggregate(
    tracking: dict,
    ablation: dict,
    pipeline_run: str,
    bfcl_trained: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    api_bank_trained: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare the trials of an ablation; KFP's pages show the report."""
    arguments = locals()
    from components.runtime import run_component

    run_component("aggregate", arguments)
