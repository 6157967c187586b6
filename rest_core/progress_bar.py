"""How far something is: a bar on a terminal, lines in a log elsewhere."""

from __future__ import annotations

import io
import logging
import sys
import time
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

LOG_EVERY = 60.0  # seconds
_LINE = "{desc}: {n_fmt} of {total_fmt}{postfix}, {elapsed} so far"


class ProgressBar(tqdm):
    """tqdm's bar; where there is no terminal, as in a pod, a log line a minute in its place."""

    def __init__(self, **options: Any) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._logged = time.monotonic()
        lines = {"file": io.StringIO(), "bar_format": _LINE, "miniters": 1, "mininterval": 0, "leave": False}
        super().__init__(**options, **({} if self._on_terminal else lines))

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show how far it is, now if on a terminal, else if the last line is old enough."""
        if self._on_terminal:
            super().display(msg, pos)
        elif time.monotonic() - self._logged >= LOG_EVERY:
            self._logged = time.monotonic()
            log.info("%s", self)
