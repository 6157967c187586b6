"""KFP component of the stage compare-and-register."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("base"), install_kfp_package=False)
def compare_and_register(
    registry: dict,
    tracking: dict,
    pipeline_run: str,
    dataset: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    bfcl: dsl.Input[dsl.Artifact],
    api_bank: dsl.Input[dsl.Artifact],
    record: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Register the policy in MLflow as `challenger`, with its figures and lineage, and compare it with the champion."""
    from components.runtime import run_stage
    from rest_core import stages

    run_stage(
        stages.compare_and_register,
        sections={"registry": registry, "tracking": tracking},
        pipeline_run=pipeline_run,
        folders={"dataset": dataset, "policy": policy, "bfcl": bfcl, "api_bank": api_bank},
        out=record,
        metrics=metrics,
    )
