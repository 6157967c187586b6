"""What must not stand in a stage's arguments: logs, the list of processes and a cluster's database have them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rest_core.config import Config
from rest_core.credentials import has_credentials, without_credentials
from rest_core.errors import UserError
from rest_core.operations.tracking.store import HANDED_OVER


def without_webhook(config: Config) -> Config:
    """The configuration as stages get it: `gate.webhook`, which may be a secret, is `rest promote`'s alone."""
    return config.model_copy(update={"gate": config.gate.model_copy(update={"webhook": None})})


def in_environment(config: Config) -> Config:
    """The configuration as stages of this machine get it: credentials of `tracking.uri` go into their environment."""
    uri = config.tracking.uri
    if uri is not None and has_credentials(uri):
        os.environ["MLFLOW_TRACKING_URI"], os.environ[HANDED_OVER] = uri, "1"
        tracking = config.tracking.model_copy(update={"uri": without_credentials(uri)})
        config = config.model_copy(update={"tracking": tracking})
    return without_webhook(config)


def require_none(what: Mapping[str, Any]) -> None:
    """Raise `UserError` for an address with credentials anywhere in what a pipeline is compiled from.

    Args:
        what: sections, settings and the like, by the names that users know.
    """
    for name, text in _texts(what, ""):
        if has_credentials(text):
            remedy = (
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
                if name == "tracking.uri"
                else "deploy/secrets.example.yaml has the variables that stages read"
            )
            raise UserError(
                f"{name} holds a password or another secret, which would stand in the pipeline's YAML: leave it out, "
                f"and give it to the pods in a Secret ({remedy})"
            )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every text in a value, keys too, with its place."""
    if isinstance(value, BaseModel):
        value = {key: getattr(value, key) for key in type(value).model_fields}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield name, str(key)
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, name)
    elif isinstance(value, str):
        yield name, value
