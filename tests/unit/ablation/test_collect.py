from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from rest_core import manifest
from rest_core.ablation.collect import collect
from rest_core.errors import UserError

Evaluation = Callable[..., Path]


def test_evaluations_of_a_trial_come_together_in_any_order(evaluation: Evaluation) -> None:
    folders = [
        evaluation("paper", 1, {"bfcl/call_accuracy": 0.5}, reward=2.0),
        evaluation("uniform", 0, {"api_bank/overall_soft": 0.1}, stage="evaluate-api-bank", measured_on="6 items"),
        evaluation(
            "paper", 1, {"api_bank/overall_soft": 0.2}, stage="evaluate-api-bank", measured_on="6 items", reward=2.0
        ),
        evaluation("uniform", 0, {"bfcl/call_accuracy": 0.25}),
    ]
    for order in (folders, folders[::-1]):
        first, second = collect(order)
        assert (first.trial.label, second.trial.label) == ("paper · seed 1", "uniform · seed 0")
        assert first.metrics == {"bfcl/call_accuracy": 0.5, "api_bank/overall_soft": 0.2, "reward/after": 2.0}
        assert second.measured_on == {"evaluate-bfcl": "8 items abc", "evaluate-api-bank": "6 items"}


def test_a_skipped_evaluation_has_no_figures_but_the_trainings(evaluation: Evaluation) -> None:
    (one,) = collect([evaluation("paper", 0, {}, stage="evaluate-api-bank", skipped="no network")])
    assert one.skipped == {"evaluate-api-bank": "no network"}
    assert one.metrics == {"reward/after": 1.0}


def test_the_same_evaluation_twice_is_refused(evaluation: Evaluation) -> None:
    folder = evaluation("paper", 0, {"bfcl/call_accuracy": 0.5})
    with pytest.raises(UserError, match="evaluate-bfcl of trial paper · seed 0 is there twice"):
        collect([folder, folder])


def test_two_policies_of_one_trial_are_refused(evaluation: Evaluation) -> None:
    first = evaluation("paper", 0, {})
    other = evaluation("paper", 0, {}, stage="evaluate-api-bank", policy="trained again")
    with pytest.raises(UserError, match=r"other policies of trial paper · seed 0"):
        collect([first, other])


def test_other_questions_do_not_compare(evaluation: Evaluation) -> None:
    with pytest.raises(UserError, match=r"measured on 9 items xyz, but .* on 8 items abc"):
        collect([evaluation("paper", 0, {}), evaluation("uniform", 0, {}, measured_on="9 items xyz")])


@pytest.mark.parametrize(
    ("other", "message"),
    [({"rl": {"steps": 3}}, r"rl\.steps is 3, but 105"), ({"data": "d1"}, r"inputs\.dataset is 'd1', but 'd0'")],
)
def test_trials_that_differ_in_more_than_weights_and_seed_do_not_compare(
    evaluation: Evaluation, other: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        collect([evaluation("paper", 0, {}), evaluation("uniform", 0, {}, **other)])


def test_trials_may_differ_in_what_their_schemes_replace(evaluation: Evaluation) -> None:
    folders = [
        evaluation("uniform", 0, {}),
        evaluation("paper", 0, {}, scheme={"advantage_std": "none", "loss": {"clip_high": 0.28}, "lora": {"r": 4}}),
        evaluation("strong", 0, {}, scheme={"loss": {"clip_high": 0.3}}),
    ]
    for order in (folders, folders[::-1]):
        assert len(collect(order)) == 3


@pytest.mark.parametrize(
    ("rl", "message"),
    [
        ({"loss": {"clip_low": 0.1}}, r"rl\.loss\.clip_low is 0\.[12], but 0\.[12]"),
        ({"lora": {"r": 8}}, r"rl\.lora\.alpha is (32|None), but"),
        ({"advantage_std": "batch"}, r"rl\.advantage_std is "),  # which its own scheme does not replace
    ],
)
def test_what_a_scheme_does_not_replace_must_be_the_same(
    evaluation: Evaluation, rl: dict[str, object], message: str
) -> None:
    folders = [
        evaluation("paper", 0, {}, scheme={"advantage_std": "none", "loss": {"clip_high": 0.28}}),
        evaluation("uniform", 0, {}),
        evaluation("strong", 0, {}, rl=rl),
    ]
    for order in (folders, folders[::-1]):
        with pytest.raises(UserError, match=message):
            collect(order)


def test_other_settings_under_one_name_are_refused(evaluation: Evaluation) -> None:
    folders = [
        evaluation("paper", seed, {}, scheme={"advantage_std": std}) for seed, std in enumerate(("none", "batch"))
    ]
    with pytest.raises(UserError, match="other weights or settings under one name"):
        collect(folders)


def test_two_pipeline_runs_compare_though_their_checkpoints_went_elsewhere(evaluation: Evaluation) -> None:
    folders = [evaluation("paper", seed, {}, rl={"mirror": f"s3://b/runs/{seed}/checkpoints"}) for seed in (0, 1)]
    assert len(collect(folders)) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_finite_number_is_no_figure(evaluation: Evaluation, value: float) -> None:
    (one,) = collect([evaluation("paper", 0, {"bfcl/call_accuracy": value, "bfcl/live": 0.5}, reward=value)])
    assert one.metrics == {"bfcl/live": 0.5}
    assert one.not_finite.keys() == {"bfcl/call_accuracy", "reward/after"}


def test_other_weights_under_one_name_are_refused(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluation("paper", 0, {})
    monkeypatch.setitem(evaluation.__globals__["SCHEMES"], "paper", evaluation.__globals__["SCHEMES"]["strong"])
    with pytest.raises(UserError, match="other weights or settings under one name"):
        collect([first, evaluation("paper", 1, {})])


def test_an_evaluation_of_no_trial_is_refused(tmp_path: Path) -> None:
    manifest.write(tmp_path, stage="evaluate-bfcl", config={}, inputs={}, counts={})
    with pytest.raises(UserError, match="no evaluation of a trial"):
        collect([tmp_path])
    with pytest.raises(UserError, match="no evaluations"):
        collect([])
