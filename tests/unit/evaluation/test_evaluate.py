"""The part of an evaluation that all benchmarks share, on a benchmark of three lines."""

import json

import pytest

from rest_core.config import GenerationConfig
from rest_core.evaluation.benchmark import Benchmark, Figures, Question
from rest_core.evaluation.evaluate import evaluate, seeded_subset
from rest_core.evaluation.local_policy import LocalPolicy
from rest_core.evaluation.policy import Chat
from rest_core.evaluation.statistics import Accuracy
from rest_core.evaluation.taxonomy import ExpectedCall
from rest_core.records import Message
from rest_core.styles.create import built_in_style

ITEMS = list(range(1000))


class Sums(Benchmark):
    name = "sums"
    title = "Sums"
    rules = ("right",)

    def questions(self):
        return {part: [Question(f"{part}-{n}", part, n) for n in range(4)] for part in ("small", "large")}

    def chat(self, question):
        messages = (Message("user", f"{question.entry} + 1?"),)
        return Chat((), messages, prompt=messages)

    def judge(self, questions, answers):
        return [{"right": str(q.entry + 1) in a.text} for q, a in zip(questions, answers, strict=True)]

    def figures(self, rows):
        return Figures({"all": Accuracy(sum(row["right"] for row in rows), len(rows))}, notes=("a toy",))


def test_a_benchmark_is_questions_prompts_verdicts_and_figures(scripted, tokenizer, tmp_path):
    engine = scripted(lambda prompt, position: "<response> 2 </response>")
    sums = Sums(GenerationConfig(max_prompt_tokens=100), limit=None, seed=0)
    report = evaluate(sums, LocalPolicy("m", engine, tokenizer, built_in_style("compact")), out=tmp_path)
    assert report.metrics == pytest.approx(
        {
            "sums/all": 2 / 8,
            "sums/count/skipped_prompts": 0,
            "sums/truncated": 0,
            "sums/well_formed": 1,
            "sums/subset": 0,
        }
    )
    assert [row["id"] for row in report.rows if row["right"]] == ["small-1", "large-1"]
    assert json.loads((tmp_path / "report.json").read_text())["notes"][0] == "a toy"


def test_a_part_of_the_questions_is_named(scripted, tokenizer, tmp_path):
    engine = scripted(lambda prompt, position: "")
    report = evaluate(
        Sums(GenerationConfig(), 1, 3), LocalPolicy("m", engine, tokenizer, built_in_style("compact")), out=tmp_path
    )
    assert report.subset == "2 of 8 questions, at most 1 a category (seed 3); not comparable with published figures"
    assert report.metrics["sums/subset"] == 1


def test_a_prompt_over_the_limit_is_counted_and_explained(scripted, tokenizer, tmp_path):
    engine = scripted(lambda prompt, position: pytest.fail("asked"))
    sums = Sums(GenerationConfig(max_prompt_tokens=16), None, 0)
    report = evaluate(sums, LocalPolicy("m", engine, tokenizer, built_in_style("compact")), out=tmp_path)
    assert report.metrics["sums/count/skipped_prompts"] == 8 and report.metrics["sums/truncated"] == 0
    assert "over the limit of 16" in report.rows[0]["skipped"] and not any(row["right"] for row in report.rows)


@pytest.mark.parametrize(
    ("said", "warned"), [("add(1)", True), ('<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>', False)]
)
def test_a_model_that_calls_no_tool_where_it_should_is_warned_of(scripted, tokenizer, tmp_path, caplog, said, warned):
    class Wanting(Sums):
        def questions(self):
            call = (ExpectedCall("f", {}),)
            return {"all": [Question(f"q-{n}", "all", n, expected=call if n else ()) for n in range(21)]}

    policy = LocalPolicy("m", scripted(lambda prompt, position: said), tokenizer, built_in_style("compact"))
    report = evaluate(Wanting(GenerationConfig(), None, 0), policy, out=tmp_path)
    assert any("fewer than 5% of the responses" in note for note in report.notes) == warned
    assert ("fewer than 5% of the responses" in caplog.text) == warned


def test_a_subset_keeps_the_order_and_depends_on_seed_and_name():
    chosen = seeded_subset(ITEMS, 20, seed=1, name="a")
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 20
    assert chosen == seeded_subset(ITEMS, 20, seed=1, name="a")
    assert chosen != seeded_subset(ITEMS, 20, seed=2, name="a")
    assert chosen != seeded_subset(ITEMS, 20, seed=1, name="b")


def test_the_choice_does_not_change_from_run_to_run():
    assert seeded_subset(ITEMS, 5, seed=0, name="simple_python") == [285, 444, 472, 917, 998]


def test_no_limit_and_a_large_limit_take_everything():
    assert seeded_subset(ITEMS, None, seed=0, name="a") == ITEMS
    assert seeded_subset(ITEMS, 5000, seed=0, name="a") == ITEMS
