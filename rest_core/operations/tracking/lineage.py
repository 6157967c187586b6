"""Lineage: whether a registered version can be followed back to its run, data, code and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def missing_links(client: MlflowClient, version: ModelVersion, metric: str) -> list[str]:
    """What cannot be followed back, one phrase a link; empty when the lineage is complete.

    Args:
        client: from `store.connect`.
        version: a registered version.
        metric: the figure that promotion compares; what it was measured on must be known.
    """
    from mlflow.exceptions import MlflowException

    tags: dict[str, str] = version.tags
    missing = []
    if not version.run_id:
        missing.append("run: the version names none")
    else:
        try:
            client.get_run(version.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            missing.append(f"run: {version.run_id} is not in the store")
    if not any(tag.startswith("data/") and tag.endswith("/sha256") for tag in tags):
        missing.append("data: no hash of the training data")
    if "git_commit" not in tags:
        missing.append("code: no git commit")
    image = tags.get("image")
    if image is None:
        missing.append("image: none is named (not run from an image)")
    elif "@sha256:" not in image:
        missing.append(f"image: {image} has no digest, so that it may be another one by now")
    if f"metric/{metric}" not in tags:
        missing.append(f"metric: {metric} was not measured")
    if f"evaluation/{metric.split('/')[0]}" not in tags:
        missing.append(f"evaluation: what {metric} was measured on is not recorded")
    return missing
