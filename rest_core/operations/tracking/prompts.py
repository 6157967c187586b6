"""Prompt templates in MLflow's registry of prompts: which version a run has used."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HASH_TAG = "rest.sha256"
_LINKED_TAG = "mlflow.linkedPrompts"  # what MLflow's page of a run shows as its prompts
_SOURCE = "prompt-template"  # a version of a model must have one
_NO_NAME = re.compile(r"[^a-zA-Z0-9_.-]+")  # what MLflow refuses in a prompt's name
_STYLES_HASH = re.compile(r" \(sha256 [0-9a-f]+\)$")


def prompt_name(condition: str) -> str:
    """The name of the prompt of an evaluation's condition: the versions of a user's file are versions of one prompt."""
    return "rest-" + _NO_NAME.sub("-", _STYLES_HASH.sub("", condition)).strip("-")


def link(client: MlflowClient, experiment_id: str, run_id: str, name: str, template: str) -> None:
    """Have a run's page name a prompt template; one that differs from all versions before becomes a new version.

    Args:
        name: `prompt_name`.
    """
    from mlflow.prompt.constants import PROMPT_EXPERIMENT_IDS_TAG_KEY

    digest = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    version = _version_with(client, name, digest) or _register(client, name, template, digest)
    client.set_tag(run_id, _LINKED_TAG, json.dumps([{"name": name, "version": version}]))
    prompt = client.get_prompt(name)
    known = [one for one in (prompt.tags if prompt else {}).get(PROMPT_EXPERIMENT_IDS_TAG_KEY, "").split(",") if one]
    if experiment_id not in known:  # the page of prompts that an experiment has
        client.set_prompt_tag(name, PROMPT_EXPERIMENT_IDS_TAG_KEY, f",{','.join([*known, experiment_id])},")


def _version_with(client: MlflowClient, name: str, digest: str) -> str | None:
    if not client.search_prompts(f"name = '{name}'"):
        return None
    same = [one for one in client.search_prompt_versions(name) if one.tags.get(_HASH_TAG) == digest]
    return str(same[0].version) if same else None


def _register(client: MlflowClient, name: str, template: str, digest: str) -> str:
    """A new version, as `MlflowClient.register_prompt` makes it.

    That function also looks for an experiment that is active in this process, and so writes into stores that this run
    has nothing to do with.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.prompt.constants import (
        IS_PROMPT_TAG_KEY,
        PROMPT_TEXT_TAG_KEY,
        PROMPT_TYPE_TAG_KEY,
        PROMPT_TYPE_TEXT,
    )

    registry = client._get_registry_client()
    try:
        registry.create_registered_model(name, tags={IS_PROMPT_TAG_KEY: "true"})
    except MlflowException as error:
        there = error.error_code == "RESOURCE_ALREADY_EXISTS"
        if not (there and client.search_prompts(f"name = '{name}'")):  # a model may have the name
            raise
    tags = {IS_PROMPT_TAG_KEY: "true", PROMPT_TYPE_TAG_KEY: PROMPT_TYPE_TEXT, PROMPT_TEXT_TAG_KEY: template}
    made = registry.create_model_version(name=name, source=_SOURCE, tags={**tags, _HASH_TAG: digest})
    return str(made.version)
