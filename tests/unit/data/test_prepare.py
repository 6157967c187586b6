from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rest_core import response
from rest_core.chat import encode_prompt
from rest_core.config import DataConfig, DataSource
from rest_core.data import store
from rest_core.data.evaluation_sets import evaluation_questions
from rest_core.data.prepare import describe_drops, prepare
from rest_core.errors import UserError
from rest_core.styles.create import built_in_style

TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}, "day": {}}}}
Run = Callable[..., dict[str, Any]]


def record(question: str, city: str = "Oslo", **changes: Any) -> dict[str, Any]:
    target = {"calls": [{"name": "weather", "arguments": {"city": city}}]}
    return {"messages": [{"role": "user", "content": question}], "tools": [TOOL], "target": target, **changes}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


CITIES = [f"city{n}" for n in range(40)]
MANY = [record(f"How warm is it in {city} today, please?", city) for city in CITIES]


@pytest.fixture
def run(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Run:
    def prepared(
        *sources: DataSource | Path, questions: dict[str, list[str]] | None = None, out: str = "out", **settings: Any
    ) -> dict[str, Any]:
        made = tuple(s if isinstance(s, DataSource) else DataSource(location=str(s)) for s in sources)
        return prepare(
            DataConfig(sources=made, **{"max_prompt_tokens": 20000, **settings}),
            style=built_in_style("compact"),
            tokenizer=tokenizer,
            evaluation_questions=questions or {},
            out=tmp_path / out,
        )

    return prepared


def ids(folder: Path, split: str) -> list[str]:
    return list(store.load_split(folder, split)["id"])


def test_splits_columns_and_the_way_back(run: Run, tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    report = run(write(tmp_path / "own.jsonl", *MANY), validation_fraction=0.1)
    assert report["splits"] == {"sft": 36, "sft_validation": 4, "rl": 36, "rl_validation": 4}
    assert ids(tmp_path / "out", "sft_validation") == ids(tmp_path / "out", "rl_validation")
    row = store.load_split(tmp_path / "out", "rl")[0]
    assert list(row) == ["id", "source", "prompt", "tools", "reference", "prompt_tokens", "reference_tokens"]
    sample = store.to_sample(row)
    assert sample.tools[0].name == "weather" and sample.prompt[-1].role == "user"
    assert response.parse(sample.reference).calls[0].name == "weather"
    assert row["prompt_tokens"] == len(encode_prompt(tokenizer, sample.prompt))
    assert row["reference_tokens"] == len(sample.reference.encode()) + 1  # a token a byte, and the end
    again = store.to_row(sample, prompt_tokens=row["prompt_tokens"], reference_tokens=row["reference_tokens"])
    assert again == row


def test_same_seed_same_dataset_and_another_seed_another_split(run: Run, tmp_path: Path):
    path = write(tmp_path / "own.jsonl", *MANY)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(path, validation_fraction=0.2, seed=seed, out=name)
    assert ids(tmp_path / "a", "rl") == ids(tmp_path / "b", "rl")
    assert ids(tmp_path / "a", "rl") != ids(tmp_path / "c", "rl")


def test_every_drop_is_counted_by_source_and_reason(run: Run, tmp_path: Path):
    path = write(
        tmp_path / "own.jsonl",
        *MANY,
        MANY[0],
        "{nonsense",
        record("What?", target={"calls": [{"name": "wether", "arguments": {}}]}),
        record("What?", target={"calls": [{"name": "weather", "arguments": {"town": "x"}}]}),
        record("No tools?", tools=[]),
        record("Find the sum of 1 and 2."),
        record("Long " * 5000),
        record("Long answer?", target={"response": "x" * 900}),
    )
    report = run(path, questions={"bfcl/simple": ["find the sum of 1 and 2"]}, max_response_tokens=500)
    expected = {
        "exact duplicate": 1,
        "invalid JSON": 1,
        "tool does not exist": 1,
        "argument not declared by the tool": 1,
        "tools missing": 1,
        "overlaps bfcl/simple": 1,
        "prompt too long": 1,
        "reference too long": 1,
    }
    assert report["dropped"] == expected
    assert report["sources"] == {str(path): {"read": 48, "dropped": expected}}
    assert report["splits"]["rl"] + report["splits"]["rl_validation"] == 40
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == report
    assert "own.jsonl: line 42" in report["examples"]["invalid JSON"][0]


def test_drops_are_listed_with_counts_and_an_example_each(run: Run, tmp_path: Path):
    assert describe_drops(run(write(tmp_path / "good.jsonl", *MANY))) == []
    path = write(tmp_path / "own.jsonl", *MANY, MANY[0], "{nonsense", *[record("No tools?", tools=[])] * 2)
    head, tools, json_, duplicate = describe_drops(run(path))
    assert head == "dropped 4 of 44 (more examples: report.json):"
    assert tools == f"       2  tools missing, e.g. {path}: line 43: field 'tools'"
    assert json_.startswith(f"       1  invalid JSON, e.g. {path}: line 42 (Expect")  # cut where the path is long
    assert duplicate == f"       1  exact duplicate, e.g. {path}: line 41: field 'target'"


def test_many_reasons_and_long_examples_stay_readable():
    reasons = {f"reason {n}": 30 - n for n in range(25)}
    report = {"sources": {"x": {"read": 1000}}, "dropped": reasons, "examples": {r: ["line\n" * 100] for r in reasons}}
    lines = describe_drops(report)
    assert len(lines) == 22 and lines[-1].strip() == "and for 5 further reasons"
    assert all(len(line) < 220 and "\n" not in line for line in lines)


def test_stop_names_file_line_and_field_and_writes_nothing(run: Run, tmp_path: Path):
    path = write(tmp_path / "own.jsonl", MANY[0], "{nonsense")
    with pytest.raises(UserError, match=r"own\.jsonl: line 2: invalid JSON .*data\.on_invalid=drop"):
        run(path, on_invalid="stop")
    path = write(tmp_path / "own.jsonl", MANY[0], record("x", target={"calls": [{"name": "w", "arguments": {}}]}))
    with pytest.raises(
        UserError, match=r"own\.jsonl: line 2: field 'target\.calls\[0\]': tool does not exist \('w' is none of"
    ):
        run(path, on_invalid="stop")
    assert not (tmp_path / "out").exists()


def test_nothing_usable_names_the_top_reasons(run: Run, tmp_path: Path):
    path = write(tmp_path / "own.jsonl", "{", record("x", tools=[]), record("y", tools=[]))
    why = r"tools missing: 2, invalid JSON: 1\); for example .*line 2"
    with pytest.raises(UserError, match=rf"own\.jsonl: none of 3 records is usable for sft \({why}"):
        run(path)
    assert not (tmp_path / "out").exists()


def test_steps_of_a_dialogue_stay_on_one_side(run: Run, tmp_path: Path):
    def dialogue(city: str) -> dict[str, Any]:
        call = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": city}}}]}
        ask, result = {"role": "user", "content": f"Warm in {city}?"}, {"role": "tool", "content": "4"}
        return {"messages": [ask, call, result, {"role": "assistant", "content": "Cold."}], "tools": [TOOL]}

    report = run(write(tmp_path / "own.jsonl", *(dialogue(city) for city in CITIES)), validation_fraction=0.25)
    assert report["splits"]["rl"] == 60 and report["splits"]["rl_validation"] == 20

    def dialogues(split: str) -> set[str]:
        return {id.rpartition(".")[0] for id in ids(tmp_path / "out", split)}

    assert not dialogues("rl") & dialogues("rl_validation")


def test_what_validates_in_one_use_trains_in_none(run: Run, tmp_path: Path):
    path = write(tmp_path / "own.jsonl", *MANY)
    part = write(tmp_path / "part.jsonl", *MANY[:25])
    sources = DataSource(location=str(path), use=("sft",)), DataSource(location=str(part), use=("rl",))
    report = run(*sources, validation_fraction=0.2)
    assert report["dropped"] == {}  # the same records in both uses are no duplicates

    def questions(split: str) -> set[str]:
        return {row["prompt"][-1]["content"] for row in store.load_split(tmp_path / "out", split)}

    held_out = questions("rl_validation") | questions("sft_validation")
    assert questions("rl_validation") and questions("sft_validation")
    assert not held_out & (questions("sft") | questions("rl"))


def test_rl_fraction_divides_what_serves_both(run: Run, tmp_path: Path):
    path = write(tmp_path / "own.jsonl", *MANY)
    report = run(path, validation_fraction=0.1, rl_fraction=0.25)
    assert report["splits"] == {"sft": 27, "sft_validation": 4, "rl": 9, "rl_validation": 4}
    parts = [ids(tmp_path / "out", name) for name in ("sft", "rl", "rl_validation")]
    assert len(set().union(*parts)) == 40
    assert ids(tmp_path / "out", "sft_validation") == parts[2]


def test_rl_fraction_leaves_alone_what_serves_one_stage(run: Run, tmp_path: Path):
    both, rl = write(tmp_path / "both.jsonl", *MANY[:20]), write(tmp_path / "rl.jsonl", *MANY[20:])
    report = run(both, DataSource(location=str(rl), use=("rl",)), validation_fraction=0, rl_fraction=0.25)
    assert report["splits"] == {"sft": 15, "sft_validation": 0, "rl": 25, "rl_validation": 0}


def test_rl_fraction_does_not_divide_a_single_record(run: Run, tmp_path: Path):
    report = run(write(tmp_path / "own.jsonl", MANY[0]), rl_fraction=0.25)
    assert report["splits"] == {"sft": 1, "sft_validation": 0, "rl": 1, "rl_validation": 0}


def test_rewordings_of_a_request_stay_on_one_side(run: Run, tmp_path: Path):
    again = [record(f"Tell me the weather forecast for {city}.", city) for city in CITIES]
    run(write(tmp_path / "own.jsonl", *MANY, *again), validation_fraction=0.3, rl_fraction=0.5)
    names = {split: ids(tmp_path / "out", split) for split in ("sft", "rl", "rl_validation")}
    lines = {split: Counter(int(name.rpartition("-")[2]) % 40 for name in found) for split, found in names.items()}
    assert all(count == 2 for found in lines.values() for count in found.values())


def test_a_record_that_repeats_in_one_use_is_kept_for_the_other(run: Run, tmp_path: Path):
    sft = write(tmp_path / "sft.jsonl", MANY[0], *MANY[5:])
    both = write(tmp_path / "both.jsonl", *MANY[:5])
    report = run(DataSource(location=str(sft), use=("sft",)), both, validation_fraction=0)
    assert report["dropped"] == {"exact duplicate, kept for rl": 1}
    assert report["splits"] == {"sft": 40, "sft_validation": 0, "rl": 5, "rl_validation": 0}


def test_files_of_one_name_keep_their_ids_apart(run: Run, tmp_path: Path):
    for name, part in (("a", MANY[:20]), ("b", MANY[20:])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "own.jsonl", *part)
    run(tmp_path / "*" / "own.jsonl", validation_fraction=0)
    found = ids(tmp_path / "out", "rl")
    assert len(found) == len(set(found)) == 40


def test_limit_holds_for_each_format_of_a_folder(run: Run, toolrl_folder: Path):
    report = run(DataSource(location=str(toolrl_folder), limit=10), validation_fraction=0)
    assert report["sources"][str(toolrl_folder)]["read"] == 20
    assert report["splits"]["sft"] and report["splits"]["rl"]


def test_a_second_run_replaces_the_first_and_a_failed_one_leaves_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "own.jsonl", *MANY)
    out = tmp_path / "out"
    run(path, validation_fraction=0)
    run(write(tmp_path / "few.jsonl", *MANY[:10]), validation_fraction=0)
    assert len(ids(out, "rl")) == 10
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def full(*arguments: Any) -> None:
        (out / ".partial" / "rl").mkdir(parents=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save", full)
    with pytest.raises(UserError, match=r"out: the disk is full"):
        run(path)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert not (out / ".partial").exists()


def test_a_tokenizer_without_a_usable_chat_template_is_named(
    run: Run, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    path = write(tmp_path / "own.jsonl", *MANY)
    kept = tokenizer.chat_template
    try:
        for template in (None, "{{ raise_exception('no system role') }}"):
            tokenizer.chat_template = template
            with pytest.raises(UserError, match=r"the chat template of .* refuses messages of the roles system, user"):
                run(path)
    finally:
        tokenizer.chat_template = kept


def test_embedded_data_is_prepared_whole(run: Run):
    report = run(DataSource(location="embedded:bfcl-retired"), questions=evaluation_questions())
    assert report["sources"]["embedded:bfcl-retired"] == {
        "read": 456,
        "dropped": {
            "argument of the wrong type": 27,  # of sql
            "overlaps bfcl/live_irrelevance": 2,  # rest_46, rest_69
            "argument not declared by the tool": 1,  # exec_multiple_45 books a room with a price
        },
    }


def test_toolrl_data_and_why_its_records_fall_out(run: Run, toolrl_folder: Path, api_bank_folder: Path):
    report = run(toolrl_folder, questions=evaluation_questions(api_bank_folder), max_response_tokens=20000)
    assert report["sources"][str(toolrl_folder)] == {
        "read": 480,
        "dropped": {
            "reference not well formed": 17,  # thoughts that spell out the tags
            "argument not declared by the tool": 8,  # calls mangled in conversion
            "tool does not exist": 2,  # the same
        },
    }
    assert sum(report["splits"].values()) == 453


def test_a_reference_that_cannot_go_on_from_the_template_is_named(
    run: Run, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
):
    messages = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    no_thoughts = "{% if add_generation_prompt %}<think>\n\n</think>\n{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", messages + no_thoughts)
    with pytest.raises(UserError, match=r"own\.jsonl: line 1: field 'target': the chat template .* empty think block"):
        run(write(tmp_path / "own.jsonl", *MANY))
