"""KFP component of the stage compare-policies, written by `make compile` from the catalogue of stages."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def compare_policies(
    tracking: dict,
    pipeline_run: str,
    bfcl_base: dsl.Input[dsl.Artifact],
    api_bank_base: dsl.Input[dsl.Artifact],
    bfcl_warmup: dsl.Input[dsl.Artifact],
    api_bank_warmup: dsl.Input[dsl.Artifact],
    bfcl_trained: dsl.Input[dsl.Artifact],
    api_bank_trained: dsl.Input[dsl.Artifact],
    bfcl_champion: dsl.Input[dsl.Artifact],
    api_bank_champion: dsl.Input[dsl.Artifact],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Compare base model, warm-up, trained policy and champion; KFP's pages show the report."""
    arguments = locals()
    from components.runtime import run_component

    run_component("compare-policies", arguments)
