"""Files that were checked are not read again for it, as long as their sizes and times of change stay the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rest_core.disk import written_aside


def state(folder: Path, expected: Mapping[str, str]) -> str:
    """What shows that nothing has changed: each file's size, its time of change and what it was checked for.

    Args:
        folder: the files' folder, or where the name is empty, the file.
        expected: by the files' names, what they are checked for, such as a hash.

    Raises:
        FileNotFoundError: one is not there.
    """
    lines = [str(folder)]
    for name, wanted in sorted(expected.items()):
        found = (folder / name).stat()
        lines.append(f"{found.st_size} {found.st_mtime_ns} {wanted} {name}")
    return "\n".join(lines)


def holds(record: Path, found: str) -> bool:
    """Whether a state is that which was noted."""
    try:
        return record.read_text(encoding="utf-8") == found
    except (OSError, ValueError):  # none, or a damaged one: check again
        return False


def note(record: Path, found: str) -> None:
    """Remember the state of files that are right; where that cannot be written, they are checked again."""
    try:
        with written_aside(record) as aside:
            aside.write_text(found, encoding="utf-8")
    except OSError:
        return
