"""Multi-turn evaluations with scripted answers: rows, files, the official loop and the official command."""

import importlib.util
import json
from itertools import chain

import multi_turn_gold
import multi_turn_scripts as scripts
import official_bfcl
import pytest

from rest_core.config import BfclConfig, GenerationConfig
from rest_core.evaluation.bfcl.benchmark import MISSED_FUNCTIONS
from rest_core.evaluation.bfcl.calls import block
from rest_core.evaluation.evaluate import evaluate
from rest_core.records import ToolCall

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")

DIRECTORY = "result/Qwen_Qwen3-1.7B-FC/multi_turn"
FILES = "multi_turn_base_0"


def results(out, category):
    lines = (out / DIRECTORY / f"BFCL_v4_{category}_result.json").read_text().splitlines()
    return {entry["id"]: entry for entry in map(json.loads, lines)}


def test_perfect_dialogues_are_right_in_every_category(tmp_path):
    ids = [f"{category}_{n}" for category in multi_turn_gold.CATEGORIES for n in (3, 60, 110, 160)]
    report = scripts.run({id_: scripts.texts_of(scripts.gold(id_)) for id_ in ids}, tmp_path)
    assert [row["id"] for row in report.rows] == ids and all(row["valid"] for row in report.rows)
    for category in multi_turn_gold.CATEGORIES:
        assert report.metrics[f"bfcl/{category}"] == 1 and report.metrics[f"bfcl/count/{category}"] == 4
        assert report.metrics[f"bfcl/count/skipped_{category}"] == 0
    row = report.rows[0]
    assert row["stop"] == "completed" and row["steps"] == sum(map(len, row["turns"]))
    assert row["question"] == list(chain(*multi_turn_gold.entries("multi_turn_base")["multi_turn_base_3"]["question"]))
    found = results(tmp_path, "multi_turn_base")["multi_turn_base_3"]
    gold = scripts.gold("multi_turn_base_3")
    assert found["result"] == [[*(block(step[0]) for step in turn), ""] for turn in gold]
    assert found["input_token_count"] == [[1] * (len(turn) + 1) for turn in gold]
    assert MISSED_FUNCTIONS[False] in report.notes


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("gold, one turn a step", None),
        ("no call at all", "empty_turn_model_response"),
        ("directory made", "instance_state_mismatch"),
        ("25 steps in the first turn", "force_terminated"),
        ("21 steps in the last turn", None),  # stopped as well, but the checker does not notice
    ],
)
def test_verdicts_are_official(kind, error, tmp_path):
    report = scripts.run({FILES: scripts.texts_of(scripts.corrupted(FILES, kind))}, tmp_path)
    assert report.rows[0]["error_type"] == (error and f"multi_turn:{error}")


def test_21_steps_of_a_turn_are_executed_and_the_dialogue_is_stopped(tmp_path):
    texts = scripts.texts_of(scripts.corrupted(FILES, "25 steps in the first turn"))
    (row,) = scripts.run({FILES: texts}, tmp_path).rows
    assert row["stop"] == "step_limit" and [len(turn) for turn in row["turns"]] == [21]
    assert all(step["results"] for step in row["turns"][0])
    assert [len(turn) for turn in results(tmp_path, "multi_turn_base")[FILES]["result"]] == [21]


@pytest.mark.parametrize("native_tools", [True, False])
def test_messages_and_results_equal_the_official_loop(native_tools, tmp_path):
    category = "multi_turn_miss_func"
    kinds = ("gold, one turn a step", "unknown function", "25 steps in the first turn", "text that looks like a call")
    ids = [f"{category}_{n}" for n in (0, 1, 70, 140)]
    texts = {id_: scripts.texts_of(scripts.corrupted(id_, kind)) for id_, kind in zip(ids, kinds, strict=True)}
    official = official_bfcl.dialogues(tmp_path, category, texts, fc=native_tools)
    for id_, ours in scripts.histories(texts, native_tools=native_tools).items():
        assert ours == {key: official[id_][key] for key in ("messages", "tools")}, id_


def test_functions_held_back_are_added_as_the_policy_takes_tools(tmp_path):
    id_ = "multi_turn_miss_func_0"
    texts = {id_: scripts.texts_of(scripts.gold(id_))}
    native, prompted = (scripts.histories(texts, native_tools=flag)[id_] for flag in (True, False))
    assert (len(native["tools"][0]), len(native["tools"][-1])) == (31, 32) and "sort" in native["tools"][-1]
    assert {len(tools) for tools in prompted["tools"]} == {31}
    added = [message["content"] for message in prompted["messages"] if "updated some more" in message["content"]]
    assert len(added) == 1 and added[0].startswith("[{'name': 'sort', 'description': ")


def directories(depth):
    """Each with two copies of the one before: the text of the last has 2**depth parts."""
    calls = [ToolCall("mkdir", {"dir_name": "d0"})]
    for n in range(depth):
        calls += [
            ToolCall("mkdir", {"dir_name": f"d{n + 1}"}),
            ToolCall("cp", {"source": f"d{n}", "destination": f"d{n + 1}"}),
            ToolCall("cp", {"source": f"d{n}", "destination": f"e{n}"}),
            ToolCall("mv", {"source": f"e{n}", "destination": f"d{n + 1}"}),
        ]
    return calls


def test_hostile_calls_harm_neither_the_stage_nor_the_official_command(tmp_path):
    canary = tmp_path / "canary"
    writes = {"file": str(canary), "mode": "w"}
    hostile = {
        "multi_turn_base_0": [ToolCall("open", writes)],
        "multi_turn_base_1": [ToolCall(f"open({str(canary)!r}, 'w') or ls", {})],
        "multi_turn_base_2": [ToolCall("ls", {f"a=open({str(canary)!r}, 'w'), b": 1})],
        "multi_turn_base_3": [ToolCall("ｏｐｅｎ", writes)],
        "multi_turn_base_4": [ToolCall("__import__", {"name": "antigravity"})],
        "multi_turn_base_5": [
            ToolCall("mkdir", {"dir_name": "a"}),
            *[ToolCall("cp", {"source": "a", "destination": "a"})] * 2,
        ],
        "multi_turn_base_6": [ToolCall("ls", {"a": "\ud800"})],
        "multi_turn_base_57": [ToolCall("power", {"base": 10, "exponent": 10**10})],
        "multi_turn_base_59": [ToolCall("square_root", {"number": 2, "precision": 10**8})],
        "multi_turn_base_74": [ToolCall("square_root", {"number": 2, "precision": 10**18 - 1})],
        "multi_turn_base_7": directories(40),
    }
    texts = {id_: ["\n".join(map(block, calls)), *["done"] * 9] for id_, calls in hostile.items()}
    texts["multi_turn_base_80"] = scripts.texts_of(scripts.gold("multi_turn_base_80"))
    report = scripts.run(texts, tmp_path / "out", seconds=2)
    ours = {row["id"] for row in report.rows if not row["valid"]}
    assert ours == set(texts) - {"multi_turn_base_80"} and not canary.exists()
    rows = {row["id"]: row for row in report.rows}
    assert {rows[f"multi_turn_base_{n}"]["stop"] for n in (57, 59, 74)} == {"failed"}
    found = results(tmp_path / "out", "multi_turn_base")
    assert rows["multi_turn_base_7"]["error_type"] == "checker_error:EnvironmentFailed"
    for n in (7, 57, 59, 74):
        assert found[f"multi_turn_base_{n}"]["result"].startswith("Error during inference: ")
    for n in (0, 1, 2, 3, 4):
        entry = found[f"multi_turn_base_{n}"]
        assert entry["result"][0][0] == block(ToolCall("refused_call", {})) and len(entry["refused"]) == 1
    assert set(official_bfcl.evaluate(tmp_path / "out", "multi_turn_base", seconds=60)) == ours
    assert not canary.exists()


def test_a_prompt_over_the_limit_is_an_inference_error(tmp_path):
    benchmark = scripts.Chosen(BfclConfig(categories=("multi_turn_base",), max_dialogue_tokens=16))
    benchmark.ids = frozenset({FILES})
    script = scripts.Script({}, tokens=17)
    (row,) = evaluate(benchmark, script, out=tmp_path).rows
    assert row["error_type"] == "multi_turn:inference_error" and row["stop"] == "prompt_too_long"
    assert row["kind"] == "skipped"
    assert isinstance(results(tmp_path, "multi_turn_base")[FILES]["result"], str)


def test_samples_are_judged_each_on_fresh_state(tmp_path):
    config = BfclConfig(categories=("multi_turn_base",), samples=3, generation=GenerationConfig(temperature=1.0))
    good, bad = (
        scripts.texts_of(scripts.corrupted(FILES, kind)) for kind in ("gold, one turn a step", "directory made")
    )
    other = "multi_turn_base_1"
    right = scripts.texts_of(scripts.gold(other))
    texts = {(FILES, 0): bad, (FILES, 1): good, (FILES, 2): bad, **{(other, sample): right for sample in range(3)}}
    benchmark = scripts.Chosen(config)
    benchmark.ids = frozenset({FILES, other})
    old, foreign = tmp_path / "samples" / "4" / "result" / "Qwen_Qwen3-1.7B-FC", tmp_path / "samples" / "song.wav"
    old.mkdir(parents=True)
    foreign.touch()
    report = evaluate(benchmark, scripts.Script(texts), out=tmp_path)
    first, second = report.rows
    assert [sample["valid"] for sample in first["samples"]] == [False, True, False] and not first["valid"]
    assert second["valid"]
    assert (first["kind"], second["kind"]) == ("wrong state after a turn", None)
    mean = report.figures.averages["multi_turn_base_mean_of_3"]
    assert mean.total == 2 and mean.interval.low < mean.value < mean.interval.high
    metrics = {name: value for name, value in report.metrics.items() if "multi_turn_base" in name}
    assert metrics["bfcl/multi_turn_base"] == 0.5
    assert metrics["bfcl/multi_turn_base_mean_of_3"] == pytest.approx(4 / 6)
    assert metrics["bfcl/multi_turn_base_pass_at_3"] == 1 and metrics["bfcl/multi_turn_base_pass_hat_3"] == 0.5
    assert results(tmp_path / "samples" / "2", "multi_turn_base").keys() == {FILES, other}
    assert foreign.is_file() and not old.exists()
    assert "temperature 1 with seed 0" in " ".join(report.notes)


def test_the_answer_key_names_the_calls_of_each_turn():
    benchmark = scripts.Bfcl(BfclConfig(categories=("multi_turn_base",), max_dialogue_tokens=999))
    question = benchmark.questions()["multi_turn_base"][0]
    assert question.expected[0][0] == "cd(folder='document')"
    assert benchmark.limits["max_dialogue_tokens"] == 999
    assert "samples" not in scripts.Bfcl(BfclConfig(categories=("live",))).limits


def test_several_samples_need_a_temperature():
    with pytest.raises(ValueError, match=r"bfcl\.generation\.temperature above 0"):
        BfclConfig(samples=2)
