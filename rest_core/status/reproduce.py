"""The commands that run a failed stage again on one's own machine, with the same configuration and the same inputs."""

from __future__ import annotations

import shlex

from rest_core.status.runs import StageEnd
from rest_core.tracking import store

_COMMANDS = {
    "prepare-data": "prepare",
    "sft-warmup": "sft",
    "rest-rl": "train",
    "evaluate-bfcl": "eval-bfcl",
    "evaluate-api-bank": "eval-api-bank",
    "compare-and-register": "register",
}
# Where KFP shows a pod its artifacts (kfp.dsl.types.artifact_types); KFP's own MinIO speaks S3.
_MOUNTS = {"/s3/": "s3://", "/minio/": "s3://", "/gcs/": "gs://"}
_FOLDER = "reproduce"


def commands(stage: StageEnd, tracking_uri: str) -> list[str]:
    """Shell commands; none for a stage that has no command of its own (preflight).

    Credentials are not in them: MLFLOW_TRACKING_USERNAME, AWS_ACCESS_KEY_ID and so on are the user's own.
    """
    if stage.stage not in _COMMANDS:
        return []
    inputs = [word for name, where in stage.inputs.items() for word in (f"--{name.replace('_', '-')}", locate(where))]
    download = ["mlflow", "artifacts", "download", "--run-id", stage.run_id, "--artifact-path", "config.json"]
    run = ["rest", _COMMANDS[stage.stage], "--profile", f"{_FOLDER}/config.json", *inputs]
    return [
        f"export MLFLOW_TRACKING_URI={shlex.quote(store.without_credentials(tracking_uri))}",
        shlex.join([*download, "--dst-path", _FOLDER]),
        shlex.join([*run, "--out", f"{_FOLDER}/{stage.stage}"]),
    ]


def locate(path: str) -> str:
    """The URI of an artifact that a pod saw as a folder; any other location as it is."""
    for mount, scheme in _MOUNTS.items():
        if path.startswith(mount):
            return f"{scheme}{path.removeprefix(mount)}"
    return path
