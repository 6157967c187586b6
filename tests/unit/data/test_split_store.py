"""The prepared dataset on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from rest_core.data import store
from rest_core.errors import UserError
from rest_core.records import Message, Sample, Tool


def test_splits_come_back_as_they_were_and_may_be_empty(tmp_path: Path) -> None:
    tool = Tool("add", "Adds.", {"type": "object"})
    sample = Sample("test/1", "test", (Message("user", "1 + 1?"),), (tool,), "2")
    row = store.to_row(sample, prompt_tokens=3, reference_tokens=1)
    store.save({"sft": [row], "sft_validation": [], "rl": [row, row], "rl_validation": []}, tmp_path)
    assert [store.to_sample(found) for found in store.load_split(tmp_path, "rl")] == [sample, sample]
    for split, rows in {"sft": 1, "sft_validation": 0, "rl": 2, "rl_validation": 0}.items():
        loaded = store.load_split(tmp_path, split)
        assert len(loaded) == rows and loaded.features == store.FEATURES


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared dataset there"):
        store.load_split(tmp_path, "sft")
    store.save({"sft": []}, tmp_path)
    with pytest.raises(UserError, match=r"no split 'rl' \(known: sft\)"):
        store.load_split(tmp_path, "rl")
