"""Prompt templates in MLflow's registry of prompts: which version a run has used."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HASH_TAG = "rest.sha256"
_LINKED_TAG = "mlflow.linkedPrompts"  # what MLflow's page of a run shows as its prompts


def link(client: MlflowClient, run_id: str, name: str, template: str) -> None:
    """Have a run's page name a prompt template; one that differs from all versions before becomes a new version.

    Args:
        name: of letters, digits, hyphens, dots and underscores.
    """
    digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    version = _version_with(client, name, digest)
    if version is None:
        version = str(client.register_prompt(name, template, tags={_HASH_TAG: digest}).version)
    client.set_tag(run_id, _LINKED_TAG, json.dumps([{"name": name, "version": version}]))


def _version_with(client: MlflowClient, name: str, digest: str) -> str | None:
    if not client.search_prompts(f"name = '{name}'"):
        return None
    same = [one for one in client.search_prompt_versions(name) if one.tags.get(_HASH_TAG) == digest]
    return str(same[0].version) if same else None
