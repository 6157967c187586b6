"""KFP component of the stage prepare-data."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def prepare_data(
    model: dict,
    data: dict,
    api_bank: dict,
    tracking: dict,
    pipeline_run: str,
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Read, validate, deduplicate and split the training data."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.prepare_data,
        sections={"model": model, "data": data, "api_bank": api_bank, "tracking": tracking},
        pipeline_run=pipeline_run,
        out=dataset,
        metrics=metrics,
    )
