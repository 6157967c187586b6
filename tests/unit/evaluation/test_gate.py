"""The gate before `champion`, on evaluations of a benchmark of two categories by policies that answer by script."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from counting_benchmark import Scripted, ids
from rich.console import Console

from rest_core.config import GateConfig
from rest_core.errors import UserError
from rest_core.evaluation.gate import Rival, judge

GATE = GateConfig(metric="counting/both", min_questions=30, min_well_formed=0.0)
NEVER_CALLS = Scripted("base", [])
WEAK = Scripted("weak", ids("easy", *range(4)))
STRONG = Scripted("strong", [*ids("easy", *range(18)), *ids("hard", *range(7))])
ONE_SIDED = Scripted("one-sided", [*ids("easy", *range(20))])


@pytest.fixture
def verdict(evaluated):
    """verdict(candidate, champion, **gate): of the gate, with the policy that never calls as base model."""

    def made(candidate, champion=None, **settings):
        rival = None if champion is None else Rival("champion", evaluated(champion))
        gate = GATE.model_copy(update=settings)
        return judge(gate, evaluated(candidate), champion=rival, base=Rival("base model", evaluated(NEVER_CALLS)))

    return made


def test_a_clearly_better_policy_passes(verdict):
    found = verdict(STRONG, WEAK)
    assert found.passed and found.reason == ""
    assert [one.name for one in found.conditions] == [
        "questions behind both",
        "well-formed responses",
        "both against base model",
        "both against champion",
        "categories against champion",
    ]
    assert re.fullmatch(r"\+70\.0 points \(\+\d\d\.\d to \+\d\d\.\d\)", found.conditions[3].found)
    console = Console(width=120, record=True)
    console.print(found.table())
    text = console.export_text()
    assert text.count("✓") == 5 and "✗" not in text
    assert json.loads(json.dumps(found.to_json()))[0]["found"] == "30"


@pytest.mark.parametrize("candidate", [STRONG, WEAK, NEVER_CALLS])
def test_a_tie_does_not_pass(verdict, candidate):
    found = verdict(candidate, candidate)
    assert not found.passed
    assert "both against champion: 0.0 points" in found.reason


def test_a_worse_policy_does_not_pass_within_any_small_margin(verdict):
    assert "both against champion: -70.0 points" in verdict(WEAK, STRONG, margin=0.1).reason


def test_a_margin_lets_an_equal_policy_pass(verdict):
    assert not verdict(STRONG, STRONG, margin=0.01).passed
    assert verdict(STRONG, STRONG, margin=0.3).passed


def test_a_policy_that_never_calls_beats_nobody(verdict):
    assert "both against base model: 0.0 points" in verdict(NEVER_CALLS).reason


def test_without_a_champion_the_base_model_must_be_beaten_whatever_the_gate_says(verdict):
    assert verdict(STRONG).passed
    assert not verdict(NEVER_CALLS, better_than_base=False).passed
    assert [one.name for one in verdict(STRONG, WEAK, better_than_base=False).conditions][2] == "both against champion"


def test_a_category_that_is_clearly_lost_stops_a_better_average(evaluated, verdict):
    lopsided = Scripted("lopsided", [*ids("hard", *range(10)), *ids("easy", 18, 19)])
    champion = Scripted("even", ids("easy", *range(18)))
    found = verdict(lopsided, champion, margin=0.1)
    assert re.match(r"categories against champion: easy -80\.0 points \(", found.reason)
    assert not verdict(lopsided, champion, margin=0.1, max_category_loss=0.9).reason


def test_a_category_that_is_lower_by_chance_stops_nothing(verdict):
    better = Scripted("better", [*ids("easy", *range(20)), *ids("hard", *range(1, 6))])
    assert verdict(better, Scripted("before", [*ids("easy", 0, 1), *ids("hard", *range(6))])).passed


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_questions": 31}, "questions behind both: 30 (wanted: at least 31)"),
        ({"min_well_formed": 0.99}, "well-formed responses: "),
    ],
)
def test_conditions_on_the_policy_alone(verdict, settings, reason):
    assert verdict(STRONG, WEAK, **settings).reason.startswith(reason)


def test_an_evaluation_that_is_missing_or_of_other_questions_is_a_reason(evaluated):
    base = Rival("base model", evaluated(NEVER_CALLS))
    missing = judge(GATE, evaluated(STRONG), champion=Rival("champion", "was not evaluated"), base=base)
    assert missing.reason == "both against champion: was not evaluated (wanted: a lower bound above 0)"
    other = Rival("champion", evaluated(WEAK, asked="Please add"))
    assert "do not compare: questions or tools" in judge(GATE, evaluated(STRONG), champion=other, base=base).reason


def test_a_figure_that_the_evaluation_lacks_is_named(evaluated, tmp_path):
    gate = GATE.model_copy(update={"metric": "counting/bth"})
    with pytest.raises(UserError, match=r"gate.metric=counting/bth: .* did you mean 'counting/both'"):
        judge(gate, evaluated(STRONG), champion=None, base=Rival("base model", "none"))
    broken = Path(shutil.copytree(evaluated(STRONG), tmp_path / "broken"))
    (broken / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is no answer"):
        judge(GATE, broken, champion=None, base=Rival("base model", "none"))
