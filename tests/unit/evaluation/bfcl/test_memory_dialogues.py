"""BFCL's memory categories with scripted answers: memories, rows, files, the official loop and the official command."""

import importlib.util
import json

import memory_scripts as scripts
import official_bfcl
import pytest

from rest_core.config import BfclConfig, GenerationConfig
from rest_core.errors import UserError
from rest_core.evaluation.bfcl.benchmark import Bfcl
from rest_core.evaluation.bfcl.calls import block
from rest_core.records import ToolCall

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("bfcl_eval", "rank_bm25", "overrides")),
    reason="bfcl-eval, rank-bm25 or overrides is not installed",
)
DIRECTORY = "result/Qwen_Qwen3-1.7B-FC/agentic/memory"


def results(out, category, part=""):
    path = out / DIRECTORY / category.partition("_")[2] / f"BFCL_v4_{category}{part}_result.json"
    return {entry["id"]: entry for entry in map(json.loads, path.read_text().splitlines())}


def ids(category, scenario):
    questions, _ = scripts.loaded()
    return [question.id for question in questions[category] if question.entry["scenario"] == scenario]


@needs_packages
@pytest.mark.parametrize("category", scripts.CATEGORIES)
def test_messages_memories_and_verdicts_equal_the_official_loop_and_command(category, tmp_path):
    asked = ids(category, "notetaker")
    texts, kinds = scripts.scripted(asked)
    assert set(kinds.values()) == set(scripts.ANSWERS)
    report, benchmark = scripts.run({(id_, 0): text for id_, text in texts.items()}, tmp_path / "ours")
    official = official_bfcl.dialogues(tmp_path, category, texts, fc=True)
    assert len(benchmark.held) == 5
    for id_, dialogue in benchmark.held.items():
        assert scripts.messages_of(dialogue) == official[id_]["messages"], id_
    rows = {row["id"]: row for row in report.rows}
    for id_ in asked:
        asked_first = [m for m in official[id_]["messages"] if m["role"] not in ("assistant", "tool")]
        assert rows[id_]["question"] == asked_first
        responses = [step["response"] for turn in rows[id_]["turns"] for step in turn]
        assert responses == official[id_]["turns"][0]
    place = tmp_path / "result" / "snapshots" / "agentic" / "memory" / category.partition("_")[2] / "memory_snapshot"
    memory = benchmark._memories.conversations[-1].memory
    assert any(memory.values()) and json.loads((place / "notetaker_final.json").read_text()) == memory
    ours = {id_: row["error_type"] for id_, row in rows.items() if not row["valid"]}
    assert {ours.get(id_) for id_ in asked} == {None, "agentic:answer_not_found", "agentic:no_last_message"}
    assert [k for id_, k in kinds.items() if k.startswith("right") and id_ in ours] == []
    scripts.write_raw(tmp_path / "raw", {id_: one["turns"] for id_, one in official.items()}, category)
    assert official_bfcl.evaluate(tmp_path / "raw", category) == ours
    assert official_bfcl.evaluate(tmp_path / "ours", category) == ours


@needs_packages
def test_rows_files_and_figures(tmp_path):
    first, second = ids("memory_kv", "finance")[:2]
    answer = scripts.accepted()[first][0]
    conversation = scripts.conversations(first)[2]
    add = ToolCall("core_memory_add", {"key": "name", "value": answer})
    texts = {(conversation, 0): [block(add), "Noted."], (first, 0): [answer], (second, 0): ["No idea."]}
    report, _ = scripts.run(texts, tmp_path)
    right, wrong = report.rows
    assert right["valid"] and right["stop"] == "completed" and right["steps"] == 1 and right["expected"] is None
    assert f'"name": "{answer}"' in right["question"][0]["content"]
    assert (wrong["error_type"], wrong["kind"]) == ("agentic:answer_not_found", "wrong answer in words")
    assert report.metrics["bfcl/memory_kv"] == report.metrics["bfcl/memory_accuracy"] == 0.5
    assert not {"bfcl/memory", "bfcl/agentic", "bfcl/overall_v4"} & report.metrics.keys()
    assert "memory_accuracy" in report.figures.first
    assert results(tmp_path, "memory_kv")[first]["result"] == [[answer]]
    held = results(tmp_path, "memory_kv", "_prereq")
    assert list(held) == scripts.conversations(first)
    assert held[conversation]["result"][0] == [block(add), "Noted."]
    memories = [one["memory"]["core_memory"] for one in held.values()]
    assert memories == [{}] * 2 + [{"name": answer}] * 5


@needs_packages
def test_each_sample_has_a_memory_of_its_own(tmp_path):
    id_ = ids("memory_rec_sum", "notetaker")[0]
    conversation = scripts.conversations(id_)[-1]
    texts = {(id_, sample): [scripts.accepted()[id_][0]] for sample in (0, 2)} | {(id_, 1): ["?"]}
    texts |= {
        (conversation, sample): [block(ToolCall("memory_append", {"text": f"sample {sample}"}))] for sample in range(3)
    }
    report, _ = scripts.run(texts, tmp_path, samples=3, generation=GenerationConfig(temperature=1.0))
    (row,) = report.rows
    assert [sample["valid"] for sample in row["samples"]] == [True, False, True]
    assert (
        report.metrics["bfcl/memory_rec_sum_pass_at_3"] == 1 and report.metrics["bfcl/memory_rec_sum_pass_hat_3"] == 0
    )
    for sample, place in enumerate((tmp_path, tmp_path / "samples" / "2", tmp_path / "samples" / "3")):
        assert results(place, "memory_rec_sum", "_prereq")[conversation]["memory"] == {"memory": f"sample {sample}"}


@needs_packages
def test_a_conversation_that_cannot_go_on_leaves_the_memory_as_it_was(tmp_path):
    id_ = ids("memory_rec_sum", "notetaker")[0]
    first, second, third, *_ = scripts.conversations(id_)
    grow = [
        ToolCall("memory_update", {"text": "a" * 9000}),
        ToolCall("memory_replace", {"old_text": "", "new_text": "b" * 9000}),
    ]
    texts = {
        (first, 0): [block(ToolCall("memory_append", {"text": "one"}))],
        (second, 0): ["\n".join(map(block, grow))],
        (third, 0): [block(ToolCall("memory_append", {"text": " three"}))] * 21,
        (id_, 0): ["?"],
    }
    report, _ = scripts.run(texts, tmp_path)
    held = results(tmp_path, "memory_rec_sum", "_prereq")
    assert [held[name]["memory"]["memory"] for name in (first, second)] == ["one"] * 2
    assert "too much memory" in held[second]["error"]
    assert held[third]["memory"] == {"memory": "one" + " three" * 21} and len(held[third]["result"]) == 1
    assert any("1 of 5 conversations that write memory could not go on" in note for note in report.notes)


@needs_packages
def test_prompts_over_the_limit_are_inference_errors(tmp_path):
    id_ = ids("memory_kv", "notetaker")[0]
    report, _ = scripts.run({(id_, 0): ["?"]}, tmp_path, tokens=17, max_dialogue_tokens=16)
    (row,) = report.rows
    assert (row["error_type"], row["stop"], row["kind"]) == ("agentic:inference_error", "prompt_too_long", "skipped")
    assert results(tmp_path, "memory_kv")[id_]["result"].startswith("Error during inference: ")
    assert results(tmp_path, "memory_kv", "_prereq")[scripts.conversations(id_)[-1]]["memory"] is None
    assert official_bfcl.evaluate(tmp_path, "memory_kv") == {id_: "agentic:inference_error"}


@needs_packages
def test_hostile_texts_are_kept_as_texts(tmp_path):
    id_ = ids("memory_kv", "notetaker")[0]
    conversation = scripts.conversations(id_)[0]
    value = "{scenario_setting} \ud800 __import__('os') % \x00 é"
    calls = [
        ToolCall("archival_memory_add", {"key": "a", "value": value}),
        ToolCall("core_memory_add", {"key": "a", "value": value}),
        ToolCall("_flush_memory_to_local_file", {}),
        ToolCall("open", {"file": "x", "mode": "w"}),
    ]
    texts = {(conversation, 0): ["\n".join(map(block, calls))], (id_, 0): ["\ud800" * 10 + scripts.accepted()[id_][0]]}
    report, _ = scripts.run(texts, tmp_path)
    assert report.rows[0]["valid"]
    kept = results(tmp_path, "memory_kv", "_prereq")[conversation]
    assert kept["memory"]["core_memory"] == {"a": value.replace("\ud800", "\ufffd")}
    assert [call["name"] for call in kept["refused"]] == ["_flush_memory_to_local_file", "open"]
    assert official_bfcl.evaluate(tmp_path, "memory_kv") == {}


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rank_bm25" else found("json"))
    with pytest.raises(UserError, match=r"install them with: pip install --no-deps rank-bm25==[\d.]+$"):
        Bfcl(BfclConfig(categories=("memory_kv",)))
