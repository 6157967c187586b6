"""BFCL's memory categories, all of them, against bfcl-eval's own loop and command."""

import importlib.util

import memory_scripts as scripts
import official_bfcl
import pytest

from rest_core.environments.dialogue import SHOWN_CHARACTERS

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("bfcl_eval", "rank_bm25", "overrides")),
    reason="bfcl-eval, rank-bm25 or overrides is not installed",
)


@pytest.mark.parametrize("category", scripts.CATEGORIES)
def test_messages_memories_and_verdicts_equal_the_official_ones(category, tmp_path):
    questions, _ = scripts.loaded()
    asked = [question.id for question in questions[category]]
    texts, kinds = scripts.scripted(asked, seed=1)
    report, benchmark = scripts.run({(id_, 0): text for id_, text in texts.items()}, tmp_path / "ours")
    official = official_bfcl.dialogues(tmp_path, category, texts, fc=True)
    assert len(report.rows) == 155 and len(benchmark.held) == 37
    assert all(scripts.messages_of(one) == official[id_]["messages"] for id_, one in benchmark.held.items())
    for row in report.rows:
        messages = official[row["id"]]["messages"]
        assert row["question"] == [m for m in messages if m["role"] not in ("assistant", "tool")]
        results = [result for step in row["turns"][0] for result in step["results"]]
        theirs = [m["content"] for m in messages if m["role"] == "tool"]
        assert [one[:SHOWN_CHARACTERS] for one in results] == [one[:SHOWN_CHARACTERS] for one in theirs]
    ours = {row["id"]: row["error_type"] for row in report.rows if not row["valid"]}
    assert not {id_ for id_ in ours if kinds[id_].startswith("right")}
    scripts.write_raw(tmp_path / "raw", {id_: one["turns"] for id_, one in official.items()}, category)
    assert official_bfcl.evaluate(tmp_path / "raw", category) == ours
    assert official_bfcl.evaluate(tmp_path / "ours", category) == ours


def test_right_answers_are_right(tmp_path):
    questions, _ = scripts.loaded()
    for category in scripts.CATEGORIES:
        texts = {(q.id, 0): [scripts.accepted()[q.id][0]] for q in questions[category]}
        report, _ = scripts.run(texts, tmp_path / category)
        assert report.metrics[f"bfcl/{category}"] == 1 and len(report.rows) == 155
        assert official_bfcl.evaluate(tmp_path / category, category) == {}
