"""The logs of a local run: kfp.local's own, whole, and what the stages say, for people."""

from __future__ import annotations

import io
import re
from typing import TextIO

LOG_FILE = "log.txt"  # readable
KFP_LOG_FILE = "kfp.log"  # whole

_TASK = re.compile(r"^[\d:.]+ - INFO - Executing task '(?P<name>[^']+)'")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_INDENT = "    "  # of what a task has printed
_WARNING = re.compile(r"^    [\d:]+ WARNING (?P<logger>[\w.]+): (?P<text>.+)$")
_SKIPPED = "rest_core.stages.stage"  # says that a stage is skipped, which the summary says in its own way
_BAR = re.compile(r"\d%\|")  # a progress bar of another library
_FRAME = re.compile(r"^\[KFP Executor .*\]: |INFO root: Wrote executor output file to ")


def warnings_in(readable: str) -> dict[str, list[str]]:
    """The warnings of a readable log, each with the stages that gave it."""
    found: dict[str, list[str]] = {}
    stage = ""
    for line in readable.splitlines():
        if line and not line.startswith(_INDENT):
            stage = line
        elif (warning := _WARNING.match(line)) is not None and warning["logger"] != _SKIPPED:
            stages = found.setdefault(warning["text"], [])
            stages += [] if stage in stages else [stage]
    return found


class RunLog(io.TextIOBase):
    """A stream for kfp.local's output: all of it goes to `whole`, the stages' own lines to `readable`.

    Left out of these are the parameters and outputs of each task, which kfp prints as JSON.
    """

    def __init__(self, whole: TextIO, readable: TextIO) -> None:
        self._whole, self._readable = whole, readable
        self._rest = ""
        self._in_json = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._whole.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(_ANSI.sub("", line).rstrip())
        return len(text)

    def flush(self) -> None:
        if not self._whole.closed:
            self._whole.flush()
            self._readable.flush()

    def _line(self, line: str) -> None:
        if (task := _TASK.match(line)) is not None:
            self._in_json = False
            self._readable.write(f"\n{task['name']}\n")
        elif not line.startswith(_INDENT):  # kfp's own
            self._in_json = line.endswith(" outputs:")  # which are listed below it
        elif self._in_json:
            self._in_json = line != f"{_INDENT}}}"
        elif _FRAME.search(line[len(_INDENT) :]):
            self._in_json = line.endswith("Got executor_input:")
        elif not _BAR.search(line):
            self._readable.write(f"{line}\n")
