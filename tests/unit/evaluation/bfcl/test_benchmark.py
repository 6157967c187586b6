"""A whole BFCL evaluation with an engine that answers by script."""

import importlib.util
import json
from pathlib import Path

import pytest
from bfcl_gold import UNANSWERABLE, gold_calls

from rest_core import response
from rest_core.config import BfclConfig, GenerationConfig
from rest_core.data import bfcl_wheel
from rest_core.evaluation.bfcl.benchmark import Bfcl
from rest_core.evaluation.bfcl.categories import CATEGORIES
from rest_core.evaluation.bfcl.result_files import HANDLER
from rest_core.evaluation.evaluate import evaluate as evaluate_on
from rest_core.evaluation.local_policy import LocalPolicy
from rest_core.records import ToolCall
from rest_core.styles.create import built_in_style

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")

SINGLE_TURN = [category.name for category in CATEGORIES.values() if category.group in ("non_live", "live")]
LONG = GenerationConfig(max_prompt_tokens=100_000, max_response_tokens=50_000)
BROKEN = '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {\n</tool_call>'


def evaluate(engine, tokenizer, out: Path, *categories: str, limit: int | None = 6, generation=LONG, **settings):
    config = BfclConfig(categories=categories, limit_per_category=limit, generation=generation, **settings)
    return evaluate_on(Bfcl(config), LocalPolicy("tiny", engine, tokenizer, built_in_style("compact")), out=out)


def gold_texts(*categories: str) -> dict[str, str]:
    """Question → the perfect response."""
    texts = {}
    for name in categories:
        gold = gold_calls(CATEGORIES[name])
        for entry in bfcl_wheel.questions(name):
            calls = gold[entry["id"]]
            question = entry["question"][0][-1]["content"]
            texts[question] = response.render(think="t", calls=calls, response=None if calls else "no")
    return texts


def perfect(texts: dict[str, str]):
    return lambda prompt, position: texts[prompt.split("<|user|>")[-1].removesuffix("<|end|><|assistant|>")]


def test_perfect_answers_are_right_and_averages_are_there(scripted, tokenizer, tmp_path):
    engine = scripted(perfect(gold_texts(*SINGLE_TURN)))
    report = evaluate(engine, tokenizer, tmp_path, "non_live", "live", limit=4)
    assert not UNANSWERABLE & {row["id"] for row in report.rows}
    assert {"call_accuracy", "irrelevance_accuracy", "overall_single_turn"} < set(report.figures.averages)
    for name in (*SINGLE_TURN, *report.figures.averages, "well_formed"):
        assert report.metrics[f"bfcl/{name}"] == 1, name
    for name in SINGLE_TURN:
        assert report.metrics[f"bfcl/count/{name}"] == 4
    assert len(engine.calls) == 1  # one run of the engine, so that batches are full
    assert report.metrics["bfcl/subset"] == 1
    assert "SUBSET: 52 of 3641 questions, at most 4 a category (seed 0)" in (tmp_path / "report.md").read_text()


def test_metric_names_are_valid_and_no_metric_is_the_folder_of_another(scripted, tokenizer, tmp_path):
    report = evaluate(scripted(lambda prompt, position: ""), tokenizer, tmp_path, "irrelevance", limit=1)
    names = set(report.metrics)
    assert all(not set(name) & set(",@=") for name in names)
    assert not {a for a in names for b in names if b.startswith(f"{a}/")}


def test_a_broken_block_is_no_call(scripted, tokenizer, tmp_path):
    report = evaluate(
        scripted(lambda prompt, position: BROKEN), tokenizer, tmp_path, "irrelevance", "live_relevance", "simple_python"
    )
    assert report.metrics["bfcl/irrelevance"] == 1
    assert report.metrics["bfcl/live_relevance"] == 0
    assert report.metrics["bfcl/simple_python"] == 0
    assert report.metrics["bfcl/well_formed"] == 0
    assert {row["error_type"] for row in report.rows} == {
        None,
        "relevance_error:decoder_failed",
        "simple_function_checker:wrong_count",
    }


def test_bfcl_layout(scripted, tokenizer, tmp_path):
    calls = [ToolCall("a.b", {"x": 'q"\n', "y": [1.5, None]}), ToolCall("c", {})]
    text = response.render(think="t", calls=calls, response=None)
    report = evaluate(scripted(lambda prompt, position: text), tokenizer, tmp_path, "live_parallel", limit=2)
    folder = tmp_path / "result" / HANDLER.replace("/", "_") / "live"
    assert [p.name for p in folder.iterdir()] == ["BFCL_v4_live_parallel_result.json"]
    results = [json.loads(line) for line in (folder / "BFCL_v4_live_parallel_result.json").read_text().splitlines()]
    assert [entry["id"] for entry in results] == [row["id"] for row in report.rows]
    assert results[0]["response"] == text
    # One block a call, one JSON object a block, between line breaks: what QwenFCHandler reads.
    blocks = results[0]["result"].split("\n</tool_call>")
    objects = [json.loads(block.strip().removeprefix("<tool_call>\n")) for block in blocks if block]
    assert objects == [{"name": call.name, "arguments": call.arguments} for call in calls]
    scores = tmp_path / "score" / HANDLER.replace("/", "_") / "live" / "BFCL_v4_live_parallel_score.json"
    header, *wrong = [json.loads(line) for line in scores.read_text().splitlines()]
    assert header == {"accuracy": 0.0, "correct_count": 0, "total_count": 2}
    assert [entry["id"] for entry in wrong] == [entry["id"] for entry in results]


def test_half_a_surrogate_pair_is_kept_from_bfcl(scripted, tokenizer, tmp_path):
    text = '<tool_call>\n{"name": "\\ud800", "parameters": {"x": "\\ud83d\\ude00 é"}}\n</tool_call>'
    report = evaluate(scripted(lambda prompt, position: text), tokenizer, tmp_path, "live_relevance", limit=1)
    assert report.metrics["bfcl/live_relevance"] == 1
    path = next((tmp_path / "result").rglob("*.json"))
    result = json.loads(path.read_text())["result"]
    assert result == '<tool_call>\n{"name": "\ufffd", "arguments": {"x": "😀 é"}}\n</tool_call>'


def test_an_answer_that_breaks_the_checker_is_counted_and_kept_from_bfcl(scripted, tokenizer, tmp_path):
    texts = gold_texts("simple_java")
    entry = next(e for e in bfcl_wheel.questions("simple_java") if e["id"] == "simple_java_18")
    call = gold_calls(CATEGORIES["simple_java"])["simple_java_18"][0]
    hostile = ToolCall(call.name, {**call.arguments, "pageNo": "9" * 5000})  # more digits than Python reads
    question = entry["question"][0][0]["content"]
    texts[question] = response.render(think=None, calls=[hostile], response=None)
    report = evaluate(scripted(perfect(texts)), tokenizer, tmp_path, "simple_java", limit=None)
    assert report.metrics["bfcl/count/checker_errors"] == 1
    assert report.metrics["bfcl/simple_java"] == 0.97
    row = next(row for row in report.rows if row["error_type"] == "checker_error:ValueError")
    path = tmp_path / "result" / HANDLER.replace("/", "_") / "non_live" / "BFCL_v4_simple_java_result.json"
    entry = next(e for e in map(json.loads, path.read_text().splitlines()) if e["id"] == row["id"])
    assert entry["result"] == ""
    assert entry["response"] == texts[question]
    assert "ValueError" in entry["checker_error"]
    assert "1 answers on which the official checker raised" in (tmp_path / "report.md").read_text()


def test_nothing_of_an_earlier_evaluation_is_left(scripted, tokenizer, tmp_path):
    engine = scripted(lambda prompt, position: "")
    evaluate(engine, tokenizer, tmp_path, "parallel", "live_parallel", limit=1)
    evaluate(engine, tokenizer, tmp_path, "parallel", limit=2)
    assert [p.name for p in (tmp_path / "result").rglob("*.json")] == ["BFCL_v4_parallel_result.json"]
    assert [p.name for p in (tmp_path / "score").rglob("*.json")] == ["BFCL_v4_parallel_score.json"]


def test_a_skipped_prompt_is_wrong_even_where_no_call_is_wanted(scripted, tokenizer, tmp_path):
    engine = scripted(lambda prompt, position: pytest.fail("asked"))
    short = GenerationConfig(max_prompt_tokens=16)
    report = evaluate(engine, tokenizer, tmp_path, "irrelevance", generation=short)
    assert report.metrics["bfcl/irrelevance"] == 0
    assert report.metrics["bfcl/count/skipped_prompts"] == 6
    assert {row["error_type"] for row in report.rows} == {"skipped_prompt"}


def test_the_subset_is_the_same_whatever_else_is_evaluated(scripted, tokenizer, tmp_path):
    def ids(*categories: str, **settings) -> set[str]:
        report = evaluate(scripted(lambda prompt, position: ""), tokenizer, tmp_path, *categories, **settings)
        return {row["id"] for row in report.rows if row["category"] == "parallel"}

    alone = ids("parallel")
    assert ids("multiple", "parallel") == alone
    assert ids("parallel", seed=1) != alone
