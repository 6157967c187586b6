"""What the model card is told of a trained model, from the manifests of its stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rest_core import manifest
from rest_core.errors import UserError
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


def _stage(folder: Path, stage: str, policy: str | None = None, source: str = "hub/base", **counts: str) -> str:
    """The manifest's hash of a folder that a stage has made of a policy."""
    folder.mkdir()
    (folder / "content").write_text(folder.name, encoding="utf-8")
    inputs = {} if policy is None else {"policy": policy}
    made = manifest.write(folder, stage=stage, config={"model": {"source": source}}, inputs=inputs, counts=counts)
    return str(made["sha256"])


def test_an_evaluation_of_other_weights_is_refused(tmp_path: Path) -> None:
    policy = _stage(tmp_path / "policy", "rest-rl", "0" * 64)
    other = _stage(tmp_path / "other", "rest-rl", "0" * 64)
    for name, evaluated in {"own": policy, "others": other, "base": "hub/base", "another": "hub/another"}.items():
        _stage(tmp_path / name, "evaluate-bfcl", evaluated)

    def require(own: str, base: str) -> None:
        registration._require_own(tmp_path / "policy", {"bfcl": tmp_path / own}, {"bfcl": tmp_path / base})

    require("own", "base")
    with pytest.raises(UserError, match="others: is an evaluation of other weights"):
        require("others", "base")
    with pytest.raises(UserError, match=r"another: is an evaluation of other weights \(hub/another\) than hub/base"):
        require("own", "another")


def test_an_evaluation_of_the_warm_up_belongs_to_the_policy_that_is_passed_on(tmp_path: Path) -> None:
    warmup = _stage(tmp_path / "warmup", "sft-warmup")
    _stage(tmp_path / "policy", "rest-rl", warmup, skipped="switched off")
    _stage(tmp_path / "report", "evaluate-bfcl-warmup", warmup)
    registration._require_own(tmp_path / "policy", {"bfcl": tmp_path / "report"}, {})


def test_a_base_model_that_a_stage_has_made_is_known_by_its_content(tmp_path: Path) -> None:
    base = _stage(tmp_path / "base", "rest-rl")
    policy = _stage(tmp_path / "policy", "rest-rl", base, source=str(tmp_path / "base"))
    _stage(tmp_path / "report", "evaluate-bfcl", policy)
    _stage(tmp_path / "of-base", "evaluate-bfcl", base)
    registration._require_own(tmp_path / "policy", {"bfcl": tmp_path / "report"}, {"bfcl": tmp_path / "of-base"})


def test_the_pipelines_run_opens_with_the_verdict_and_a_table(tmp_path: Path) -> None:
    for name, accuracy in (("base", 0.0), ("trained", 0.25)):
        _stage(tmp_path / name, "evaluate-bfcl", name)
        metrics = {"bfcl/call_accuracy": accuracy, "bfcl/low/call_accuracy": 0.0, "bfcl/high/call_accuracy": 0.5}
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    _stage(tmp_path / "skipped", "evaluate-bfcl", "x", skipped="off")
    evaluations = {name: {"bfcl": tmp_path / name} for name in ("base", "trained")}
    evaluations["champion"] = {"bfcl": tmp_path / "skipped"}
    text = registration._description("tools version 1 would become champion", evaluations)
    assert text.startswith(
        "**tools version 1 would become champion**\n\n| bfcl | call accuracy |\n|---|---|\n| base | 0.0%"
    )
    assert "| ResT | 25.0% (0.0%–50.0%) |" in text and "champion |" not in text
