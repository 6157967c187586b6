"""Logging of the process, configured once: by the command line, or by a component around its stage."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable
from typing import TextIO

from rest_core.credentials import redact

# Loggers that their libraries give handlers of their own, on import; `configure` takes those away.
_OWN_HANDLERS = ("alembic", "datasets", "huey", "huggingface_hub", "mlflow", "sqlalchemy.engine", "transformers")
_TALKATIVE = ("alembic", "botocore", "filelock", "fsspec", "httpcore", "httpx", "matplotlib", "urllib3")


class _Formatter(logging.Formatter):
    """One line a record, without the credentials of addresses, which libraries' messages have too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def configure(
    stream: TextIO, *, level: int = logging.INFO, libraries: Iterable[str] = ("datasets", "mlflow", "transformers")
) -> None:
    """Send the log records and Python warnings of the whole process to `stream`, one line each.

    Args:
        stream: where to; libraries write nowhere else, so that a terminal is left to progress bars.
        level: the least level that is shown; talkative libraries are shown from WARNING on.
        libraries: packages imported here first, because their import installs the handlers that are taken away; those
            that are installed (a container image holds what its stages need).
    """
    for name in libraries:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    _fewer_progress_bars()
    for name in _OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _fewer_progress_bars() -> None:
    """Of the libraries' own bars keep those of downloads, on a terminal; the stages draw one for what they do."""
    switches = {"transformers.utils.logging": "disable_progress_bar", "datasets": "disable_progress_bars"}
    if not sys.stderr.isatty():
        switches["huggingface_hub.utils"] = "disable_progress_bars"
    for module, switch in switches.items():
        if module.partition(".")[0] in sys.modules:
            getattr(importlib.import_module(module), switch)()
