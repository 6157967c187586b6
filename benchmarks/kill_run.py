"""Local runs (`rest run`) that are killed (SIGKILL) at random moments, sent to MLflow, and resumed.

    python benchmarks/kill_run.py [--kills 20] [--seed 0] [--command run|ablate] [--set A.B=VALUE …]

Each run has a new folder and a new store, so that kills meet the making of the database, too. Killed is the process
group, one process of the run, or its processes from the first to the last. Then must hold: the database is whole; after
`rest sync` no run is RUNNING; `--resume` completes the run, and after that none is RUNNING either.

Each kill is one JSON line of the results (`--results`); one that is there already is not done again. The exit code is 1
where one did not hold; its folder stays. `--set` switches stages off, so that the others are hit more often.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

REST = (sys.executable, "-m", "pipelines.cli")
COMMANDS = {"run": ["--profile", "tiny"], "ablate": ["--profile", "tiny", "--seeds", "0"]}
TARGETS = ("group", "one", "tree")
MOST_SECONDS = 900  # of one command
_OUT = "run"  # the run's folder


def rest(folder: Path, *arguments: str) -> tuple[int, str]:
    """A command of this project in a folder: its exit code, and what it said."""
    done = subprocess.run(
        [*REST, *arguments], cwd=folder, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
    )
    return done.returncode, done.stdout + done.stderr


def kill(folder: Path, start: list[str], target: str, stage: int, after: float, generator: random.Random) -> str | None:
    """Start a run and kill it `after` seconds, counted from the beginning of its stage number `stage` (0: its own).

    Returns what it said last, or None where it ended before that.
    """
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*REST, *start, "--output", _OUT],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while process.poll() is None and stages(folder) < stage:
        time.sleep(0.05)
    try:
        process.wait(after)
        return None
    except subprocess.TimeoutExpired:
        pass
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if target == "group":
        os.killpg(process.pid, signal.SIGKILL)
    for one in [generator.choice(family)] if target == "one" else family:
        if target != "group" and one.is_running():
            one.kill()
    process.wait(MOST_SECONDS)
    psutil.wait_procs(family[1:], timeout=MOST_SECONDS)  # a stage that has lost its parent goes on to its end
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else ""


def stages(folder: Path) -> int:
    """How many stages a run has begun."""
    return sum(line.startswith("▶") for line in (folder / "log").read_text(encoding="utf-8").splitlines())


def running(folder: Path) -> tuple[list[str], list[str]]:
    """The runs of a folder's store that are not ended, and what is wrong with its database."""
    database = folder / "mlruns" / "mlflow.db"
    if not database.exists():
        return [], []
    try:
        connection = sqlite3.connect(database)
        (state,) = connection.execute("PRAGMA integrity_check").fetchone()
        rows = connection.execute("SELECT name FROM runs WHERE status IN ('RUNNING', 'SCHEDULED')").fetchall()
        connection.close()
    except sqlite3.Error as error:
        return [], [f"the database: {error}"]
    return [name for (name,) in rows], [] if state == "ok" else [f"the database: {state}"]


def trial(folder: Path, start: list[str], whole: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """One kill and what came after it; `problems` names what did not hold.

    Args:
        folder: of the run and its store.
        start: the command.
        whole: the seconds and the number of stages of a run that was not killed.
        generator: draws what is killed, and when: in any stage, or between two.
    """
    target, stage = generator.choice(TARGETS), generator.randint(0, whole["stages"])
    after = generator.uniform(0, 1.5 * whole["seconds"] / whole["stages"])
    said = kill(folder, start, target, stage, after, generator)
    result: dict[str, Any] = {"target": target, "stage": stage, "after_seconds": round(after, 2), "killed_at": said}
    problems: list[str] = []
    has_begun, summary = (folder / _OUT / "run.json").is_file(), folder / _OUT / "summary.json"
    if has_begun:
        code, words = rest(folder, "sync", _OUT)
        if code and "no tracking records" not in words:
            problems.append(f"rest sync ended with {code}: {words[-300:]}")
    left, broken = running(folder)
    problems += broken + [f"RUNNING after rest sync: {name}" for name in left]
    if not (summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["status"] == "succeeded"):
        again = [start[0], "--resume", _OUT] if has_begun else [*start, "--output", "again"]
        code, words = rest(folder, *again)
        if code:
            problems.append(f"rest {' '.join(again)} ended with {code}: {words[-500:]}")
    left, broken = running(folder)
    problems += broken + [f"RUNNING in the end: {name}" for name in left]
    return result | {"problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", choices=sorted(COMMANDS), default="run")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", dest="overrides")
    parser.add_argument("--results", type=Path, default=Path("kill_run.jsonl"), help="file to add a line a kill to")
    parser.add_argument("--folder", type=Path, help="where the runs are made; default: a temporary folder")
    options = parser.parse_args()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)
    top = options.folder or Path(tempfile.mkdtemp(prefix="kill-run-"))
    top.mkdir(parents=True, exist_ok=True)
    lines = options.results.read_text(encoding="utf-8").splitlines() if options.results.is_file() else []
    known = {(one["command"], one["seed"], one["kill"]): one for one in map(json.loads, lines)}
    start = [options.command, *COMMANDS[options.command]]
    start += [text for override in options.overrides for text in ("--set", override)]

    def note(number: int, values: dict[str, Any]) -> None:
        one = {"command": options.command, "seed": options.seed, "kill": number, **values}
        known[options.command, options.seed, number] = one
        with options.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(one, ensure_ascii=False) + "\n")
        sys.stdout.write(json.dumps(one, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    for number in range(options.kills + 1):
        if (options.command, options.seed, number) in known:
            continue
        folder = top / f"{options.command}-{options.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if number == 0:  # how long a run takes that is not killed
            started = time.monotonic()
            code, words = rest(folder, *start, "--output", _OUT)
            (folder / "log").write_text(words, encoding="utf-8")
            problems = [f"it ended with {code}: {words[-500:]}"] if code else []
            seconds = round(time.monotonic() - started, 1)
            note(0, {"seconds": seconds, "stages": stages(folder), "problems": problems})
        else:
            whole = known[options.command, options.seed, 0]
            note(number, trial(folder, start, whole, random.Random(f"{options.seed}/{number}")))
        if not known[options.command, options.seed, number]["problems"]:
            shutil.rmtree(folder)
    failed = sum(bool(one["problems"]) for one in known.values())
    sys.stdout.write(f"{len(known)} runs, {failed} with problems\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
