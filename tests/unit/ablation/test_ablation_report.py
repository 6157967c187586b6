from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rest_core.ablation.ablation_report import AblationReport
from rest_core.ablation.collect import collect
from rest_core.ablation.settings import AblationConfig

Evaluation = Callable[..., Path]
FIGURES = {"uniform": (0.50, 0.54, 0.52), "paper": (0.55, 0.60, 0.59)}


@pytest.fixture
def report(evaluation: Evaluation) -> AblationReport:
    folders = [
        evaluation(name, seed, {"bfcl/call_accuracy": value, "bfcl/count/live": 8}, reward=value * 2)
        for name, values in FIGURES.items()
        for seed, value in enumerate(values)
    ]
    return AblationReport("Ablation <of> two", AblationConfig(), collect(folders))


def test_the_files_say_the_same(report: AblationReport, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    written = report.write(out)
    assert {path.name for path in written} == {"report.json", "trials.csv", "comparison.png", "report.html"}
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert list(found["comparisons"]) == ["bfcl/call_accuracy", "reward/after"]
    overall = found["comparisons"]["bfcl/call_accuracy"]
    assert overall["schemes"]["paper"]["mean"] == pytest.approx(0.58)
    assert overall["differences"]["paper"]["mean"] == pytest.approx(0.06)
    rows = list(csv.DictReader((out / "trials.csv").open(encoding="utf-8")))
    assert [(row["scheme"], row["seed"], row["bfcl/call_accuracy"]) for row in rows] == [
        (name, str(seed), str(value)) for name in ("paper", "uniform") for seed, value in enumerate(FIGURES[name])
    ]
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_stands_alone_and_escapes_what_it_shows(report: AblationReport, tmp_path: Path) -> None:
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert "Ablation &lt;of&gt; two" in page
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "58.0%" in page
    assert "+6.0 pp" in page
    assert "0: 55.0%, 1: 60.0%, 2: 59.0%" in page


def test_the_summary_for_mlflow_is_about_the_deciding_figure(report: AblationReport) -> None:
    text = report.markdown()
    assert "| scheme | seeds | bfcl/call_accuracy: mean |" in text
    assert re.search(r"^\| uniform \| 3 \| 52\.0% \| 47\.0% to 57\.0% \|  \|  \|$", text, re.MULTILINE)
    assert re.search(
        r"^\| paper \| 3 \| 58\.0% \| .* \| \+6\.0 pp \| \+3\.\d pp to \+\d\.\d pp \|$", text, re.MULTILINE
    )
    assert "reward/after" not in text


def test_figures_for_the_tracker(report: AblationReport) -> None:
    assert report.metrics["ablation/bfcl/call_accuracy/uniform"] == pytest.approx(0.52)
    low, high = (report.metrics[f"ablation/bfcl/call_accuracy/paper - uniform/{end}"] for end in ("low", "high"))
    assert low < report.metrics["ablation/bfcl/call_accuracy/paper - uniform"] < high


def test_what_weakens_the_figures_is_said_first(evaluation: Evaluation, tmp_path: Path) -> None:
    folders = [
        evaluation("uniform", 0, {"bfcl/live": 0.5, "bfcl/subset": 1.0}),
        evaluation("paper", 0, {"bfcl/live": 0.6, "bfcl/subset": 1.0}),
        evaluation("paper", 1, {"bfcl/live": 0.7, "bfcl/subset": 1.0}),
        evaluation("paper", 1, {}, stage="evaluate-api-bank", skipped="no network"),
    ]
    report = AblationReport("t", AblationConfig(), collect(folders))
    report.write(tmp_path)
    notes = "\n".join(report.notes)
    assert "bfcl/call_accuracy was not measured; measured were: bfcl/live" in notes
    assert "different seeds (paper: 0, 1; uniform: 0)" in notes
    assert "one seed has no interval" in notes
    assert "part of the questions only: bfcl" in notes
    assert "Skipped: evaluate-api-bank: no network" in notes
    assert "| paper | 2 | 65.0% |" in report.markdown()  # without the deciding figure all are shown


def test_a_training_that_went_astray_is_named_and_stops_no_report(evaluation: Evaluation, tmp_path: Path) -> None:
    values = {("uniform", 0): 1.0, ("uniform", 1): 2.0, ("paper", 0): 2.0, ("paper", 1): math.nan}
    folders = [evaluation(name, seed, {"bfcl/live": 0.5}, reward=v) for (name, seed), v in values.items()]
    report = AblationReport("t", AblationConfig(), collect(folders))
    report.write(tmp_path)
    assert "No finite number, and left out: reward/after of paper · seed 1 (nan)." in report.notes
    assert "NaN" not in (tmp_path / "report.json").read_text(encoding="utf-8")
    assert report.comparisons["reward/after"].differences["paper"].values == {0: 1.0}


def test_nothing_that_is_shown_was_measured(evaluation: Evaluation, tmp_path: Path) -> None:
    settings = AblationConfig(metric="a", metrics=("b",))
    report = AblationReport("t", settings, collect([evaluation("paper", 0, {"bfcl/live": 0.5})]))
    report.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["comparisons"] == {}
    assert "No trial has the baseline uniform" in " ".join(report.notes)


def test_notes_name_trials_without_updates_or_figures(evaluation: Evaluation) -> None:
    folders = [
        evaluation("uniform", 0, {"bfcl/call_accuracy": 0.5, "rl/updates": 0.0}),
        evaluation("paper", 0, {"bfcl/call_accuracy": 0.5, "rl/updates": 3.0}),
        evaluation("strong", 0, {"bfcl/live": 0.5, "rl/updates": 0.0}),
    ]
    notes = AblationReport("t", AblationConfig(), collect(folders)).notes
    assert "Without the deciding figure: strong · seed 0." in notes
    assert any(
        note.startswith("Not one update, ") and "signal: strong · seed 0, uniform · seed 0." in note for note in notes
    )


def test_what_schemes_replace_besides_is_shown(evaluation: Evaluation, tmp_path: Path) -> None:
    changes = {"advantage_std": "none", "loss": {"aggregation": "constant_length"}, "reward": "strict"}
    folders = [evaluation("uniform", 0, {"bfcl/call_accuracy": 0.5}), evaluation("paper", 0, {}, scheme=changes)]
    report = AblationReport("t", AblationConfig(), collect(folders))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "floor 1.0, curriculum True, rl.advantage_std none, rl.loss.aggregation constant_length" in page
    assert json.loads((tmp_path / "report.json").read_text())["trials"][0]["rl"] == changes
    note = "The schemes are measured by other rewards: reward/after does not compare them."
    assert note in report.notes
    for steps, reward, wanted in ((70, "rest", True), (70, "toolrl", False)):  # the ranges of rest move with the steps
        folders = [
            evaluation("uniform", 0, {}, rl={"reward": reward}),
            evaluation("paper", 0, {}, rl={"reward": reward}, scheme={"steps": steps}),
        ]
        assert (note in AblationReport("t", AblationConfig(), collect(folders)).notes) == wanted
