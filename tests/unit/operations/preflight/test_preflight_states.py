"""What lies at the places that a run reads: another state when it has changed there, the same as long as it has not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from rest_core.config import Config, load
from rest_core.data import published
from rest_core.operations.preflight import states
from rest_core.operations.preflight.surroundings import Mount, Surroundings

NOTHING = Surroundings()


def reading(*settings: str) -> Config:
    return load("tiny", ("api_bank.enabled=false", *settings))


def test_an_s3_object_under_the_same_key(empty_s3: Any) -> None:
    empty_s3.create_bucket(Bucket="bucket1")
    empty_s3.put_object(Bucket="bucket1", Key="train.jsonl", Body=b"{}")
    config = reading("data.sources=[{location: 's3://bucket1/train.jsonl'}]")
    before = states.find(config, NOTHING)
    assert states.find(config, NOTHING) == before
    empty_s3.put_object(Bucket="bucket1", Key="train.jsonl", Body=b"[]")
    after = states.find(config, NOTHING)
    assert after["data"] != before["data"]
    assert (after["model"], after["api_bank"]) == (before["model"], before["api_bank"])
    for pattern in ("s3://bucket1/*.jsonl", "s3://bucket1", "s3://bucket1/"):
        of_all = reading(f"data.sources=[{{location: '{pattern}'}}]")
        seen = states.find(of_all, NOTHING)
        assert states.find(of_all, NOTHING) == seen
        empty_s3.put_object(Bucket="bucket1", Key=f"more-{len(pattern)}.jsonl", Body=b"{}")
        assert states.find(of_all, NOTHING)["data"] != seen["data"]


@pytest.mark.parametrize("find", [lambda config: states.find(config, NOTHING), states.of_this_machine])
def test_files_of_a_folder(find: Callable[[Config], dict[str, str]], tmp_path: Path) -> None:
    folder = tmp_path / "api-bank"
    (folder / "inner").mkdir(parents=True)
    file = folder / "inner" / "level-1.json"
    file.write_text("[1]")
    config = reading(f"api_bank.location={folder}", "api_bank.enabled=true")
    before = find(config)
    assert find(config) == before
    os.utime(file, ns=(1, 1))  # the same size
    after = find(config)
    assert after["api_bank"] != before["api_bank"]
    assert after["data"] == before["data"]


def test_a_hub_id_is_at_a_commit(
    http_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commits = ["c0ffee", "c0ffee", "decade"]
    answer = {"id": "owner/data", "siblings": []}
    endpoint = http_server(lambda path, _: (200, {**answer, "sha": commits[0] if "datasets" in path else "0"}))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    config = reading("data.sources=[{location: owner/data}]", "model.source=owner/model")
    found = []
    while commits:
        found.append(states.find(config, NOTHING))
        commits.pop(0)
    assert found[0] == found[1]
    assert found[2]["data"] != found[0]["data"] and found[2]["model"] == found[0]["model"]


def test_what_cannot_be_looked_at_is_read_each_time(
    empty_s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_volume = Surroundings(mounts=(Mount(claim="work", path=str(tmp_path)),))
    (tmp_path / "a.jsonl").write_text("{}")
    monkeypatch.setattr(published, "RAW_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for location, around in (
        (str(tmp_path / "a.jsonl"), on_volume),
        ("s3://no-such-bucket/a.jsonl", NOTHING),
        ("published:toolrl/rlla_sft.json", NOTHING),  # skipped, or read from a cache of the pod
    ):
        config = reading(f"data.sources=[{{location: '{location}'}}]")
        first, second = states.find(config, around), states.find(config, around)
        assert first["data"] != second["data"], location
        assert first["model"] == second["model"]  # comes with the image


def test_a_run_that_is_resumed_on_this_machine_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    config = reading("data.sources=[{location: owner/data}]", "model.source=owner/model")
    assert states.of_this_machine(config) == states.of_this_machine(config)
