"""A configuration and a platform as what a run is made of: the compiled pipeline, its parameters, names that say what
runs."""

from __future__ import annotations

import getpass
import json
import secrets
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
class Rendered:
    """A run before it is sent.

    Attributes:
        pipeline_spec: IR of the pipeline, as JSON.
        platform_spec: its Kubernetes settings, as JSON; empty where there are none.
        parameters: all inputs of the pipeline by name.
        experiment: name of the experiment.
        run_name: name of the run: profile, weight scheme, seed, date and time (UTC).
        description: of the run; holds `key`.
        key: unique to this rendering: by it a run is found again whose creation was not answered.
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
        documents = [self.pipeline_spec, *([self.platform_spec] if self.platform_spec else [])]
        return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=True, width=120)

    def inline_spec(self) -> dict[str, Any]:
        """The pipeline as a run carries it (`kfp.Client.run_pipeline` sends the same)."""
        if not self.platform_spec:
            return self.pipeline_spec
        return {"pipeline_spec": self.pipeline_spec, "platform_spec": self.platform_spec}

    def runtime_config(self) -> kfp_server_api.V2beta1RuntimeConfig:
        return kfp_server_api.V2beta1RuntimeConfig(parameters=self.parameters)

    def source(self, version: kfp_server_api.V2beta1PipelineVersion | None) -> dict[str, Any]:
        """What a run or schedule runs, as keywords of its model: an uploaded version, else the pipeline itself."""
        if version is None:
            return {"pipeline_spec": self.inline_spec()}
        reference = kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
        )
        return {"pipeline_version_reference": reference}

    def run(
        self,
        *,
        experiment_id: str | None = None,
        version: kfp_server_api.V2beta1PipelineVersion | None = None,
    ) -> kfp_server_api.V2beta1Run:
        """The body of the request that creates the run."""
        return kfp_server_api.V2beta1Run(
            experiment_id=experiment_id,
            display_name=self.run_name,
            description=self.description,
            runtime_config=self.runtime_config(),
            service_account=self.service_account,
            **self.source(version),
        )


def render(
    config: Config,
    platform: Platform,
    pipeline: PipelineName = "rest",
    *,
    experiment: str | None = None,
    run_name: str | None = None,
    **settings: Any,
) -> Rendered:
    """Compile `pipeline` under `config` for `platform`; nothing is sent.

    Args:
        config: defaults of the pipeline's parameters; the run carries them again as its own, so that KFP's pages show
            them and a clone of the run can change them.
        platform: where and how its pods run.
        pipeline: which pipeline.
        experiment: name of KFP's experiment; None: that of MLflow, `tracking.experiment`.
        run_name: None: one that says what runs.
        settings: of the ablation pipeline: schemes, seeds, parallelism.

    Raises:
        UserError: the pipeline cannot be built under these settings.
    """
    built = build(config, platform, pipeline, **settings)
    spec = _as_json(built.pipeline_spec)
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    key = secrets.token_hex(6)
    commit = manifest.git_commit()
    what = f"{config.profile}-{_what(config, pipeline, settings)}"
    return Rendered(
        pipeline_spec=spec,
        platform_spec=_as_json(built.platform_spec),
        parameters={name: _whole(value["defaultValue"]) for name, value in inputs.items() if "defaultValue" in value},
        experiment=experiment or config.tracking.experiment,
        run_name=run_name or f"{what}-{datetime.now(UTC):%Y%m%d-%H%M%S}",
        description=f"{what}; submitted by {_user()}" + (f" from commit {commit}" if commit else "") + f"; {key}",
        key=key,
        service_account=platform.service_account,
    )


def _as_json(message: Message) -> dict[str, Any]:
    """`message` with its keys in order: protobuf's maps have another one each time, and renderings are compared."""
    return dict(json.loads(json_format.MessageToJson(message, sort_keys=True)))


def _what(config: Config, pipeline: PipelineName, settings: dict[str, Any]) -> str:
    if pipeline == "ablation":
        return f"ablation-{len(settings['schemes'])}x{len(settings['seeds'])}"
    return f"{config.rl.weights.scheme}-seed{config.rl.seed}" if config.rl.enabled else f"sft-seed{config.sft.seed}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a pod
        return "a pod"


def _whole(value: Any) -> Any:
    """`value` with whole floats as integers: protobuf's Struct holds doubles only, and JSON knows no difference."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """YAML for people: text of several lines as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def as_yaml(value: Any) -> str:
    """`value` as YAML in its own order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
