"""What a local run hands to containers; the containers themselves run in tests/integration/test_containers.py."""

from __future__ import annotations

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
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def _config(**values: Any) -> Config:
    return config.load("tiny", tuple(f"{name.replace('__', '.')}={value}" for name, value in values.items()))


def test_every_stage_has_its_image() -> None:
    images = containers.stage_images()
    assert set(images) == set(STAGES)
    assert images["rest-rl"] == image("train")
    assert images["evaluate-bfcl-base"] == images["prepare-data"] == image("evaluate")
    assert set(images.values()) == {image("base"), image("train"), image("evaluate")}


def test_credentials_go_along_and_paths_of_this_machine_do_not(tmp_path: Path) -> None:
    given = {"HF_TOKEN": "t", "AWS_ENDPOINT_URL": "http://localhost:9000", "AWS_CA_BUNDLE": "/here/ca", "PATH": "/bin"}
    assert containers.environment(given) == {
        "HF_TOKEN": "t",
        "AWS_ENDPOINT_URL": "http://localhost:9000",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "cache" / "huggingface" / "hub"),
    }


def test_the_token_of_a_login_goes_along_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("hf_login\n", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert containers.environment({})["HF_TOKEN"] == "hf_login"
    assert containers.environment({"HF_TOKEN": "t"})["HF_TOKEN"] == "t"


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


def test_without_an_engine_a_run_ends_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(UserError, match=r"^no Docker engine answers .*; start it, or leave out --runner docker$"):
        run_local(_config(), folder=tmp_path / "run", console=Console(), runner="docker")
    assert list(tmp_path.iterdir()) == []
