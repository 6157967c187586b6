"""How API-Bank's files lie in their folder, as ToolRL publishes them."""

from __future__ import annotations

from pathlib import Path

LEVELS = (1, 2, 3)


def level_file(folder: Path, level: int) -> Path:
    """The file with the items of one level."""
    return folder / f"level-{level}-api_processed.json"
