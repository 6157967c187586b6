"""The ablation: the pipeline's stages for a list of trials, each a weight scheme with a seed.

    prepare-data → sft-warmup → for each trial [ rest-rl → evaluations ] → aggregate
                   evaluations of base model and warm-up

Data and warm-up are shared: the seed of a trial replaces that of the reinforcement learning, so that trials start from
one policy and differ in what is asked about alone. Nothing is registered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Dict, List  # noqa: UP035  (KFP knows the items of a list by these names)

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from pipelines.graph import add, around, on_platform, pipeline, section_parameters
from pipelines.platform import Platform
from rest_core.ablation.settings import AblationConfig, Scheme, check, trials
from rest_core.config import Config
from rest_core.operations.catalogue import CATALOGUE, in_parts


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

    def body(sections: dict[str, Any]) -> None:
        sections["registry"] = config.registry.to_parameter()
        with around(sections, platform, config) as tasks:
            for stage in in_parts("shared"):
                add(stage, sections, tasks)
            # Into the loop go pipeline inputs, artifacts and the item as a whole, nothing else: kfp.local (2.17) puts
            # the item in the place of a parameter that another task has made, and KFP cannot take a part of an item
            # that is not text.
            with dsl.ParallelFor(sections["trials"], name="trials", parallelism=parallelism) as trial:
                for stage in in_parts("trial"):
                    add(stage, sections, tasks, **({"trial": trial} if dict(stage.parameters).get("trial") else {}))
            add(CATALOGUE["aggregate"], sections, tasks, collect=dsl.Collected, ablation=sections["ablation"])

    parameters = section_parameters(config, "registry") | {
        "ablation": (dict, compared.to_parameter()),
        "trials": (List[Dict], [trial.to_parameter() for trial in every]),  # noqa: UP006
        "pipeline_run": (str, ""),
    }
    return pipeline("rest-ablation", "Train with several weight schemes and seeds, compare", parameters, body, platform)
