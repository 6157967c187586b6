"""ToolRL's prompts as the dialogues that they were made of, and data sets in a model's own format."""

from __future__ import annotations

from pathlib import Path

import pytest

from rest_core.config import DataConfig, DataSource
from rest_core.data import readers
from rest_core.data.dialogues import Turn, Verbatim
from rest_core.data.fields import Rejected, Unreadable
from rest_core.data.prepare import prepare
from rest_core.data.store import load_split, to_sample
from rest_core.data.taken_apart import dialogue_of
from rest_core.records import Message, Sample, Tool, ToolCall
from rest_core.response import parse
from rest_core.styles.create import built_in_style
from rest_core.styles.native import NativeStyle
from rest_core.styles.template_style import TemplateStyle
from rest_core.training.tasks import make_tasks

TOOL = Tool("f", "", {"type": "object", "properties": {"x": {}}})
CALL = '<think> so </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'


def verbatim(user: str, reference: str = "<think> t </think>\n<response> done </response>") -> Verbatim:
    prompt = (Message("system", "instructions"), Message("user", user))
    return Verbatim(prompt, (TOOL,), reference, "prompt", "tools", "answer")


def test_a_dialogue_is_put_back_together() -> None:
    history = [
        Message("user", "How\nmuch?"),
        Message("assistant", CALL),
        Message("tool", "{}"),
        Message("user", "And?"),
    ]
    _, user = built_in_style("toolrl").render((TOOL,), history)
    made = dialogue_of(verbatim(user.content))
    turns = [turn for turn in made.turns if isinstance(turn, Turn)]
    assert [(turn.role, turn.text) for turn in turns] == [
        ("user", "How\nmuch?"),
        ("assistant", None),
        ("tool", "{}"),
        ("user", "And?"),
        ("assistant", "done"),
    ]
    assert turns[1].calls == (ToolCall("f", {"x": 1}),) and turns[1].think == "so"
    assert made.asked_from == 4 and made.turns[-1].field == "answer"


def test_a_message_without_marks_is_a_turn() -> None:
    made = dialogue_of(verbatim("plain words"))
    assert [turn.text for turn in made.turns if isinstance(turn, Turn)] == ["plain words", "done"]


@pytest.mark.parametrize(
    ("user", "reference", "reason"),
    [
        ("<user> never closed", "<response> a </response>", "history cannot be taken apart"),
        ("<user> a </user>\n\nwords of nobody", "<response> a </response>", "turn not well formed"),
        ("<user> a </user>", "no tags", "turn not well formed"),
    ],
)
def test_what_is_not_as_toolrl_writes_it_is_rejected(user: str, reference: str, reason: str) -> None:
    with pytest.raises(Unreadable) as raised:
        dialogue_of(verbatim(user, reference))
    assert raised.value.reason == reason


def test_a_template_of_the_users_own_is_used_for_toolrls_data(toolrl_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nmessages: [{role: system, content: Mine.}, {turns: {}}]\n", encoding="utf-8")
    entries = list(readers.read(toolrl_folder / "rlla_test.parquet", "auto", TemplateStyle(path)))
    samples = [entry for entry in entries if isinstance(entry, Sample)]
    assert len(samples) > len(entries) / 2
    assert all(sample.prompt[0] == Message("system", "Mine.") for sample in samples)


def native(tokenizer: object) -> NativeStyle:
    tokenizer.chat_template = tokenizer.chat_template.replace(  # type: ignore[attr-defined]
        "{% for m", "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m", 1
    )
    return NativeStyle(tokenizer)


def test_all_of_toolrl_becomes_native(toolrl_folder: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template)  # type: ignore[attr-defined]
    style, toolrl = native(tokenizer), built_in_style("toolrl")
    for file, count in (("rlla_sft.json", 400), ("rlla_test.parquet", 80)):
        path = toolrl_folder / file
        theirs = list(readers.read(path, "auto", toolrl))
        ours = list(readers.read(path, "auto", style))
        assert len(theirs) == len(ours) == count
        for before, after in zip(theirs, ours, strict=True):
            if isinstance(after, Rejected):
                assert isinstance(before, Rejected) or not parse(before.reference).well_formed
                continue
            assert isinstance(before, Sample)
            read, said = style.parse(after.reference, after.tools), parse(before.reference)
            assert read.calls == said.calls and read.think == said.think and read.response == said.response
            assert read.well_formed and after.prompt[0].role == "user" and after.prompt[-1].role in ("user", "tool")


def test_a_data_set_is_prepared_and_read_in_the_models_own_format(
    tokenizer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template)  # type: ignore[attr-defined]
    style = native(tokenizer)
    data = DataConfig(sources=(DataSource(location="embedded:bfcl-retired", limit=30),), max_prompt_tokens=8192)
    report = prepare(data, style=style, tokenizer=tokenizer, evaluation_questions={}, out=tmp_path)  # type: ignore[arg-type]
    assert report["prompt_style"] == "native, tool parser hermes" and report["splits"]["rl"] > 20
    samples = [to_sample(row) for row in load_split(tmp_path, "rl")]
    tasks = make_tasks(tokenizer, samples, style)
    assert all(task.reference.calls and task.reference.well_formed for task in tasks)
    assert all(message.role != "system" for sample in samples for message in sample.prompt)
    decoded = tokenizer.decode(tasks[0].prompt_ids)  # type: ignore[attr-defined]
    assert '"type": "function"' in decoded and decoded.endswith("<|start|>assistant\n")
