"""Each reader on its published layout. toolace.json and xlam.json are written for these tests, field by field as the
hub's files are; ToolRL's own files are read where they lie beside the checkout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest

from rest_core import response
from rest_core.config import DataSource
from rest_core.data import readers
from rest_core.data.dialogues import NO_TOOL_FITS
from rest_core.data.fields import Rejected
from rest_core.errors import UserError
from rest_core.records import Sample, ToolCall
from rest_core.styles.create import built_in_style

FIXTURES = Path(__file__).parent / "fixtures"

COMPACT = built_in_style("compact")
THOUGHTS = COMPACT.thoughts
assert THOUGHTS is not None


def read(path: Path, format: str | None = None) -> tuple[list[Sample], list[Rejected]]:
    found = list(readers.read(path, format or readers.detect(path), COMPACT))
    return [f for f in found if isinstance(f, Sample)], [f for f in found if isinstance(f, Rejected)]


def write_jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_toolace_dialogue_becomes_one_sample_an_assistant_turn():
    samples, _ = read(FIXTURES / "toolace.json")
    first, second, third, refusal, *_ = samples
    assert response.parse(first.reference).calls == (
        ToolCall("Hotel Rates API", {"city": "Oslo", "nights": 2, "extras": ["breakfast"]}),
    )
    assert response.parse(second.reference).response == "Two nights with breakfast cost 1450 NOK."
    assert [call.arguments["to"] for call in response.parse(third.reference).calls] == ["EUR", "USD"]
    assert [m.role for m in third.prompt] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert third.prompt[2].content == first.reference
    assert response.parse(first.reference).think == THOUGHTS.call
    assert response.parse(refusal.reference).think == THOUGHTS.respond
    assert [tool.name for tool in first.tools] == ["Hotel Rates API", "/currency/convert"]
    assert first.tools[0].parameters["properties"]["nights"]["type"] == "integer"
    assert [s.id for s in samples] == [
        "toolace/toolace-0.1",
        "toolace/toolace-0.3",
        "toolace/toolace-0.5",
        "toolace/toolace-1",
    ]


def test_toolace_turn_that_cannot_be_read_takes_the_later_ones_along():
    samples, rejected = read(FIXTURES / "toolace.json")
    assert not any("Rome" in sample.prompt[1].content for sample in samples)
    assert [r.reason for r in rejected] == ["call cannot be read", "an earlier turn cannot be read"]
    assert "toolace.json: record 2: field 'conversations[1].value'" in str(rejected[0])


def test_xlam_record():
    (first, second, none), rejected = read(FIXTURES / "xlam.json")
    assert response.parse(first.reference).calls == (
        ToolCall("find_shop", {"kind": "beta"}),
        ToolCall("find_shop", {"kind": "aspirin"}),
    )
    assert first.tools[0].parameters["required"] == ["kind"]
    assert second.id == "xlam/xlam-1"  # its call of an unknown tool is for validation to find
    assert response.parse(none.reference).response == NO_TOOL_FITS
    assert not rejected


def test_own_jsonl_with_target_and_without():
    samples, rejected = read(FIXTURES / "own.jsonl")
    assert not rejected
    first, call, answer, thanks = samples
    assert response.parse(first.reference).think == "Oslo's weather is wanted."
    assert response.parse(call.reference).calls == (ToolCall("weather", {"city": "Rome"}),)
    assert call.prompt[0].content.endswith("\n\nBe brief.")
    assert [m.role for m in answer.prompt] == ["system", "user", "assistant", "tool"]
    assert response.parse(thanks.reference).response == "You are welcome."


TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}
ASK = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("record", "reason", "field"),
    [
        ("{", "invalid JSON", "line 2"),
        ("[1]", "not a JSON object", "line 2"),
        ('{"messages": ' + "[" * 100000, "nested too deeply", "line 2"),
        ({"messages": [ASK], "tools": []}, "tools missing", "'tools'"),
        ({"messages": [ASK]}, "field missing", "'tools'"),
        ({"messages": "Hi", "tools": [TOOL]}, "field of the wrong type", "'messages'"),
        ({"messages": [{"role": "bot", "content": "x"}], "tools": [TOOL]}, "unknown role", "'messages[0].role'"),
        ({"messages": [{"role": "user"}], "tools": [TOOL]}, "field missing", "'messages[0].content'"),
        ({"messages": [{"role": "user", "content": " "}], "tools": [TOOL]}, "field empty", "'messages[0].content'"),
        ({"messages": [ASK], "tools": [TOOL]}, "field missing", "'target'"),
        ({"messages": [ASK], "tools": [TOOL], "target": {}}, "no call and no response", "'target'"),
        ({"messages": [ASK], "tools": [TOOL], "target": "x"}, "field of the wrong type", "'target'"),
        (
            {"messages": [ASK], "tools": [TOOL], "target": {"calls": [{"name": "f", "arguments": "{"}]}},
            "invalid JSON",
            "'target.calls[0].arguments'",
        ),
        (
            {"messages": [{"role": "system", "content": "x"}], "tools": [TOOL], "target": {"response": "y"}},
            "no user message",
            "'messages'",
        ),
    ],
)
def test_bad_jsonl_record_is_rejected_by_line_and_field(tmp_path: Path, record: Any, reason: str, field: str):
    good = {"messages": [ASK], "tools": [TOOL], "target": {"calls": [{"name": "f", "arguments": {"a": 1}}]}}
    path = write_jsonl(tmp_path / "own.jsonl", good, record, good)
    samples, rejected = read(path)
    assert [s.id for s in samples] == ["jsonl/own-1", "jsonl/own-3"]
    assert [r.reason for r in rejected] == [reason]
    assert rejected[0].where.startswith(f"{path}: line 2") and field in rejected[0].where


@pytest.mark.parametrize("in_a_string", [False, True])
def test_deeply_nested_tool_schema_is_rejected(tmp_path: Path, in_a_string: bool):
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema}}
    tools: Any = [{"name": "f", "parameters": schema}]
    record = {"messages": [ASK], "tools": json.dumps(tools) if in_a_string else tools, "target": {"response": "x"}}
    path = write_jsonl(tmp_path / "own.jsonl", record)
    (rejected,) = readers.read(path, "jsonl", COMPACT)
    assert isinstance(rejected, Rejected) and rejected.reason == "nested too deeply"


def retired() -> tuple[dict[str, Sample], list[Rejected]]:
    """The embedded data: samples by the record's id, and what cannot be read."""
    found = list(readers.read_embedded(COMPACT))
    samples = {f.id.removeprefix("bfcl-retired/"): f for f in found if isinstance(f, Sample)}
    return samples, [f for f in found if isinstance(f, Rejected)]


def test_retired_questions_are_counted_by_category():
    samples, rejected = retired()
    assert Counter(name.rpartition("_")[0] for name in samples) == {
        "exec_simple": 100,
        "exec_multiple": 50,
        "exec_parallel": 50,
        "exec_parallel_multiple": 40,
        "sql": 70,
        "rest": 70,
        "withheld_exec_simple": 34,
        "withheld_exec_multiple": 15,
    }
    assert Counter(r.reason for r in rejected) == {"argument of the wrong type": 27}
    assert all(r.where.startswith("bfcl-eval: record sql_") for r in rejected)
    assert all(response.parse(s.reference).well_formed for s in samples.values())


def test_retired_answers():
    samples, rejected = retired()
    calls = {name: response.parse(sample.reference).calls for name, sample in samples.items()}
    assert calls["exec_multiple_0"] == (ToolCall("calc_binomial_probability", {"n": 20, "k": 5, "p": 1 / 6}),)
    assert ToolCall("calculate_mean", {"numbers": [1, 3, 4, 6, 8]}) in calls["exec_parallel_multiple_18"]
    assert any(250000 in call.arguments.values() for call in calls["exec_parallel_multiple_11"])
    grade = {"sql_keyword": "UPDATE", "table_name": "StudentGrades", "columns": ["MathGrade"]}
    grade |= {"update_values": ["95"], "conditions": [["StudentID = 12345"]]}
    assert calls["sql_4"] == (ToolCall("sql.execute", grade),)
    assert calls["sql_98"][0].arguments["insert_values"] == [["E123", "John", "Doe", "Manager"]]
    assert calls["sql_82"][0].arguments["columns"][:2] == ["InvestorName", "InvestmentType"]  # no list of values there
    assert calls["rest_30"] == (ToolCall("requests.get", {"url": "http://ip-api.com/json", "params": {"lang": "fr"}}),)
    assert calls["rest_1"][0].arguments["params"] == {"lat": 40.7128, "lon": -74.006}
    unread = {r.where.split("sql_")[1].split(":")[0] for r in rejected}
    # INSERT INTO is no keyword of the tool; rows or alternatives; a number for a string; a table's name in a list.
    assert {"8", "9", "19", "14", "15"} <= unread and unread.isdisjoint({"4", "82", "98"})


def test_retired_questions_whose_tool_is_withheld():
    samples, _ = retired()
    for name, sample in samples.items():
        if name.startswith("withheld_"):
            asked = samples[name.removeprefix("withheld_")]
            assert sample.prompt[-1] == asked.prompt[-1]
            assert response.parse(sample.reference).calls == ()
            assert response.parse(sample.reference).response == NO_TOOL_FITS
            called = {call.name for call in response.parse(asked.reference).calls}
            assert sample.tools and called.isdisjoint(tool.name for tool in sample.tools)
    assert [tool.name for tool in samples["withheld_exec_simple_78"].tools] == ["geometry_area_circle"]  # sorting
    assert [tool.name for tool in samples["withheld_exec_multiple_30"].tools] == [
        "retrieve_city_based_on_zipcode",
        "calculate_displacement",
    ]
    assert "withheld_exec_multiple_45" not in samples  # calculate_total_price would be a part of booking a room


@pytest.mark.parametrize(
    ("answer", "reason", "field"),
    [
        ([{"f": {"n": ["many"]}}], None, ""),
        ([{"f": {"n": [["many"]]}}], "argument of the wrong type", "ground_truth[0].n"),
        ([{"f": {"n": []}}], "argument of the wrong type", "ground_truth[0].n"),
        ([{"f": {}, "g": {}}], "call cannot be read", "ground_truth[0]"),
        ([{"g": {}}], "tool does not exist", "ground_truth[0]"),
        (["f(n=open('x'))"], "call cannot be read", "ground_truth[0]"),
        (None, "field missing", "ground_truth"),
    ],
)
def test_possible_answers_that_cannot_be_read_are_named(tmp_path: Path, answer: Any, reason: str | None, field: str):
    tool = {"name": "f", "parameters": {"type": "dict", "properties": {"n": {"type": "string"}}}}
    path = write_jsonl(tmp_path / "own.jsonl", {"question": [ASK], "function": [tool], "ground_truth": answer})
    (found,) = readers.read(path, "bfcl-retired", COMPACT)
    if reason is None:
        assert isinstance(found, Sample)
        assert response.parse(found.reference).calls == (ToolCall("f", {"n": "many"}),)
    else:
        assert isinstance(found, Rejected) and found.reason == reason and f"'{field}'" in found.where


def test_toolrl_files_are_kept_word_for_word(toolrl_folder: Path):
    raw = json.loads((toolrl_folder / "rlla_sft.json").read_text(encoding="utf-8"))
    samples, rejected = read(toolrl_folder / "rlla_sft.json")
    assert not rejected and len(samples) == 400
    assert [[m.content for m in s.prompt] for s in samples] == [[r["instruction"], r["input"]] for r in raw]
    assert [s.reference for s in samples] == [r["output"].strip() for r in raw]
    samples, rejected = read(toolrl_folder / "rlla_test.parquet")
    assert not rejected and len(samples) == 80
    assert all(s.source == "toolrl-rl" and s.tools for s in samples)


def test_toolrl_rl_field_that_is_missing_is_named(tmp_path: Path):
    path = tmp_path / "rl.parquet"
    prompt = [{"role": "system", "content": "no tools"}, {"role": "user", "content": "Hi"}]
    rows = [{"prompt": prompt, "reward_model": {"style": "rule"}}, {"prompt": None, "reward_model": {"style": "rule"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    _, rejected = read(path)
    assert [(r.reason, r.where.rpartition(" ")[2]) for r in rejected] == [
        ("tools missing", "'prompt[0].content'"),
        ("field missing", "'prompt'"),
    ]


@pytest.mark.parametrize("name", ["toolace.json", "xlam.json", "own.jsonl"])
def test_a_parquet_copy_is_detected_and_read_alike(tmp_path: Path, name: str):
    source = FIXTURES / name
    text = source.read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    if name == "own.jsonl":  # parquet has one type a column
        rows = [{key: json.dumps(value) for key, value in row.items()} for row in rows]
    path = tmp_path / f"{source.stem}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    parquet = [(s.prompt, s.reference, s.tools) for s in read(path)[0]]
    assert parquet == [(s.prompt, s.reference, s.tools) for s in read(source)[0]]


def test_unknown_fields_are_named_with_the_known_formats(tmp_path: Path):
    path = write_jsonl(tmp_path / "x.jsonl", {"question": 1, "answer": 2})
    with pytest.raises(UserError, match=r"x.jsonl: line 1: fields answer, question belong to no known format.*xlam"):
        readers.detect(path)


def test_unknown_format_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'xlam'"):
        readers.reader_of("xlan")


def test_every_format_that_can_be_configured_has_a_reader():
    assert set(get_args(DataSource.model_fields["format"].annotation)) == {"auto", *readers.READERS}
