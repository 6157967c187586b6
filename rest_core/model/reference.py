"""Policy folders that only refer to a model that lies elsewhere, for stages that pass their model on untouched.

Apart from `loading`, so that what merely asks about a folder needs no torch (the image `base` has none).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rest_core.errors import UserError

FILE_NAME = "policy.json"  # {"source": …}


def write_reference(out: Path, source: str) -> None:
    """Make `out` a policy folder that refers to `source`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE_NAME).write_text(json.dumps({"source": source}) + "\n", encoding="utf-8")


def is_reference(folder: Path) -> bool:
    """Whether a policy folder only refers to a model that lies elsewhere."""
    return (folder / FILE_NAME).is_file()


def read_reference(folder: Path) -> str:
    """The source that a policy folder refers to. Raises `UserError` where its file is damaged."""
    path = folder / FILE_NAME
    try:
        source = json.loads(path.read_text(encoding="utf-8"))["source"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a reference to a model; run the stage that made it again") from None
    return str(source)


def pass_on(policy: str | Path, out: Path) -> None:
    """Make `out` the same policy as `policy`: a copy of a folder or of its reference, else a reference."""
    folder = Path(policy)
    if folder.is_dir():
        (out / FILE_NAME).unlink(missing_ok=True)  # of an earlier run into the same folder
        shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json", "metrics.json"))
    else:
        write_reference(out, str(policy))
