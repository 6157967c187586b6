"""What a node does around the stage's command; the command itself runs in tests/integration/test_nodes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import cli
from rest_core import storage
from rest_core.config import ModelConfig, RlConfig, StorageConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.operations import handoff
from rest_core.operations.launch import worker
from rest_core.operations.launch.job import Job


def test_a_result_that_cannot_be_stored_is_told_as_an_error_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    policy = handoff.Pointer(source="owner/name")
    job = Job(
        model=ModelConfig(),
        rl=RlConfig(),
        tracking=TrackingConfig(),
        storage=StorageConfig(location=str(tmp_path / "volume")),
        pipeline_run="run",
        dataset=policy,
        policy=policy,
    )
    location = job.write()

    def train(arguments: list[str]) -> None:
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir()
        (out / "metrics.json").touch()

    def refuse(file: Path, place: str) -> None:
        raise UserError(f"{place}: access denied")

    monkeypatch.setattr(cli, "main", train)
    monkeypatch.setattr(storage, "put_file", refuse)
    with pytest.raises(SystemExit) as ended:
        worker.run(location)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {job.result}/metrics.json: access denied\n"
