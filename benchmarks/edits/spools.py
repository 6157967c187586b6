"""Spools, as stages leave them: every kind of record, two files that wait, and half of it sent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

from edits import changes
from rest_core import storage
from rest_core.operations.tracking import runs
from rest_core.operations.tracking.delivery import deliver
from rest_core.operations.tracking.journal import JOURNAL

_TIME = 1_790_000_000_000  # milliseconds
_TABLE = "0123456789ab/step_1.json"
_OF = {"identity": "a" * 64, "name": "trained", "dataset": "bfcl", "digest": "0123456789", "metrics": ["accuracy"]}
_RECORDS: tuple[dict[str, Any], ...] = (
    {"op": "params", "to": "run", "values": {"cfg/rl.steps": "6"}},
    {"op": "tags", "to": "pipeline", "values": {"rest.note": "x"}},
    {"op": "metrics", "to": "run", "step": 1, "values": {"reward": 0.5, "loss": "nan"}},
    {"op": "metrics", "to": "run", "step": 2, "values": {"reward": 1.5}},
    {"op": "metrics", "to": "pipeline", "step": None, "values": {"accuracy": 0.5}, "of": _OF},
    {"op": "artifact", "to": "run", "file": _TABLE, "folder": "tables", "table": True},
    {
        "op": "dataset",
        "name": "rl",
        "digest": "0123456789",
        "source": "data.jsonl",
        "source_type": "local",
        "rows": 3,
        "context": "training",
        "columns": {"prompt": "string"},
    },
    {"op": "model", "identity": "a" * 64, "name": "trained"},
    {"op": "prompt", "name": "compact", "template": "{{question}}"},
    {"op": "end", "status": "FINISHED", "error": None},
)


def make(folder: Path) -> None:
    """Write the spools of two stages, of which one was killed."""
    for stage, records in (("prepare-data", _RECORDS), ("rest-rl", _RECORDS[:-1])):
        journal = folder / f"{stage}.tracking" / "001"
        (journal / "files" / _TABLE).parent.mkdir(parents=True)
        table = {"columns": ["prompt", "reward"], "data": [["Hi", 1.0]]}
        (journal / "files" / _TABLE).write_text(json.dumps(table), encoding="utf-8")
        levels = runs._levels("edited", stage, None, 1)
        begin = {"op": "begin", "uri": "http://mlflow", "experiment": "edits", "stage": stage, "join": None}
        lines = [{"time": _TIME, **record} for record in ({**begin, "levels": levels}, *records)]
        (journal / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        state = {"sent": {"values": 0, "files": 0}, "ids": None, "refused": 0}
        (journal / "state.json").write_text(json.dumps(state), encoding="utf-8")


def edit(rng: Random, folder: Path) -> None:
    """Edit one file; now and then have a record lead elsewhere, or a link stand where a file is meant."""
    guarded = folder.parent / "guarded"
    journal = rng.choice(sorted(folder.glob("*/001")))
    kind = rng.random()
    if kind < 0.2:
        lines = [json.loads(line) for line in (journal / JOURNAL).read_text(encoding="utf-8").splitlines()]
        one = rng.choice([line for line in lines if "file" in line])
        places = (
            str(guarded / "key"),
            "../../../../guarded/key",
            "0123456789ab/../../../../../guarded/key",
            "key",
            "..",
        )
        one[rng.choice(("file", "folder"))] = rng.choice(places)
        (journal / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    elif kind < 0.3:
        place = journal / rng.choice(("files", f"files/{_TABLE}", JOURNAL, "state.json", "lock"))
        target = guarded if rng.random() < 0.5 else guarded / "key"
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            place.rename(place.with_name("aside"))
        os.mkfifo(place) if rng.random() < 0.3 else place.symlink_to(target)
    else:
        path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
        of_kind = {".jsonl": changes.of_json_lines, ".json": changes.of_json}
        path.write_bytes(changes.edited(rng, path.read_bytes(), of_kind.get(path.suffix)))


def read(folder: Path, number: int) -> None:
    """Send them to a store of this process."""
    deliver(folder, f"sqlite:///{storage.cache_folder() / f'records-{os.getpid()}' / 'mlflow.db'}", moved=True)
