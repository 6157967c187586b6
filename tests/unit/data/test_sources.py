from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from rest_core.config import DataSource
from rest_core.data.published import Unreachable
from rest_core.data.sources import resolve
from rest_core.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"


def located(location: object, **settings: object) -> list[tuple[str, str, tuple[str, ...]]]:
    files = resolve(DataSource(location=str(location), **settings))
    return [(Path(file.name).name, file.format, file.use) for file in files]


def test_embedded_data():
    assert located("embedded:bfcl-executable") == [("embedded:bfcl-executable", "bfcl-executable", ("sft", "rl"))]


def test_file_folder_and_glob(tmp_path: Path):
    for name in ("toolace.json", "xlam.json"):
        shutil.copy(FIXTURES / name, tmp_path)
    (tmp_path / "README.md").write_text("notes")
    both = [("toolace.json", "toolace", ("sft", "rl")), ("xlam.json", "xlam", ("sft", "rl"))]
    assert located(tmp_path / "toolace.json") == both[:1]
    assert located(tmp_path) == both
    assert located(tmp_path / "*.json") == both
    assert located(tmp_path / "xlam.json", use=("rl",), format="xlam") == [("xlam.json", "xlam", ("rl",))]


def test_in_a_mixed_folder_each_file_serves_what_it_was_made_for(toolrl_folder: Path):
    sft, rl = ("rlla_sft.json", "toolrl-sft", ("sft",)), ("rlla_test.parquet", "toolrl-rl", ("rl",))
    assert located(toolrl_folder) == [sft, rl]
    assert located(toolrl_folder, use=("rl",)) == [rl]
    assert located(toolrl_folder / "rlla_test.parquet") == [(*rl[:2], ("sft", "rl"))]  # named by itself: both


def test_s3_object_prefix_and_glob(empty_s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    empty_s3.create_bucket(Bucket="data")
    empty_s3.upload_file(str(FIXTURES / "own.jsonl"), "data", "set/own.jsonl")
    empty_s3.put_object(Bucket="data", Key="set/README.md", Body=b"notes")
    for location in ("s3://data/set/own.jsonl", "s3://data/set", "s3://data/s*/*.jsonl"):
        assert located(location) == [("own.jsonl", "jsonl", ("sft", "rl"))]
    with pytest.raises(UserError, match=r"cannot read a \.md file"):
        located("s3://data/set/README.md")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("embedded:bfcl-executables", "did you mean 'embedded:bfcl-executable'"),
        ("data/gone.jsonl", "no such file"),
        ("./gone/folder", "no such file or folder"),
        ("/gone/*.jsonl", "no file matches"),
    ],
)
def test_what_is_not_there_is_named(location: str, message: str):
    with pytest.raises(UserError, match=message):
        resolve(DataSource(location=location))


def test_a_folder_without_data(tmp_path: Path):
    (tmp_path / "README.md").write_text("notes")
    with pytest.raises(UserError, match="no data file"):
        resolve(DataSource(location=str(tmp_path)))


def test_hub_snapshot_is_read_like_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[str] = []

    def snapshot(name: str, **settings: object) -> str:
        assert settings["repo_type"] == "dataset"
        asked.append(name)
        (tmp_path / "data.json").write_text(json.dumps(json.loads((FIXTURES / "toolace.json").read_text())))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert located("Team-ACE/ToolACE") == [("data.json", "toolace", ("sft", "rl"))]
    assert asked == ["Team-ACE/ToolACE"]


def test_a_hub_that_is_away_is_unreachable(monkeypatch: pytest.MonkeyPatch):
    def snapshot(name: str, **settings: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(Unreachable, match=r"owner/name: no such path here, and the hub cannot be reached"):
        resolve(DataSource(location="owner/name"))
