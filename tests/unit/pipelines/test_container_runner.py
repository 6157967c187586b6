"""What a local run hands to containers; the containers themselves run in tests/integration/test_containers.py."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compiled import STAGES
from rich.console import Console

from components.images import image
from pipelines import containers
from pipelines.local import StageFailed, explain, run_local
from pipelines.monitor import StageRun
from pipelines.run_log import KFP_LOG_FILE
from rest_core import config
from rest_core.config import Config
from rest_core.errors import UserError


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def _config(**values: Any) -> Config:
    return config.load("tiny", tuple(f"{name.replace('__', '.')}={value}" for name, value in values.items()))


def test_every_stage_has_its_image() -> None:
    images = containers.stage_images()
    assert set(images) == set(STAGES)
    assert images["rest-rl"] == image("train")
    assert images["evaluate-bfcl-base"] == images["prepare-data"] == image("evaluate")
    assert set(images.values()) == {image("base"), image("train"), image("evaluate")}


def test_containers_see_the_files_that_the_configuration_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "api-bank", "data/deep"):
        (tmp_path / name).mkdir(parents=True)
    given = _config(
        model__source="./model",
        api_bank__location=tmp_path / "api-bank",
        data__sources=f"[{{location: '{tmp_path}/data/*/x[0-9].jsonl'}}, {{location: owner/name}}]",
        tracking__uri=f"sqlite:///{tmp_path}/records/mlflow.db",
        registry__destination=tmp_path / "models" / "new",
        rl__mirror="s3://bucket/mirror",
    )
    read, written = containers.paths(given)
    assert read == [tmp_path / "api-bank", tmp_path / "data", tmp_path / "model"]
    caches = [tmp_path / "cache" / "huggingface", tmp_path / "cache" / "rest-pipelines"]
    assert written == [*caches, tmp_path / "models", tmp_path / "records"]
    assert all(folder.is_dir() for folder in written)
    assert not (tmp_path / "models" / "new").exists()


def test_a_server_needs_no_folder_and_a_store_is_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caches = [tmp_path / "cache" / "huggingface", tmp_path / "cache" / "rest-pipelines"]
    assert containers.paths(_config(tracking__uri="http://127.0.0.1:5000")) == ([], caches)
    assert containers.paths(_config()) == ([], [*caches, tmp_path / "mlruns"])


def test_credentials_go_along_and_paths_of_this_machine_do_not(tmp_path: Path) -> None:
    given = {"HF_TOKEN": "t", "AWS_ENDPOINT_URL": "http://localhost:9000", "AWS_CA_BUNDLE": "/here/ca", "PATH": "/bin"}
    assert containers.environment(given) == {
        "HF_TOKEN": "t",
        "AWS_ENDPOINT_URL": "http://localhost:9000",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "cache" / "huggingface"),
    }


def test_a_folder_of_roots_is_opened_to_its_group_and_no_further(tmp_path: Path) -> None:
    folder, file, elsewhere = tmp_path / "mlruns", tmp_path / "mlruns" / "mlflow.db", tmp_path / "elsewhere"
    folder.mkdir(mode=0o700)
    for path in (file, elsewhere):
        path.touch(mode=0o600)
    (folder / "link").symlink_to(elsewhere)
    containers.open_to_group(folder)
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, file, elsewhere)] == ["0o770", "0o660", "0o600"]


def test_of_stages_that_failed_one_after_another_the_first_is_told(tmp_path: Path) -> None:
    stages = {name: StageRun(name, tmp_path / name) for name in ("prepare-data", "sft-warmup", "rest-rl")}
    stages["prepare-data"].done = True
    (tmp_path / "rest-rl" / "trained").mkdir(parents=True)
    (tmp_path / "rest-rl" / "trained" / "error.json").write_text('{"message": "policy: no manifest.json"}')
    log = "".join(f"12:00 - INFO - Executing task \x1b[96m'{name}'\x1b[0m\n    said by {name}\n" for name in stages)
    (tmp_path / KFP_LOG_FILE).write_text(log, encoding="utf-8")
    monitor: Any = SimpleNamespace(stages=stages)
    with pytest.raises(StageFailed) as told:
        explain(tmp_path, monitor, RuntimeError("kfp"))
    assert "said by sft-warmup" in str(told.value)
    assert "said by prepare-data" not in str(told.value) and "said by rest-rl" not in str(told.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root's containers have another user")
def test_what_root_keeps_for_itself_is_told_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    file.touch(mode=0o600)
    for path in (tmp_path, file):  # pytest's folders are for their owner alone
        with pytest.raises(UserError, match=r"root alone may read it.*chmod -R g\+rX"):
            containers.require_readable(path)
    tmp_path.chmod(0o750)
    file.chmod(0o640)
    for path in (tmp_path, file):
        containers.require_readable(path)


def test_without_an_engine_a_run_ends_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(UserError, match=r"^no Docker engine answers .*; start it, or leave out --runner docker$"):
        run_local(_config(), folder=tmp_path / "run", console=Console(), runner="docker")
    assert list(tmp_path.iterdir()) == []
