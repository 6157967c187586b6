"""What a node does around the stage's function; the function itself runs in tests/integration/test_nodes.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rest_core import storage
from rest_core.config import ModelConfig, RlConfig, StorageConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.operations import handoff
from rest_core.operations.catalogue_entry import Stage
from rest_core.operations.launch import worker
from rest_core.operations.launch.job import Job


def test_a_result_that_cannot_be_stored_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    policy = handoff.Pointer(source="owner/name")
    sections = {"model": ModelConfig(), "rl": RlConfig(), "tracking": TrackingConfig()}
    sections["storage"] = StorageConfig(location=str(tmp_path / "volume"))  # type: ignore[assignment]
    job = Job.of("rest-rl", sections, {"dataset": policy, "policy": policy}, "run")
    seen: dict[str, Any] = {}

    def train(*, out: Path, **keywords: Any) -> None:
        seen.update(keywords)
        out.mkdir(parents=True)
        (out / "metrics.json").touch()

    def refuse(file: Path, place: str) -> None:
        raise UserError(f"{place}: access denied")

    location = job.store()
    monkeypatch.setattr(Stage, "load", lambda _: train)
    monkeypatch.setattr(storage, "put_file", refuse)
    with pytest.raises(SystemExit) as ended:
        worker.run_on_node(location)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {job.result}/metrics.json: access denied\n"
    assert seen == {**sections, "dataset": "owner/name", "policy": "owner/name", "pipeline_run": "run"}
