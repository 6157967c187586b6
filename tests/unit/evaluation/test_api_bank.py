import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_data import missing, public

from rest_core import response
from rest_core.config import ApiBankConfig
from rest_core.errors import UserError
from rest_core.evaluation import api_bank
from rest_core.evaluation.evaluate import evaluate as evaluate_on
from rest_core.evaluation.local_policy import LocalPolicy
from rest_core.records import ToolCall
from rest_core.styles.create import built_in_style

REAL = public("api-bank")
WANTED = ToolCall("Weather", {"city": "Oslo", "days": 1})


def matches(text: str, wanted: ToolCall = WANTED) -> tuple[bool, bool]:
    parsed = response.parse(text)
    return api_bank.soft_match(parsed, wanted), api_bank.strict_match(parsed, wanted)


def block(*lines: str) -> str:
    return "\n".join(["<think> t </think>", "<tool_call>", *lines, "</tool_call>"])


RIGHT = '{"name": "Weather", "parameters": {"city": "Oslo", "days": 1}}'
OTHER = '{"name": "Weather", "parameters": {"city": "Rome", "days": 1}}'


@pytest.mark.parametrize(
    "text, soft, strict",
    [
        (block(RIGHT), True, True),
        (block('{"parameters": {"days": 1, "city": "Oslo"}, "name": "Weather"}'), True, True),
        (block(RIGHT.replace("parameters", "arguments")), True, True),
        (block(OTHER), False, False),
        (block(OTHER, RIGHT), True, False),  # the shotgun
        (block(RIGHT, RIGHT), True, False),
        (block('{"city": "Oslo", "days": 1}'), True, False),  # bare parameters are given the name
        (block('{"city": "Rome", "days": 1}'), False, False),
        (block("[1, 2]", "nonsense", '{"city": "Oslo", "days": 1}'), True, False),
        (block(RIGHT.replace("Weather", "weather")), False, False),
        (block(RIGHT.replace(": 1", ": 1.0")), True, False),  # Python's equality against JSON's
        (block(RIGHT.replace(": 1", ": true")), True, False),
        (block(RIGHT.replace(": 1", ': "1"')), False, False),
        (f"<think> <tool_call>\n{RIGHT}\n</tool_call> </think>", False, False),  # thought about, not made
        (f"<tool_call>\n{RIGHT}", False, False),  # not closed
        ("<response> Oslo </response>", False, False),
        ("", False, False),
    ],
)
def test_matching(text, soft, strict):
    assert matches(text) == (soft, strict)


@given(
    st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", "\n", RIGHT, '{"a": ', "[", "NaN", "1e999", "é", "\ud800"])
    )
)
def test_no_output_makes_matching_fail(parts):
    soft, strict = matches("".join(parts))
    assert soft or not strict  # what is strictly right is softly right


def test_hostile_blocks_take_linear_time():
    def seconds(n: int) -> float:
        text = block("[" * n, *['{"a": 1'] * (n // 10), "9" * n)
        start = time.process_time()
        assert matches(text) == (False, False)
        return time.process_time() - start

    seconds(1000)
    short, long = (min(seconds(n) for _ in range(3)) for n in (4_000, 40_000))
    assert long < 40 * short + 0.05


def evaluate(engine, tokenizer, config: ApiBankConfig, folder: Path, out: Path):
    benchmark = api_bank.ApiBank(config, folder)
    return evaluate_on(benchmark, LocalPolicy("m", engine, tokenizer, built_in_style("compact")), out=out)


def write_level(folder: Path, level: int, items: object) -> None:
    (folder / f"level-{level}-api_processed.json").write_text(json.dumps(items))


def item(city: str, *, bare: bool = False) -> dict:
    call = {"name": "Weather", "parameters": {"city": city}}
    return {"system": "tools", "user": f"weather in {city}?", "answer": call if bare else [call], "other": None}


@pytest.fixture
def folder(tmp_path) -> Path:
    write_level(tmp_path, 1, [item(f"a{n}") for n in range(6)])
    write_level(tmp_path, 2, [item(f"b{n}", bare=True) for n in range(3)])
    write_level(tmp_path, 3, [item("c0")])
    return tmp_path


def answer_for(prompt: str) -> str:
    city = prompt.split("weather in ")[1].split("?")[0]
    right = ToolCall("Weather", {"city": city})
    if city in ("a0", "b0"):  # several candidates: softly right
        return response.render(think="t", calls=[ToolCall("Weather", {"city": "x"}), right], response=None)
    if city in ("a1", "a2", "c0"):
        return response.render(think="t", calls=[], response="no")
    return response.render(think="t", calls=[right], response=None)


def test_evaluation_scores_levels_and_their_mean_over_items(scripted, tokenizer, folder, tmp_path):
    engine = scripted(lambda prompt, position: answer_for(prompt))
    report = evaluate(engine, tokenizer, ApiBankConfig(), folder, tmp_path / "out")
    expected = {
        "api_bank/level_1_soft": 4 / 6,
        "api_bank/level_1_strict": 3 / 6,
        "api_bank/level_2_soft": 3 / 3,
        "api_bank/level_2_strict": 2 / 3,
        "api_bank/level_3_soft": 0.0,
        "api_bank/level_3_strict": 0.0,
        "api_bank/level_1_published": 4 / 6,
        "api_bank/level_2_published": 3 / 3,
        "api_bank/level_3_published": 0.0,
        "api_bank/overall_published": 7 / 10,
        "api_bank/overall_soft": 7 / 10,
        "api_bank/overall_strict": 5 / 10,
        "api_bank/count/level_1": 6,
        "api_bank/count/level_2": 3,
        "api_bank/count/level_3": 1,
        "api_bank/count/overall": 10,
        "api_bank/count/overall_published": 10,
        "api_bank/count/overall_soft": 10,
        "api_bank/count/overall_strict": 10,
        "api_bank/count/skipped_prompts": 0,
        "api_bank/well_formed": 1,
        "api_bank/truncated": 0,
        "api_bank/subset": 0,
    }
    bounds = {f"api_bank/{end}/overall_{rule}" for end in ("low", "high") for rule in api_bank.RULES}
    assert {name: value for name, value in report.metrics.items() if name not in bounds} == pytest.approx(expected)
    for rule in api_bank.RULES:
        value = expected[f"api_bank/overall_{rule}"]
        assert report.metrics[f"api_bank/low/overall_{rule}"] < value < report.metrics[f"api_bank/high/overall_{rule}"]
    assert tuple(report.figures.all) == api_bank.SCORES
    assert engine.prompts[0] == "<|system|>tools<|end|><|user|>weather in a0?<|end|><|assistant|>"
    assert [row["kind"] for row in report.rows] == [
        *("wrong number of calls", "no call", "no call", None, None, None),
        *("wrong number of calls", None, None, "no call"),
    ]
    assert report.rows[0]["expected"] == [{"name": "Weather", "arguments": {"city": "a0"}}]
    assert [row["id"] for row in report.rows][5:8] == ["level-1-5", "level-2-0", "level-2-1"]
    assert json.loads((tmp_path / "out" / "rows.jsonl").read_text().splitlines()[0]) == report.rows[0]


def test_its_settings_are_the_benchmarks(folder):
    benchmark = api_bank.ApiBank(ApiBankConfig(limit_per_level=2, seed=3), folder)
    assert (benchmark.limit, benchmark.seed) == (2, 3)


@pytest.mark.parametrize(
    "content, named",
    [
        ("", "empty"),
        ("[", "line 1"),
        ("[]", "empty"),
        ("[3]", "record 0"),
        (json.dumps([item("a"), {**item("b"), "user": None}]), "record 1: field 'user'"),
        (json.dumps([{**item("b"), "system": 3}]), "field 'system'"),
        (json.dumps([{**item("b"), "answer": []}]), "field 'answer'"),
        (json.dumps([{**item("b"), "answer": [{"name": "x", "parameters": {}}] * 2}]), "field 'answer'"),
        (json.dumps([{**item("b"), "answer": {"parameters": {}}}]), "field 'answer.name'"),
        (json.dumps([{**item("b"), "answer": {"name": "x", "parameters": []}}]), "field 'answer.parameters'"),
    ],
)
def test_a_wrong_file_is_named_by_file_item_and_field(scripted, tokenizer, folder, tmp_path, content, named):
    path = folder / "level-2-api_processed.json"
    path.write_text(content)
    engine = scripted(lambda prompt, position: pytest.fail("asked before the files were checked"))
    with pytest.raises(UserError) as error:
        evaluate(engine, tokenizer, ApiBankConfig(), folder, tmp_path / "out")
    assert str(path) in str(error.value)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_level_is_named(folder):
    (folder / "level-3-api_processed.json").unlink()
    with pytest.raises(UserError, match=r"level-3-api_processed\.json: no such file"):
        api_bank.read_level(folder, 3)


@pytest.mark.skipif(REAL is None, reason=missing("api-bank"))
def test_the_published_files(scripted, tokenizer, tmp_path):
    items = [item for level in api_bank.LEVELS for item in api_bank.read_level(REAL, level)]
    assert len(items) == 597
    wanted = [item.wanted for item in items]
    engine = scripted(lambda prompt, position: response.render(think="t", calls=[wanted[position]], response=None))
    report = evaluate(engine, tokenizer, ApiBankConfig(), REAL, tmp_path)
    assert report.metrics["api_bank/overall_soft"] == report.metrics["api_bank/overall_strict"] == 1
    assert [report.metrics[f"api_bank/count/level_{n}"] for n in api_bank.LEVELS] == [399, 67, 131]
