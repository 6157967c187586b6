"""The kubeconfig: whether there is one, and what it says."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes.config import ConfigException, kube_config

from pipelines.cluster.words import one_line
from rest_core.errors import UserError


def exists() -> bool:
    places = kube_config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)  # that of KUBECONFIG where it is set
    return any(Path(place).expanduser().is_file() for place in places if place)


def load(settings: Any) -> None:
    """Server and identity of the kubeconfig into `settings`, a Configuration of the kubernetes or KFP client.

    Raises:
        UserError: it cannot be used.
    """
    try:
        with _errors_logged() as logged:
            kube_config.load_kube_config(client_configuration=settings)
        reason = "; ".join(logged)
    except (ConfigException, yaml.YAMLError, OSError) as error:
        reason = one_line(error)
    except Exception:  # the loader takes the file's shape for granted: anything may come of another
        reason = "it is not written as kubectl writes it"
    if reason:
        raise UserError(
            f"the kubeconfig {kube_config.KUBE_CONFIG_DEFAULT_LOCATION} cannot be used ({reason}): mend it, or set "
            "KUBECONFIG to another"
        )


@contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """What is logged as an error meanwhile, instead of its output: so the loader tells that a log-in command failed."""
    told: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                told.append(one_line(record.getMessage()))

    root = logging.getLogger()
    before, root.handlers = root.handlers, [Collector()]
    try:
        yield told
    finally:
        root.handlers = before
