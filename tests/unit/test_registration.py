"""What the model card is told of a trained model, from the manifests of its stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rest_core import manifest
from rest_core.operations.pods import IMAGE_VARIABLE
from rest_core.stages import registration

IMAGE = "registry.example/rest-train@sha256:" + "1" * 64


@pytest.mark.parametrize("image", [IMAGE, None])
def test_a_model_card_names_the_image_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str | None
) -> None:
    folders = {}
    for stage in ("prepare-data", "rest-rl", "evaluate-bfcl"):
        monkeypatch.delenv(IMAGE_VARIABLE, raising=False)
        if stage == "rest-rl" and image is not None:
            monkeypatch.setenv(IMAGE_VARIABLE, image)
        folder = folders[stage] = tmp_path / stage
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps({"bfcl/call_accuracy": 0.5}), encoding="utf-8")
        config = {"data": {"sources": [{"location": "x"}]}, "model": {"source": "m", "prompt_style": "toolrl"}}
        manifest.write(folder, stage=stage, config=config, inputs={}, counts={"measured_on": "live"})
    facts = registration._facts("run", folders["prepare-data"], folders["rest-rl"], {"bfcl": folders["evaluate-bfcl"]})
    assert facts.image == image


@pytest.mark.parametrize(("counts", "measured"), [({}, "trained"), ({"skipped": "switched off"}, "warmup")])
def test_the_reports_are_those_on_the_policy_that_is_registered(
    tmp_path: Path, counts: dict[str, str], measured: str
) -> None:
    manifest.write(tmp_path, stage="rest-rl", config={}, inputs={}, counts=counts)
    evaluations = {name: {"bfcl": Path(name)} for name in ("warmup", "trained")}
    assert registration._reports_on(tmp_path, evaluations) == {"bfcl": Path(measured)}
    assert registration._reports_on(tmp_path, {"trained": {"bfcl": Path("x")}}) == {"bfcl": Path("x")}
