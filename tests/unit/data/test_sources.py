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
from rest_core.styles.create import built_in_style

FIXTURES = Path(__file__).parent / "fixtures"


def located(location: object, **settings: object) -> list[tuple[str, str, tuple[str, ...]]]:
    files = resolve(DataSource(location=str(location), **settings))
    return [(Path(file.name).name, file.format, file.use) for file in files]


def test_embedded_data():
    assert located("embedded:bfcl-retired") == [("embedded:bfcl-retired", "bfcl-retired", ("sft", "rl"))]


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
        ("embedded:bfcl-retireds", "did you mean 'embedded:bfcl-retired'"),
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


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["train.jsonl", "test.jsonl", "validation.jsonl"], ["train.jsonl"]),
        (["calls.jsonl", "my_eval.jsonl", "dev/calls.jsonl"], ["calls.jsonl"]),
        (["data/train-0-of-2.jsonl", "data/train-1-of-2.jsonl", "data/test-0.jsonl"],
         ["train-0-of-2.jsonl", "train-1-of-2.jsonl"]),
        (["train_test.jsonl", "latest.jsonl", "contest.jsonl"], ["contest.jsonl", "latest.jsonl", "train_test.jsonl"]),
        (["test.jsonl", "validation.jsonl"], ["test.jsonl", "validation.jsonl"]),  # nothing else to train on
        (["a.jsonl", ".hidden/a.jsonl", ".a.jsonl", "__MACOSX/a.jsonl", "dataset_infos.json"], ["a.jsonl"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["folder", "glob", "hub", "s3"])
def test_what_is_training_data_by_its_name(
    names: list[str], read: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
):
    root = tmp_path / "here"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIXTURES / "own.jsonl", root / name)
    location: object = {"folder": root, "glob": root / "**" / "*.json*", "hub": "owner/name", "s3": "s3://data/set"}[
        place
    ]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **settings: str(root))
    if place == "s3":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        s3 = request.getfixturevalue("empty_s3")
        s3.create_bucket(Bucket="data")
        for name in names:
            s3.upload_file(str(root / name), "data", f"set/{name}")
    assert sorted(name for name, _, _ in located(location)) == read


def test_what_is_left_out_is_said_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(FIXTURES / "own.jsonl", tmp_path / name)
    (tmp_path / "other.jsonl").write_text('{"text": "x"}\n')
    located(tmp_path)
    unknown, split = caplog.messages
    assert unknown.startswith(f"left out: {tmp_path / 'other.jsonl'}: line 1: fields text belong to no known format")
    assert split == (f"{tmp_path}: left out as test or validation data: test.jsonl; to train on a file, name it itself")
    caplog.clear()
    assert located(tmp_path / "test.jsonl") == [("test.jsonl", "jsonl", ("sft", "rl"))]
    assert not caplog.messages


def test_a_folder_without_a_known_format_names_the_first_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "x", "input": "y", "output": "z"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: line 1: .*they look like Alpaca's"):
        located(tmp_path)


def test_a_named_format_is_every_records(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"conversations": []}\n')
    (file,) = resolve(DataSource(location=str(tmp_path), format="jsonl"))
    (rejected,) = file.read(built_in_style("compact"))
    assert str(rejected) == f"{tmp_path / 'a.jsonl'}: line 1: field 'messages': field missing"
