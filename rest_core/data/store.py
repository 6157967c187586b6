"""The prepared dataset on disk: a Hugging Face DatasetDict, one row a sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from rest_core.errors import UserError
from rest_core.records import Message, Sample, Tool

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "prompt": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "tools": datasets.Value("string"),  # JSON: tools of one dataset differ in their schemas
        "reference": datasets.Value("string"),
        "prompt_tokens": datasets.Value("int32"),  # the start of the assistant's turn included
        "reference_tokens": datasets.Value("int32"),  # the end of the turn included
    }
)
COLUMNS = {
    name: "long" if isinstance(kind, datasets.Value) and kind.dtype == "int32" else "string"
    for name, kind in FEATURES.items()
}
"""The columns with MLflow's types; messages count as text there."""
DESCRIPTION = "dataset_dict.json"  # written by datasets; without it the folder is no DatasetDict


def to_row(sample: Sample, *, prompt_tokens: int, reference_tokens: int) -> dict[str, Any]:
    """A row with the columns of `FEATURES`."""
    tools = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in sample.tools]
    return {
        "id": sample.id,
        "source": sample.source,
        "prompt": [{"role": message.role, "content": message.content} for message in sample.prompt],
        "tools": json.dumps(tools, ensure_ascii=False),
        "reference": sample.reference,
        "prompt_tokens": prompt_tokens,
        "reference_tokens": reference_tokens,
    }


def to_sample(row: dict[str, Any]) -> Sample:
    """The sample that a row holds."""
    return Sample(
        id=row["id"],
        source=row["source"],
        prompt=tuple(Message(message["role"], message["content"]) for message in row["prompt"]),
        tools=tuple(Tool(**tool) for tool in json.loads(row["tools"])),
        reference=row["reference"],
    )


def save(splits: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write rows as a DatasetDict; splits without rows are written too."""
    made = {
        # By columns: from a list without rows datasets cannot make a dataset with columns.
        name: datasets.Dataset.from_dict({key: [row[key] for row in rows] for key in FEATURES}, features=FEATURES)
        for name, rows in splits.items()
    }
    datasets.disable_progress_bars()  # writing takes a second at most
    # datasets would write no file for a split without rows, and could not read that.
    shards = {name: None if rows else 1 for name, rows in splits.items()}
    datasets.DatasetDict(made).save_to_disk(folder, num_shards=shards)


def load_split(folder: Path, split: str) -> datasets.Dataset:
    """A split of a prepared dataset: "sft", "sft_validation", "rl" or "rl_validation"; it may be empty.

    Raises:
        UserError: the folder is no prepared dataset, or has no such split.
    """
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder}: no prepared dataset there; run `rest prepare` first")
    if not (folder / split).is_dir():
        known = ", ".join(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["splits"])
        raise UserError(f"{folder}: no split {split!r} (known: {known})")
    loaded = datasets.load_from_disk(folder / split)
    assert isinstance(loaded, datasets.Dataset)
    return loaded
