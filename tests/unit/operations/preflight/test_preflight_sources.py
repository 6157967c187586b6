"""Models and data: there, not there, and not reachable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file

from rest_core.config import ApiBankConfig, Config, ModelConfig
from rest_core.data import published
from rest_core.errors import UserError
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight import sources


@pytest.fixture
def s3(empty_s3: Any) -> Any:
    empty_s3.create_bucket(Bucket="bucket")
    for key in ("model/config.json", "data/a.jsonl"):
        empty_s3.put_object(Bucket="bucket", Key=key, Body=b"{}")
    return empty_s3


@pytest.fixture
def hub(http_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub with one model, one dataset and one gated model."""

    def answer(path: str, _: dict[str, str]) -> tuple[Any, ...]:
        if "gated" in path:
            return 403, {}, {"X-Error-Code": "GatedRepo"}
        if path.endswith("/auth-check"):
            known = path.split("/")[-2] == "known"
            return (200, {}) if known else (404, {}, {"X-Error-Code": "RepoNotFound"})
        if path.endswith("/revision/old"):
            return 404, {}, {"X-Error-Code": "RevisionNotFound"}
        return 200, {"id": "owner/known", "sha": "0123456789abcdef", "modelId": "owner/known", "siblings": []}

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", http_server(answer))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_models_that_are_there(s3: None, tiny_checkpoint: Path) -> None:
    assert "is there" in sources.check_model(ModelConfig(source=str(tiny_checkpoint)))
    assert "is there" in sources.check_model(ModelConfig(source="s3://bucket/model"))
    assert "comes with the image" in sources.check_model(ModelConfig())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("embedded:smollm", "did you mean 'embedded:smollm2-135m-instruct'"),
        ("/no/such/model", "no config.json there"),
        ("s3://bucket/data", "no config.json there"),
        ("s3://bucket/nothing", "no config.json there"),
        ("s3://another/model", "no such bucket"),
        ("just-a-name", "neither a folder nor a hub id"),
    ],
)
def test_models_that_are_not(s3: None, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sources.check_model(ModelConfig(source=source))


def test_a_model_on_the_hub(hub: None) -> None:
    assert sources.check_model(ModelConfig(source="owner/known")).endswith("at commit 0123456789ab")
    assert "on the hub" in sources.check_data("owner/known")
    with pytest.raises(UserError, match="neither a path here nor a model on the hub"):
        sources.check_model(ModelConfig(source="owner/unknown"))
    with pytest.raises(UserError, match="neither a path here nor a dataset on the hub"):
        sources.check_data("owner/unknown")
    with pytest.raises(UserError, match="no revision 'old' of this model"):
        sources.check_model(ModelConfig(source="owner/known", revision="old"))
    with pytest.raises(UserError, match="this model asks for consent"):
        sources.check_model(ModelConfig(source="owner/gated"))


def test_a_hub_that_is_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"owner/known: no such path here, and the hub cannot be reached"):
        sources.check_model(ModelConfig(source="owner/known"))
    cached = tmp_path / "models--owner--known"
    (cached / "snapshots" / "c0ffee").mkdir(parents=True)
    (cached / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee")
    assert "is in the cache" in sources.check_model(ModelConfig(source="owner/known"))


def test_data_that_is_there(s3: None, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert "is there" in sources.check_data(str(tmp_path / "*.jsonl"))
    assert "is there" in sources.check_data("s3://bucket/data/*.jsonl")
    assert "comes with the image" in sources.check_data("embedded:bfcl-retired")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("embedded:bfcl", "no such embedded data"),
        ("published:toolrl/rlla", "nothing is published under this name"),
        ("s3://bucket/nothing/", "no object matches"),
        ("/no/such/*.jsonl", "no file matches"),
        ("/no/such/file.jsonl", "no such file or folder in a pod"),
    ],
)
def test_data_that_is_not(s3: None, location: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sources.check_data(location)


def test_published_files_are_asked_for_and_not_downloaded(
    http_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(published, "RAW_URL", "http://127.0.0.1:1")
    with pytest.raises(NotAllowed, match="its evaluations will be skipped"):
        sources.check_api_bank(ApiBankConfig())
    with pytest.raises(UserError, match="cannot be downloaded"):
        sources.check_data("published:toolrl/rlla_sft.json")
    name = "toolrl/rlla_sft.json"
    monkeypatch.setattr(published, "RAW_URL", http_server(lambda path, _: (200, "content of another size")))
    assert "can be downloaded" in sources.check_data(f"published:{name}")
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.setattr(published, "RAW_URL", http_server(lambda path, _: (404, "")))
    with pytest.raises(UserError, match="404"):
        sources.check_data(f"published:{name}")
    monkeypatch.setitem(published.FILES, name, ("there", published.git_blob_id(b"[1]")))
    cached = tmp_path / "rest-pipelines" / name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"[1]")
    assert "in the cache" in sources.check_data(f"published:{name}")


def test_a_run_that_does_not_fit_on_the_disk_is_refused(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    saved = load_file(tiny_checkpoint / "model.safetensors")
    weights = 2 * sum(tensor.numel() for tensor in saved.values())  # in bfloat16
    config = Config(model=ModelConfig(source=str(tiny_checkpoint)))
    free = 100_000_000 + 2 * weights  # of a warm-up and a training
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    sources.require_space(config, tmp_path / "runs" / "new")
    with pytest.raises(UserError, match=rf"^{tmp_path}: 0.1 GB of disk are free, and the run leaves 0.1 GB there;"):
        sources.require_space(config, tmp_path / "runs" / "new", trainings=2)
    cold = config.model_copy(update={"sft": config.sft.model_copy(update={"enabled": False})})
    sources.require_space(cold, tmp_path / "runs" / "new", trainings=2)


def test_of_a_model_on_the_hub_no_size_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = Config(model=ModelConfig(source="Qwen/Qwen3-1.7B"))
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda place: SimpleNamespace(free=100_000_000))
    sources.require_space(config, tmp_path)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda place: SimpleNamespace(free=99_000_000))
    with pytest.raises(UserError, match="rest clean"):
        sources.require_space(config, tmp_path)
