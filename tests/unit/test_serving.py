"""A trained model in use: what a client sees of a response, vLLM's plugin, the command of a server, the terminal."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.config import GenerationConfig, ModelConfig
from rest_core.environments.dialogue import run_dialogues
from rest_core.errors import UserError
from rest_core.evaluation.policy import Answer
from rest_core.records import ToolCall
from rest_core.response import parse, render
from rest_core.serving.chat_view import content_and_calls, split_reasoning, without_begun_tag
from rest_core.serving.checkpoint_style import as_trained
from rest_core.serving.plugin import PLUGIN_FILE, plugin_source
from rest_core.serving.terminal_chat import TerminalChat, described, functions_of
from rest_core.serving.vllm_serve import serve_command
from rest_core.styles.chat_template import chat_template
from rest_core.styles.create import built_in_style

CALLS = (ToolCall("f", {"a": "</tool_call> <response> in a string"}), ToolCall("g", {}))


def seen(text: str, *, final: bool = True) -> tuple[str, str, tuple[ToolCall, ...]]:
    reasoning, rest = split_reasoning(text, final=final)
    return (reasoning, *(("", ()) if rest is None else content_and_calls(rest, final=final)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (render(think="I know.", calls=CALLS, response=None), ("I know.", "", CALLS)),
        (render(think="I know.", calls=[], response="It is 3."), ("I know.", "It is 3.", ())),
        (render(think=None, calls=CALLS[1:], response="And?"), ("", "And?", CALLS[1:])),
        ("Just words.", ("", "Just words.", ())),
        ("<think> cut off", ("cut off", "", ())),
        ("<think> a </think>\nWords <tool_call>\n{", ("a", "Words", ())),
        ("<think> a </think> <response> cut o", ("a", "cut o", ())),
        ("<think> a </think>", ("a", "", ())),
        ("", ("", "", ())),
    ],
)
def test_what_a_client_sees(text: str, shown: tuple[str, str, tuple[ToolCall, ...]]) -> None:
    assert seen(text) == shown


PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "<", "</", "\n", " "),
        *("words ", '{"name": "f", "parameters": {}}', '{"name": "f", "parameters": {"a": "</tool_call>"}}', "{", '"'),
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_a_stream_shows_what_the_whole_response_shows(text: str) -> None:
    whole = seen(text)
    calls: tuple[ToolCall, ...] = ()
    for end in range(len(text) + 1):
        reasoning, _, now = seen(text[:end], final=False)
        assert whole[0].startswith(reasoning)
        assert now[: len(calls)] == calls  # none that was sent is taken back
        calls = now
    assert whole[2][: len(calls)] == calls
    rest = split_reasoning(text, final=True)[1] or ""
    assert parse(rest).rejected or whole[2] == calls


@pytest.mark.parametrize(
    "text", [render(think="I know.", calls=CALLS, response="Told."), render(think="T", calls=[], response="A < b\n c")]
)
def test_every_beginning_of_the_content_is_shown_once(text: str) -> None:
    contents = [seen(text[:end], final=False)[1] for end in range(len(text) + 1)]
    assert all(after.startswith(before) for before, after in pairwise(contents))
    assert contents[-1] == seen(text)[1]
    assert len(set(contents)) > len(contents[-1].split())  # it comes in pieces


def test_a_prompt_may_have_opened_the_thoughts() -> None:
    assert split_reasoning(" I know. </think> rest", final=True, opened=True) == ("I know.", " rest")
    assert split_reasoning("<think> I know. </think> rest", final=True, opened=True) == ("I know.", " rest")


def test_a_tag_that_has_begun_is_held_back() -> None:
    assert without_begun_tag("a </thi", "</think>", "<tool_call>") == "a "
    assert without_begun_tag("a </thinx", "</think>") == "a </thinx"


def test_the_plugin_is_one_file_that_needs_vllm_alone() -> None:
    source = plugin_source()
    tree = ast.parse(source)
    modules = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    foreign = {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in foreign} == {"vllm"}
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    names += [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert len(names) == len(set(names))  # no module's name hides another's


def test_the_plugins_parser_is_ours(tmp_path: Path) -> None:
    """Without vLLM's classes the file runs anywhere: it reads as this project does."""
    source = plugin_source()
    cut = source[: source.index("from vllm.")]
    (tmp_path / "reader.py").write_text(cut, encoding="utf-8")
    text = render(think="T", calls=CALLS, response="R")
    code = "import reader, sys; print([c.arguments for c in reader.parse(sys.argv[1]).calls])"
    done = subprocess.run([sys.executable, "-c", code, text], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([call.arguments for call in CALLS])


def test_a_checkpoint_in_our_format_is_served_with_our_parser(tmp_path: Path) -> None:
    (tmp_path / PLUGIN_FILE).write_text("", encoding="utf-8")
    command = serve_command(tmp_path, name="m", python="py", host="h", port=1, extra=("--dtype", "float32"))
    assert command[:5] == ["py", "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    assert command[command.index("--tool-call-parser") + 1] == "rest"
    assert command[command.index("--reasoning-parser-plugin") + 1] == str(tmp_path / PLUGIN_FILE)
    assert command[-2:] == ["--dtype", "float32"]


def test_a_checkpoint_in_a_native_style_is_served_with_vllms_parser(tiny_tokenizer: Any, tmp_path: Path) -> None:
    own = tiny_tokenizer.chat_template
    try:
        tiny_tokenizer.chat_template = own + "{% if tools %}<tool_call>{% endif %}"
        tiny_tokenizer.save_pretrained(tmp_path)
    finally:
        tiny_tokenizer.chat_template = own
    assert "hermes" in serve_command(tmp_path, name="m", python="py", host="h", port=1)
    with pytest.raises(UserError, match="its tokenizer does not load"):
        serve_command(tmp_path / "none", name="m", python="py", host="h", port=1)


TOOLS = '''
import math

def area(radius: float, exact: bool = False) -> float:
    """The area of a circle.

    Args:
        radius: in metres.
        exact: whether to round.
    """
    return round(math.pi * radius**2, 2)

def fails() -> str:
    """Fails."""
    raise ValueError("no\\nway")

def _hidden(): ...
'''


class Scripted:
    """A policy that answers by script."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), []

    def respond(self, chats: Any, config: Any, on_progress: Any = None) -> list[Answer]:
        self.asked += [[message.content for message in chat.history] for chat in chats]
        return [Answer(self.texts.pop(0), 1, 1, True) for _ in chats]


def test_a_person_talks_and_functions_of_a_file_are_called(tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    file.write_text(TOOLS, encoding="utf-8")
    functions = functions_of(file)
    assert list(functions) == ["area", "fails"]
    tool = described(functions["area"])
    assert tool.parameters["required"] == ["radius"] and tool.parameters["properties"]["radius"]["type"] == "number"
    words, shown = iter(["How large?", None]), []
    calls = [ToolCall("area", {"radius": 2}), ToolCall("fails", {}), ToolCall("gone", {}), ToolCall("area", {"r": 1})]
    policy: Any = Scripted(
        render(think="T", calls=calls, response=None), render(think="T", calls=[], response="12.57 m²")
    )
    chat = TerminalChat(functions, lambda: next(words), shown.append, parse)
    (dialogue,) = run_dialogues([chat], policy, GenerationConfig(), max_steps=5)
    assert dialogue.stop == "completed" and chat.verdict("completed").valid
    assert shown[0] == "  area(radius=2) → 12.57"
    assert shown[1] == "  fails() → error: ValueError: no way"
    assert "there is no tool 'gone'" in shown[2] and "unexpected keyword argument" in shown[3]
    assert shown[4] == "12.57 m²"
    assert policy.asked[1][2] == json.dumps(12.57)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:", "cannot be imported: SyntaxError"),
        ("x = 1", "defines no public function"),
        ("def f(a: int):\n    '''Does.'''", "f: .*docstring"),
        ("def f(a):\n    '''Does.\n\n    Args:\n        a: x.\n    '''", "f: .*type hint"),
    ],
)
def test_a_file_without_usable_functions_is_refused(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "tools.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match=rf"tools\.py: {message}"):
        functions_of(file)


@pytest.mark.parametrize("style", ["compact", "toolrl"])
def test_a_checkpoint_names_the_style_that_it_was_trained_in(tiny_tokenizer: Any, tmp_path: Path, style: str) -> None:
    model = ModelConfig(prompt_style="compact")
    assert as_trained(tmp_path, model) == model
    text = chat_template(built_in_style(style), tiny_tokenizer.chat_template, {"enable_thinking": True})
    (tmp_path / "chat_template.jinja").write_text(text, encoding="utf-8")
    assert as_trained(tmp_path, model) == model.model_copy(update={"prompt_style": style, "enable_thinking": True})
    (tmp_path / "chat_template.jinja").write_text(text.replace(f"style {style}", "style mine (sha256 1)"))
    with pytest.raises(UserError, match=r"trained in the style mine \(sha256 1\); set model\.prompt_style=file:PATH"):
        as_trained(tmp_path, model)
    mine = ModelConfig(prompt_style="file:mine.yaml")
    assert as_trained(tmp_path, mine).prompt_style == "file:mine.yaml"
    (tmp_path / "chat_template.jinja").write_text(tiny_tokenizer.chat_template, encoding="utf-8")
    assert as_trained(tmp_path, model) == model
