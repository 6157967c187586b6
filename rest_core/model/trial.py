"""A first look at a checkpoint in a process of its own, before this process reads it.

A checkpoint is somebody else's: its chat template is a program, its tokenizer has regular expressions, its config.json
says how much memory the model takes. Each may run for ever, or take all memory, and none can be stopped from within.
So all of it is tried once where it can be stopped (`trial_process.py`): read, built without memory, and put to use on
a short dialogue. A checkpoint whose code the user trusts (`model.trust_remote_code`) is not tried.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rest_core
from rest_core import manifest, storage
from rest_core.config import ModelConfig
from rest_core.errors import UserError, one_line

STEPS = {"config": "config.json", "tokenizer": "tokenizer", "template": "chat template"}
GIB = 4  # of memory that the trial may take beyond its libraries
TOO_LARGE = f"its {{}} takes more than {GIB} GiB of memory, for a short dialogue; take another checkpoint"
_TOO_LONG = "its {} takes endless computing, for a short dialogue; take another checkpoint"
_PROCESS = f"{__name__}_process"
_LONGEST = 400  # characters of somebody else's error
_PACKAGES = ("transformers", "tokenizers", "jinja2", "torch")
_READ = ("*config.json", "*token*.json", "vocab*", "merges*", "*.model", "*.jinja", "chat_template*", "*/*.jinja")

_passed: set[str] = set()  # what has passed, by content; kept below the cache folder too


def require_sound(
    where: str, source: str | Path, config: ModelConfig, *, steps: tuple[str, ...] = tuple(STEPS)
) -> None:
    """Refuse a checkpoint that does not end, takes too much memory, or fails, when it is read as a stage reads it.

    Takes some seconds for each checkpoint, and nothing once it has passed: files that are the same are not tried again.

    Args:
        where: a folder or hub id, as `rest_core.model.loading.resolve` gives it.
        source: as the user calls it, for messages.
        steps: of `STEPS`, in their order.

    Raises:
        UserError: the checkpoint cannot be used.
    """
    if config.trust_remote_code:
        return
    folder = Path(where)
    key = _key(folder, config, steps) if folder.is_dir() else f"{where}@{config.revision} {steps}"
    kept = storage.cache_folder() / "tried" / hashlib.sha256(key.encode()).hexdigest()
    if key in _passed or (folder.is_dir() and kept.is_file()):
        return
    settings = config.model_dump(include={"revision", "init", "enable_thinking"})
    problem = _tried({"where": where, "source": str(source), "config": settings, "steps": steps})
    if problem is not None:
        raise UserError(one_line(problem, longest=_LONGEST))
    _passed.add(key)
    if folder.is_dir() and os.access(storage.cache_folder(), os.W_OK):
        kept.parent.mkdir(exist_ok=True)
        kept.touch()


def _tried(request: dict[str, Any]) -> str | None:
    """What is wrong with a checkpoint, None where nothing is."""
    *lines, last = _server().answer(request)
    code = int(last)
    if code == 0:
        problem: str | None = json.loads(lines[-1])
        return problem
    too_long = code in (-signal.SIGXCPU, -signal.SIGALRM)
    return f"model {request['source']}: {(_TOO_LONG if too_long else TOO_LARGE).format(STEPS[lines[-1]])}"


class _Server:
    """The process that forks one for each trial: its libraries, which take seconds to import, are imported once."""

    def __init__(self) -> None:
        beside = str(Path(rest_core.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (beside, os.environ.get("PYTHONPATH", "")))),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self._lock = threading.Lock()
        atexit.register(self.end)

    def answer(self, request: dict[str, Any]) -> list[str]:
        """The lines that a trial has written, the last of them the exit status of its process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # its output, which has ended too, says so
            lines = []
            for line in iter(self._process.stdout.readline, b""):
                lines.append(line.decode().rstrip("\n"))
                if line.startswith(b"ended "):
                    return [*lines[:-1], lines[-1].removeprefix("ended ")]
        self._errors.seek(0)
        raise RuntimeError(f"{_PROCESS} has ended: {one_line(self._errors.read()[-_LONGEST:])}")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


_servers: dict[int, _Server] = {}  # by the process that has started it


def _server() -> _Server:
    if os.getpid() not in _servers:
        _servers[os.getpid()] = _Server()
    return _servers[os.getpid()]


def _key(folder: Path, config: ModelConfig, steps: tuple[str, ...]) -> str:
    """What a trial's outcome depends on."""
    packages = [importlib.metadata.version(name) for name in _PACKAGES]
    settings = [config.init, config.enable_thinking]
    return json.dumps([packages, settings, steps, list(_contents(folder))])


def _contents(folder: Path) -> Iterator[tuple[str, str | int]]:
    """The files of a checkpoint that are read: their names with the hashes of their contents, of weights the sizes."""
    for path in sorted({path for pattern in _READ for path in folder.glob(pattern) if path.is_file()}):
        yield str(path.relative_to(folder)), manifest.sha256_file(path)
    yield "weights", sum(path.stat().st_size for path in folder.glob("*.safetensors"))
