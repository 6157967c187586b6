"""`rest sync`: where it sends, and what its exit code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import cli
from rest_core.config import TrackingConfig
from rest_core.operations.tracking import runs
from rest_core.operations.tracking.journal import JOURNAL, Journal


def journal_of(folder: Path, uri: str, *lines: str) -> None:
    records = Journal(folder)
    levels = runs._levels("p", "train", None, 1)
    records.append("begin", uri=uri, experiment="test", stage="train", join=None, levels=levels)
    with (records.path / JOURNAL).open("a") as stream:
        stream.writelines(f"{line}\n" for line in lines)
    records.append("end", status="FINISHED", error=None)
    records.close()


def sync(folder: Path, *options: str) -> int:
    try:
        cli.main(["sync", str(folder), *options])
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


def test_all_sent_is_success_and_refused_is_not(
    tracking: TrackingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--set", f"tracking.uri={tracking.uri}")
    journal_of(tmp_path / "good", str(tracking.uri))
    assert sync(tmp_path / "good", *here) == 0
    assert "2 records sent, 0 wait, 0 refused" in capsys.readouterr().out
    journal_of(tmp_path / "bad", str(tracking.uri), "{torn", "[]")
    for _ in range(2):
        assert sync(tmp_path / "bad", *here) == 2
        output = capsys.readouterr()
        assert "0 wait, 2 refused" in output.out
        assert output.err.splitlines()[-1].startswith(f"error: {tmp_path / 'bad'}: 2 records were refused")


def test_a_spool_of_another_address_names_both_and_what_to_do(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracking.uri))
    journal_of(tmp_path / "a", "http://127.0.0.1:9")
    assert sync(tmp_path / "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recorded for http://127.0.0.1:9" in line and str(tracking.uri) in line
    assert sync(tmp_path / "a", "--set", "tracking.uri=http://127.0.0.1:9/") == 2
    assert "2 records wait: Connection refused" in capsys.readouterr().err
    assert sync(tmp_path / "a", "--moved") == 0
