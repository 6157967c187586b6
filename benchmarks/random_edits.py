"""Random edits of what users hand to the project, read by the project's own readers.

    python benchmarks/random_edits.py [--edits 100000] [--kinds data,profile] [--workers 2] [--output FILE] [--only 17]

Data files, profiles, platform.yaml, checkpoints and records that wait for MLflow are edited: bits flipped, files cut
off, values replaced, JSON and YAML rearranged. Each may be refused (`UserError`) or read. A fault is any other
exception, a process that dies, more than 10 seconds of computing, and a change of a file outside of the edit's own
folder. Edits depend on seed and their number alone: a run that is ended goes on where it was with `--output` again,
`--only` repeats one edit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
from edits.kinds import KINDS

from rest_core.errors import UserError

SECONDS = 10  # of computing, for one edit
WAITING = 120  # seconds in all: a checkpoint is tried in another process
GIB = 4
_PROCESSES = multiprocessing.get_context("spawn")  # one that is forked could wait for threads that it has not got
_CHECK_EVERY = 200  # edits between looks at the files that nobody may change


def kind_of(number: int, names: list[str]) -> str:
    """The kind of an edit."""
    shares = [KINDS[name].share for name in names]
    return Random(f"kind {number}").choices(names, shares)[0]


def attempt(number: int, kind: str, seed: int, originals: Path, work: Path) -> str | None:
    """Make an edit and read it; the fault that it shows, None where it is refused or read."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(originals / kind, work)
    KINDS[kind].edit(Random(f"{seed} {kind} {number}"), work)
    try:
        KINDS[kind].read(work, number)
    except UserError as error:
        if "\n" in str(error):
            return f"an error of several lines: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error, limit=-6))
    return None


def snapshot(folder: Path) -> str:
    """Names, modes and contents of all files below a folder."""
    found = [
        (str(path.relative_to(folder)), path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def work(numbers: list[int], settings: dict[str, Any], root: Path, at: Any, results: Any) -> None:
    """A worker's loop: it writes which edit it is at, and reports faults."""
    logging.disable()
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = snapshot(root / "guarded")
    for done, number in enumerate(numbers, start=1):
        at[0], at[1], at[2] = number, time.monotonic(), time.process_time()
        kind = kind_of(number, settings["kinds"])
        folder = root / f"work-{os.getpid()}"
        fault = attempt(number, kind, settings["seed"], root / "originals", folder)
        if (done % _CHECK_EVERY == 0 or done == len(numbers)) and snapshot(root / "guarded") != before:
            fault, before = "files outside of the edit's folder were changed", snapshot(root / "guarded")
        shutil.rmtree(folder, ignore_errors=True)
        results.put((number, kind, fault))
    results.close()
    results.join_thread()


class Worker:
    """A process that makes some of the edits; it is killed at one that does not end, and started again behind it."""

    def __init__(self, numbers: list[int], settings: dict[str, Any], root: Path, results: Any) -> None:
        self._left, self._settings, self._root, self._results = numbers, settings, root, results
        self._start()

    def _start(self) -> None:
        self._at = _PROCESSES.Array("d", 3)
        arguments = (self._left, self._settings, self._root, self._at, self._results)
        self._process = _PROCESSES.Process(target=work, args=arguments)
        self._process.start()

    def look(self) -> tuple[int, str] | None:
        """The edit that has gone wrong in a way that the process could not report."""
        number, since, used = int(self._at[0]), self._at[1], self._at[2]
        if self._process.exitcode is None:
            if not since:
                return None
            try:
                times = psutil.Process(self._process.pid).cpu_times()
            except psutil.NoSuchProcess:
                return None
            if times.user + times.system - used < SECONDS and time.monotonic() - since < WAITING:
                return None
            self._process.kill()
            self._process.join()
            problem = f"more than {SECONDS} s of computing, or {WAITING} s in all"
        elif self._process.exitcode == 0:
            self._left = []
            return None
        else:
            problem = f"the process died with {self._process.exitcode}"
        self._left = self._left[self._left.index(number) + 1 :]
        if self._left:
            self._start()
        return number, problem

    @property
    def runs(self) -> bool:
        return self._process.is_alive() or bool(self._left)


def faults_of(numbers: list[int], settings: dict[str, Any], root: Path, workers: int) -> Iterator[tuple[int, str, Any]]:
    """Each edit with its kind and its fault, as they come."""
    results: Any = _PROCESSES.Queue()
    crew = [Worker(numbers[n::workers], settings, root, results) for n in range(workers) if numbers[n::workers]]
    while any(worker.runs for worker in crew) or not results.empty():
        while not results.empty():
            yield results.get()
        for worker in crew:
            if (found := worker.look()) is not None:
                yield found[0], kind_of(found[0], settings["kinds"]), found[1]
        time.sleep(0.05)


def prepared(root: Path, kinds: list[str]) -> None:
    """The originals, files that nobody may change, and a home for caches."""
    for kind in kinds:
        (root / "originals" / kind).mkdir(parents=True)
        KINDS[kind].make(root / "originals" / kind)
    (root / "guarded").mkdir()
    (root / "guarded" / "secret.txt").write_text("not to be read", encoding="utf-8")
    (root / "guarded" / "key").write_text("not to be changed", encoding="utf-8")
    (root / "guarded" / "key").chmod(0o600)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    (root / "cache" / "rest-pipelines").mkdir(parents=True)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--edits", type=int, default=100_000)
    arguments.add_argument("--kinds", default=",".join(KINDS))
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "--output", type=Path, help="JSON lines: one a fault, and how far the run is; it is gone on with"
    )
    arguments.add_argument("--only", type=int, help="repeat this edit and show what it raises")
    given = arguments.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    settings = {"kinds": given.kinds.split(","), "seed": given.seed}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        prepared(root, settings["kinds"])
        if given.only is not None:
            kind = kind_of(given.only, settings["kinds"])
            fault = attempt(given.only, kind, given.seed, root / "originals", root / "work")
            _say(f"{kind}: {fault}")
            return int(fault is not None)
        return run(given, settings, root)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(given: argparse.Namespace, settings: dict[str, Any], root: Path) -> int:
    lines = given.output.read_text(encoding="utf-8").splitlines() if given.output and given.output.exists() else []
    earlier = [json.loads(line) for line in lines]
    done = {number for line in earlier for number in range(*line.get("done", (0, 0)))}
    faults: Counter[str] = Counter(line["kind"] for line in earlier if "kind" in line)
    counts: Counter[str] = Counter()
    block, start = 5000, time.monotonic()
    for first in range(0, given.edits, block):
        numbers = [number for number in range(first, min(first + block, given.edits)) if number not in done]
        if not numbers:
            continue
        found = []
        for number, kind, fault in faults_of(numbers, settings, root, given.workers):
            counts[kind] += 1
            if fault is not None:
                faults[kind] += 1
                found.append({"number": number, "kind": kind, "fault": fault})
                _say(f"edit {number} ({kind}): {fault}")
        if given.output:
            with given.output.open("a", encoding="utf-8") as stream:
                for line in (*found, {"done": [first, first + len(numbers)]}):
                    stream.write(json.dumps(line) + "\n")
        seconds = time.monotonic() - start
        _say(f"{counts.total()} edits in {seconds:.0f} s {dict(counts)}, faults: {dict(faults)}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
