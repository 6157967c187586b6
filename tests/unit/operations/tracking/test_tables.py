"""The tag by which MLflow's pages know tables: never longer than MLflow takes, and mended where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import artifacts, runs


def entry(step: int) -> dict[str, str]:
    return {"path": f"tables/completions_step_{step:06d}.json", "type": "table"}


def test_of_more_tables_than_the_tag_holds_the_first_and_the_newest_are_listed() -> None:
    value = "[]"
    for step in range(1220):
        value = artifacts.with_table(value, entry(step))
        assert len(value) <= artifacts.MAX_TAG_VALUE
    listed = json.loads(value)
    assert len(listed) > 100
    assert listed == [entry(0), *(entry(step) for step in range(1221 - len(listed), 1220))]


def test_a_table_is_listed_once() -> None:
    value = artifacts.with_table("[]", entry(1))
    assert artifacts.with_table(value, entry(1)) == value


@pytest.mark.parametrize("damaged", ['[{"path": "tables/a.json", "ty', "7", "", "null", '{"a": 1}'])
def test_a_tag_that_is_no_list_is_replaced(damaged: str) -> None:
    assert json.loads(artifacts.with_table(damaged, entry(1))) == [entry(1)]


def test_all_tables_are_stored_and_none_is_refused(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_TAG_VALUE", 200)  # of three tables
    with runs.stage_run(tracking, stage="train", pipeline_run="p", spool=tmp_path / "a", parameters={}) as run:
        for step in range(8):
            run.table([{"reward": 0.5}], f"completions_step_{step:06d}")
        assert run.wait(60) and run.run_id is not None
    tag = client.get_run(run.run_id).data.tags[artifacts.TABLES_TAG]
    assert len(tag) <= 200 and json.loads(tag)[-1] == entry(7)
    assert len(client.list_artifacts(run.run_id, "tables")) == 8
