"""The request that creates a run: the compiled pipeline, its parameters, and a name that says what runs."""

from __future__ import annotations

import getpass
import json
import secrets
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from kfp_server_api import V2beta1Run, V2beta1RuntimeConfig

from pipelines.build import PipelineName, build
from pipelines.platform import Platform
from rest_core import manifest
from rest_core.config import Config


def run_request(
    config: Config, platform: Platform, pipeline: PipelineName = "rest", *, name: str | None = None, **settings: Any
) -> V2beta1Run:
    """Compile `pipeline` into the request that creates a run of it; nothing is sent.

    The run carries the pipeline and its Kubernetes settings, as `kfp.Client.run_pipeline` sends them, and all
    parameters, so that KFP's UI shows them and a clone of the run can change them. No other run has its description.

    Args:
        config: defaults of the parameters.
        platform: where and how its pods run.
        pipeline: which pipeline.
        name: of the run; None: profile, weight scheme, seed, date and time (UTC).
        settings: of the ablation pipeline: schemes, seeds, parallelism.

    Raises:
        UserError: the pipeline cannot be built under these settings.
    """
    built = build(config, platform, pipeline, **settings)
    spec = _as_json(built.pipeline_spec)
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    parameters = {key: value["defaultValue"] for key, value in inputs.items() if "defaultValue" in value}
    title = f"{config.profile}-{_title(config, pipeline, settings)}"
    commit = f" from commit {found}" if (found := manifest.git_commit()) else ""
    return V2beta1Run(
        display_name=name or f"{title}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        description=f"{title}; submitted by {_user()}{commit}; {secrets.token_hex(6)}",
        pipeline_spec={"pipeline_spec": spec, "platform_spec": _as_json(built.platform_spec)},
        runtime_config=V2beta1RuntimeConfig(parameters=parameters),
        service_account=platform.service_account,
        plugins_input=_plugins_input(config, platform),
    )


def _plugins_input(config: Config, platform: Platform) -> dict[str, Any] | None:
    """For KFP's MLflow plugin, where the platform has it; without an experiment's name it would use its own Default."""
    plugin = platform.mlflow_plugin
    if plugin is None:
        return None
    name = plugin.experiment_name or config.tracking.experiment
    return {"mlflow": {"disabled": True} if plugin.disabled else {"experiment_name": name}}


def _as_json(message: Message) -> dict[str, Any]:
    """`message` with its keys in order, which protobuf's maps do not keep, and whole numbers without a fraction."""
    return dict(json.loads(json_format.MessageToJson(message, sort_keys=True), parse_float=_number))


def _number(text: str) -> float:
    return int(text[:-2]) if text.endswith(".0") else float(text)


def _title(config: Config, pipeline: PipelineName, settings: dict[str, Any]) -> str:
    if pipeline == "ablation":
        return f"ablation-{len(settings['schemes'])}x{len(settings['seeds'])}"
    return f"{config.rl.weights.scheme}-seed{config.rl.seed}" if config.rl.enabled else f"sft-seed{config.sft.seed}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a pod
        return "a pod"
