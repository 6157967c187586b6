"""BFCL's multi-turn categories against bfcl-eval's own loop and command, on every dialogue."""

import importlib.util
from collections import Counter

import multi_turn_gold
import multi_turn_scripts as scripts
import official_bfcl
import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")

ROUNDS = 4  # of 800 corrupted dialogues


def ids():
    return [id_ for category in multi_turn_gold.CATEGORIES for id_ in multi_turn_gold.gold_calls(category)]


@pytest.mark.parametrize("step_by_step", [True, False])
def test_gold_is_right_in_our_loop_and_by_the_official_command(step_by_step, tmp_path):
    texts = {id_: scripts.texts_of(scripts.gold(id_, step_by_step=step_by_step)) for id_ in ids()}
    report = scripts.run(texts, tmp_path)
    assert len(report.rows) == 800 and all(row["valid"] for row in report.rows)
    assert official_bfcl.evaluate(tmp_path, *multi_turn_gold.CATEGORIES) == {}


@pytest.mark.parametrize("number", range(ROUNDS))
def test_verdicts_and_error_types_of_corrupted_dialogues_are_official(number, tmp_path):
    kinds = {id_: scripts.KINDS[(n * ROUNDS + number + n // 7) % len(scripts.KINDS)] for n, id_ in enumerate(ids())}
    texts = {id_: scripts.texts_of(scripts.corrupted(id_, kind)) for id_, kind in kinds.items()}
    report = scripts.run(texts, tmp_path / "ours")
    ours = scripts.our_errors(report)
    assert len(report.rows) == 800 and len(Counter(ours.values())) == 4 and len(set(kinds.values())) > 40
    scripts.write_raw(tmp_path / "raw", report)
    for place in ("raw", "ours"):
        theirs = official_bfcl.evaluate(tmp_path / place, *multi_turn_gold.CATEGORIES)
        different = {id_: kinds[id_] for id_ in kinds if ours.get(id_) != theirs.get(id_)}
        assert different == {}, place


@pytest.mark.parametrize("native_tools", [True, False])
@pytest.mark.parametrize("category", multi_turn_gold.CATEGORIES)
def test_messages_tools_and_results_equal_the_official_loop(category, native_tools, tmp_path):
    found = list(multi_turn_gold.gold_calls(category))
    texts = {
        id_: scripts.texts_of(scripts.corrupted(id_, scripts.KINDS[n % len(scripts.KINDS)]))
        for n, id_ in enumerate(found)
        # What the official loop evaluates and ours does not: builtins.
        if scripts.KINDS[n % len(scripts.KINDS)] not in scripts.REFUSED_KINDS
    }
    assert len(texts) > 170
    official = official_bfcl.dialogues(tmp_path, category, texts, fc=native_tools)
    ours = scripts.histories(texts, native_tools=native_tools)
    different = [id_ for id_ in texts if any(ours[id_][key] != official[id_][key] for key in ("messages", "tools"))]
    assert different == []
