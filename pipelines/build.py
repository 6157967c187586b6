"""The project's pipelines by their names."""

from __future__ import annotations

from typing import Any, Literal

from kfp.dsl.graph_component import GraphComponent

from pipelines.platform import Platform
from pipelines.secrets import require_none, without_webhook
from rest_core.config import Config

PipelineName = Literal["rest", "ablation"]


def build(config: Config, platform: Platform, pipeline: PipelineName, **settings: Any) -> GraphComponent:
    """A pipeline for a cluster; `settings` (schemes, seeds, ablation, parallelism) are the ablation's.

    Raises:
        UserError: it cannot be built under these settings, or an address in them holds credentials.
    """
    config = without_webhook(config)
    require_none({**dict(config), "platform": platform, **settings})
    if pipeline == "ablation":
        from pipelines.ablation_pipeline import build as build_ablation

        return build_ablation(config, platform=platform, **settings)
    from pipelines.rest_pipeline import build as build_rest

    return build_rest(config, platform=platform)
