"""The commands that run a failed stage again on one's own machine, with the same configuration and the same inputs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from urllib.parse import urlsplit

from rest_core.credentials import without_credentials
from rest_core.operations.catalogue import CATALOGUE
from rest_core.operations.status.mlflow_runs import StageEnd

# Where KFP shows a pod its artifacts (kfp.dsl.types.artifact_types); KFP's own MinIO speaks S3.
_MOUNTS = {"/s3/": "s3://", "/minio/": "s3://", "/gcs/": "gs://"}
_FOLDER = "reproduce"
_OF_A_CLUSTER = (".svc", ".local", ".internal")


def commands(stage: StageEnd, tracking_uri: str) -> list[str]:
    """Shell commands, what must be done before as comments; none for a stage without a command of its own (preflight).

    Credentials are not in them: MLFLOW_TRACKING_USERNAME, AWS_ACCESS_KEY_ID and so on are the user's own.
    """
    inputs = {name: locate(where) for name, where in stage.inputs.items()}
    if stage.stage == "aggregate":
        return [*_notes(inputs, None), *_aggregate(stage, inputs)]
    command = CATALOGUE[stage.stage].command if stage.stage in CATALOGUE else None
    if command is None:
        return []
    given = [part for name, where in inputs.items() for part in (f"--{name.replace('_', '-')}", where)]
    trial = ["--trial", stage.scheme] if stage.scheme is not None and stage.stage == "rest-rl" else []
    download = ["mlflow", "artifacts", "download", "--run-id", stage.run_id, "--artifact-path", "config.json"]
    run = ["rest", command.name, "--profile", f"{_FOLDER}/config.json", *given, *trial]
    return [
        *_notes(inputs, tracking_uri),
        f"export MLFLOW_TRACKING_URI={shlex.quote(without_credentials(tracking_uri))}",
        shlex.join([*download, "--dst-path", _FOLDER]),
        shlex.join([*run, "--out", f"{_FOLDER}/{stage.stage}"]),
    ]


def _aggregate(stage: StageEnd, inputs: dict[str, str]) -> Iterator[str]:
    """The evaluations are folders to this command: those that lie elsewhere are downloaded."""
    folders = []
    for name, where in inputs.items():
        folder = where
        if "://" in where:
            place = f"{_FOLDER}/evaluations/{name}"
            yield shlex.join(["mlflow", "artifacts", "download", "--artifact-uri", where, "--dst-path", place])
            folder = f"{place}/{where.rstrip('/').rpartition('/')[2]}"
        folders.append(folder)
    settings = {name: stage.parameters.get(f"cfg/ablation/{name}") for name in ("baseline", "metric", "confidence")}
    options = [part for name, value in settings.items() if value is not None for part in (f"--{name}", value)]
    yield shlex.join(["rest", "aggregate", *folders, *options, "--out", f"{_FOLDER}/{stage.stage}"])


def _notes(inputs: dict[str, str], tracking_uri: str | None) -> Iterator[str]:
    """Comments on addresses and folders that this machine may not have."""
    host = urlsplit(tracking_uri).hostname if tracking_uri is not None else None
    if host is not None and ("." not in host or host.endswith(_OF_A_CLUSTER)):
        yield f"# {host} is an address of the cluster: forward its port (kubectl port-forward) and export that one"
    for where in inputs.values():
        if where.startswith("/"):
            yield f"# {where} is a folder of the pod or of its volume: copy it here, and give that folder"
        elif where.startswith("gs://"):
            yield f"# {where}: rest reads folders and s3:// only; download it, and give that folder"


def locate(path: str) -> str:
    """The URI of an artifact that a pod saw as a folder; any other location as it is."""
    for mount, scheme in _MOUNTS.items():
        if path.startswith(mount):
            return f"{scheme}{path.removeprefix(mount)}"
    return path
