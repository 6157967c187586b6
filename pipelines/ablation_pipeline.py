"""The ablation: the pipeline's line for a list of trials, each a weight scheme with a seed.

    prepare-data → sft-warmup → for each trial [ rest-rl → evaluate-bfcl ∥ evaluate-api-bank ] → aggregate

Data and warm-up are shared: the seed of a trial replaces that of the reinforcement learning, so that trials start from
one policy and differ in what is asked about alone. Nothing is registered.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Dict, List  # noqa: UP035  (KFP knows the items of a list by these names)

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.aggregate.component import aggregate
from pipelines.platform import Platform
from pipelines.rest_pipeline import on_platform, settle, start, train_and_evaluate, watched
from rest_core.ablation.settings import AblationConfig, Scheme, check, trials
from rest_core.config import Config

# The stages in their order, by the names of their tasks: once, and once a trial.
SHARED_STAGES = ("prepare-data", "sft-warmup", "aggregate")
TRIAL_STAGES = ("rest-rl", "evaluate-bfcl", "evaluate-api-bank")
PARAMETERS = ("model", "data", "sft", "rl", "bfcl", "api_bank", "tracking", "storage", "launch")


def build(
    config: Config,
    *,
    schemes: Mapping[str, Scheme],
    seeds: Sequence[int],
    ablation: AblationConfig | None = None,
    parallelism: int = 1,
    platform: Platform | None = None,
) -> GraphComponent:
    """The ablation pipeline with `config` and every scheme with every seed as the defaults of its parameters.

    Args:
        config: defaults of the sections; `rl.weights`, `rl.seed` and what a scheme replaces besides are each trial's.
        schemes: by their names in the report.
        seeds: seeds of the reinforcement learning.
        ablation: what is compared, and with which baseline; defaults are those of `AblationConfig`.
        parallelism: trials at the same time; 0 = all. It is part of the graph: no run can change it.
        platform: where and how the pods run; None = a local run.

    Raises:
        UserError: the trials compare nothing (`rest_core.ablation.settings.check`), or `config` does not go with the
            platform.
    """
    compared = ablation or AblationConfig()
    every = trials(schemes, seeds)
    nothing = config.registry.model_copy(update={"enabled": False})  # nothing is registered
    config = on_platform(config.model_copy(update={"registry": nothing}), platform)
    check(every, compared, config.rl, config.bfcl, config.api_bank)
    default: dict[str, Any] = {name: getattr(config, name).to_parameter() for name in PARAMETERS}
    default |= {"ablation": compared.to_parameter(), "trials": [trial.to_parameter() for trial in every]}

    @dsl.pipeline(name="rest-ablation", description="Train with several weight schemes and seeds, compare")
    def rest_ablation(
        model: dict = default["model"],
        data: dict = default["data"],
        sft: dict = default["sft"],
        rl: dict = default["rl"],
        bfcl: dict = default["bfcl"],
        api_bank: dict = default["api_bank"],
        ablation: dict = default["ablation"],
        trials: List[Dict] = default["trials"],  # noqa: UP006
        tracking: dict = default["tracking"],
        storage: dict = default["storage"],
        launch: dict = default["launch"],
        pipeline_run: str = "",
    ) -> None:
        sections: dict[str, Any] = {"model": model, "data": data, "sft": sft, "rl": rl, "bfcl": bfcl}
        sections |= {"api_bank": api_bank, "tracking": tracking, "storage": storage, "launch": launch}
        sections |= {"ablation": ablation, "trials": trials, "pipeline_run": pipeline_run}
        sections["registry"] = config.registry.to_parameter()
        with watched(sections, platform, config) as checked:
            tasks = start(sections, after=checked)
            # Into the loop go pipeline inputs, artifacts and the item as a whole, nothing else: kfp.local replaces
            # other parameters there (pipelines/local_limits.py), and KFP cannot take a part of an item that is not
            # text.
            with dsl.ParallelFor(trials, name="trials", parallelism=parallelism) as trial:
                tasks |= train_and_evaluate(sections, tasks, trial=trial)
            tasks["aggregate"] = aggregate(
                ablation=ablation,
                tracking=tracking,
                pipeline_run=pipeline_run,
                bfcl=dsl.Collected(tasks["evaluate-bfcl"].outputs["report"]),
                api_bank=dsl.Collected(tasks["evaluate-api-bank"].outputs["report"]),
            )
            settle(tasks, platform, config)

    return rest_ablation
