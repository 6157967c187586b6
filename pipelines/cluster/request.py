"""The request that creates a run: the compiled pipeline, its parameters, and a name that says what runs."""

from __future__ import annotations

import getpass
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kfp_server_api
import yaml
from google.protobuf import json_format
from google.protobuf.message import Message

from pipelines.build import PipelineName, build
from pipelines.platform import Platform
from rest_core import manifest
from rest_core.config import Config


@dataclass(frozen=True)
class RunRequest:
    """A run before it is sent.

    Attributes:
        pipeline_spec: IR of the pipeline, as JSON.
        platform_spec: its Kubernetes settings, as JSON; empty where there are none.
        parameters: all inputs of the pipeline by name.
        experiment: name of the experiment.
        run_name: name of the run.
        description: of the run; contains `key`.
        key: unique to this request: by it a run is found whose creation was not answered.
        service_account: of the run's pods; None = KFP's own.
    """

    pipeline_spec: dict[str, Any]
    platform_spec: dict[str, Any]
    parameters: dict[str, Any]
    experiment: str
    run_name: str
    description: str
    key: str
    service_account: str | None = None

    @property
    def pipeline_name(self) -> str:
        return str(self.pipeline_spec["pipelineInfo"]["name"])

    def package(self) -> str:
        """The pipeline as KFP's YAML package: pipeline spec, then platform spec."""
        return yaml.safe_dump_all([self.pipeline_spec, *([self.platform_spec] if self.platform_spec else [])])

    def inline_spec(self) -> dict[str, Any]:
        """The pipeline as a run carries it (`kfp.Client.run_pipeline` sends the same)."""
        if not self.platform_spec:
            return self.pipeline_spec
        return {"pipeline_spec": self.pipeline_spec, "platform_spec": self.platform_spec}

    def fields(
        self, experiment_id: str | None = None, version: kfp_server_api.V2beta1PipelineVersion | None = None
    ) -> dict[str, Any]:
        """The fields that the API's models of a run and of a recurring run share.

        Args:
            experiment_id: id of the experiment.
            version: what runs, if the pipeline was uploaded; None: the pipeline itself.
        """
        source: dict[str, Any] = {"pipeline_spec": self.inline_spec()}
        if version is not None:
            reference = kfp_server_api.V2beta1PipelineVersionReference(version.pipeline_id, version.pipeline_version_id)
            source = {"pipeline_version_reference": reference}
        return {
            "experiment_id": experiment_id,
            "display_name": self.run_name,
            "description": self.description,
            "runtime_config": kfp_server_api.V2beta1RuntimeConfig(parameters=self.parameters),
            "service_account": self.service_account,
            **source,
        }

    def find_in(self, listed: Iterable[Any] | None) -> Any | None:
        """The run or schedule that this request has created, among those that are listed; None if it is not there."""
        return next((item for item in listed or () if self.key in (item.description or "")), None)


def run_request(
    config: Config,
    platform: Platform,
    pipeline: PipelineName = "rest",
    *,
    experiment: str | None = None,
    run_name: str | None = None,
    **settings: Any,
) -> RunRequest:
    """Compile `pipeline` under `config` for `platform`; nothing is sent.

    Args:
        config: defaults of the pipeline's parameters; the run carries them again as its own, so that KFP's UI shows
            them and a clone of the run can change them.
        platform: where and how its pods run.
        pipeline: which pipeline.
        experiment: name of KFP's experiment; None: that of MLflow, `tracking.experiment`.
        run_name: None: profile, weight scheme, seed, date and time (UTC).
        settings: of the ablation pipeline: schemes, seeds, parallelism.

    Raises:
        UserError: the pipeline cannot be built under these settings.
    """
    built = build(config, platform, pipeline, **settings)
    spec = _as_json(built.pipeline_spec)
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    key = secrets.token_hex(6)
    commit = manifest.git_commit()
    title = f"{config.profile}-{_title(config, pipeline, settings)}"
    return RunRequest(
        pipeline_spec=spec,
        platform_spec=_as_json(built.platform_spec),
        parameters={name: value["defaultValue"] for name, value in inputs.items() if "defaultValue" in value},
        experiment=experiment or config.tracking.experiment,
        run_name=run_name or f"{title}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        description=f"{title}; submitted by {_user()}" + (f" from commit {commit}" if commit else "") + f"; {key}",
        key=key,
        service_account=platform.service_account,
    )


def _as_json(message: Message) -> dict[str, Any]:
    """`message` with its keys in order, which protobuf's maps do not keep, and whole numbers without a fraction."""
    text = json_format.MessageToJson(message, sort_keys=True)
    return dict(json.loads(text, parse_float=_number))


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
