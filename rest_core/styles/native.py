"""The style `native`: the model's own chat template with `tools=`, and its family's way of writing calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rest_core.chat import Refused, opening, stop_texts, template_text, with_template
from rest_core.errors import UserError
from rest_core.records import Message, Tool, ToolCall
from rest_core.response import Kind, Response
from rest_core.styles.formats import FAMILIES
from rest_core.styles.formats.parts import thought
from rest_core.styles.style import Document, Style

AUTO = "auto"
# Marks of a family in its chat template; the first family that is found counts.
_SIGNS = (
    ("qwen3_coder", re.compile(r"<function=")),
    ("hermes", re.compile(r"<tool_call>")),
    ("mistral", re.compile(r"\[TOOL_CALLS\]")),
    (
        "pythonic",
        re.compile(
            r"<\|tool_call_start\|>|<\|python_start\|>|<\|tool_list_start\|>|python list of the calls|\[func_name1\("
        ),
    ),
    ("llama3_json", re.compile(r'Environment: ipython|\{"name": function name, "parameters"')),
)
_DATE = "26 Jul 2024"  # Llama's templates take it where there is no clock; with a clock, prompts differ from day to day
_QUESTION = {"role": "user", "content": "?"}
_PROBE_TOOL = Tool("f", "An example.", {"type": "object", "properties": {}, "required": []})


class NativeStyle(Style):
    """The style of a tokenizer's own chat template.

    Args:
        tokenizer: as `rest_core.model.loading.load_tokenizer` gives it.
        parser: a family, or "auto", which looks at the chat template.

    Raises:
        UserError: the chat template takes no tools, or shows no known family.
    """

    keeps_prompts = False
    native_tools = True

    def __init__(self, tokenizer: Any, parser: str = AUTO) -> None:
        template = template_text(tokenizer)
        if not re.search(r"\btools\b", template):
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} takes no tools; choose model.prompt_style=toolrl or "
                "compact, or a model whose template does"
            )
        family = family_of(tokenizer, template) if parser == AUTO else parser
        self.name, self.format = f"native, tool parser {family}", FAMILIES[family]()
        self.template = f"The model's own chat template, tool parser {family}:\n\n{template}"
        self._tokenizer = tokenizer
        self._takes_thoughts = "reasoning_content" in template
        self.variables = {"date_string": _DATE} if "date_string" in template else {}
        self._takes_several_calls = self._renders_several_calls()

    def render(
        self, tools: Sequence[Tool], history: Sequence[Message], documents: Sequence[Document] | None = None
    ) -> tuple[Message, ...]:
        """See `Style.render`: the turns unchanged, and before them the data's own system messages as one."""
        notes = [message.content for message in history if message.role == "system"]
        turns = [message for message in history if message.role != "system"]
        return (*([Message("system", "\n\n".join(notes))] if notes else []), *turns)

    def chat_input(self, prompt: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[dict[str, Any]], Document]:
        """See `Style.chat_input`: with calls and their results as the chat template expects them.

        Where it refuses several calls in a turn (Llama's), each call but the first is a turn before its own result.
        """
        messages: list[dict[str, Any]] = []
        waiting: list[dict[str, Any]] = []  # calls without a result
        made = 0
        for message in prompt:
            if message.role == "assistant":
                read = self.format.parse(message.content, tools)
                waiting = [_call(call, made + n) for n, call in enumerate(read.calls)]
                made += len(waiting)
                messages.append(self._turn(*self._thoughts_and_words(read), waiting))
                continue
            entry = {"role": message.role, "content": message.content}
            if message.role == "tool":
                call = waiting.pop(0) if waiting else _call(ToolCall("", {}), made)
                entry |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
            messages.append(entry)
        if not self._takes_several_calls:
            messages = _one_call_a_turn(messages)
        return messages, {**self.variables, **({"tools": [_schema(tool) for tool in tools]} if tools else {})}

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        """See `Style.write`: as the chat template itself writes such a turn.

        Where the template refuses the turn (Llama's refuse several calls) or drops a part of it, the family's own
        format is used. Where the template switches thinking off there are no thoughts.
        """
        if opening(self._tokenizer).no_thoughts:
            think = None
        written = self._by_template(think, calls, response)
        if written is None:
            written = self.format.write(think=think, calls=calls, response=response)
        return written

    def _by_template(self, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str | None:
        """The turn as the chat template writes it behind a prompt; None where that cannot be read back."""
        wanted = ((think or "").strip(), (response or "").strip(), [call.name for call in calls])
        words = response or ""
        if think is not None and not self._takes_thoughts:
            think, words = None, f"{thought(think)}{words}".strip()
        turn = self._turn(think, words, [_call(call, n) for n, call in enumerate(calls)])
        options: dict[str, Any] = {**self.variables, "tools": [_schema(_PROBE_TOOL)], "tokenize": False}
        try:
            whole = with_template(self._tokenizer, [_QUESTION, turn], add_generation_prompt=False, **options)
            begun = with_template(self._tokenizer, [_QUESTION], add_generation_prompt=True, **options)
        except Refused:
            return None
        if not whole.startswith(begun):
            return None
        rest = whole[len(begun) :]
        end = max(rest.rfind(text) for text in stop_texts(self._tokenizer))
        written = opening(self._tokenizer).text + rest[: max(end, 0)]
        read = self.format.parse(written)
        found = (read.think or "", read.response or "", [call.name for call in read.calls])
        return written if found == wanted and read.well_formed else None

    def _renders_several_calls(self) -> bool:
        """Whether the chat template takes a turn of several calls."""
        calls = [_call(ToolCall(_PROBE_TOOL.name, {}), number) for number in range(2)]
        results = [{"role": "tool", "content": "", "tool_call_id": c["id"], "name": _PROBE_TOOL.name} for c in calls]
        messages = [_QUESTION, self._turn(None, "", calls), *results]
        options: dict[str, Any] = {**self.variables, "tools": [_schema(_PROBE_TOOL)], "tokenize": False}
        try:
            with_template(self._tokenizer, messages, **options)
        except Refused:
            return False
        return True

    def _thoughts_and_words(self, read: Response) -> tuple[str | None, str]:
        """Of an assistant's turn; thoughts stay in the words where the template has no place for them."""
        first = read.blocks[0] if read.blocks and read.blocks[0].kind is Kind.THINK else None
        end = first.close_tag.end if first is not None else 0
        words = (read.response or "") if read.calls else read.text[end:].strip()
        if self._takes_thoughts:
            return (read.think if end else None), words
        return None, f"{read.text[:end]}\n\n{words}".strip()

    def _turn(self, think: str | None, words: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """An assistant message for the chat template."""
        turn: dict[str, Any] = {"role": "assistant", "content": words}
        if think is not None:
            turn["reasoning_content"] = think
        if calls:
            turn["tool_calls"] = list(calls)
        return turn


def family_of(tokenizer: Any, template: str) -> str:
    for family, sign in _SIGNS:
        if sign.search(template):
            return family
    raise UserError(
        f"the chat template of {tokenizer.name_or_path!r} writes calls in no known way; set model.tool_parser to one "
        f"of {', '.join(FAMILIES)}, or choose model.prompt_style=toolrl or compact"
    )


def _one_call_a_turn(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dialogue with each call but a turn's first as a turn of its own, before its result."""
    made: list[dict[str, Any]] = []
    later: dict[str, Any] = {}  # calls of the last turn but its first, by id
    for message in messages:
        if message["role"] == "assistant":
            calls = message.get("tool_calls", [])
            later = {call["id"]: call for call in calls[1:]}
            message = {**message, "tool_calls": calls[:1]} if later else message
        elif (call := later.pop(message.get("tool_call_id", ""), None)) is not None:
            made.append({"role": "assistant", "content": "", "tool_calls": [call]})
        made.append(message)
    return made


def _schema(tool: Tool) -> dict[str, Any]:
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": described}


def _call(call: ToolCall, number: int) -> dict[str, Any]:
    """A call of a message; Mistral's templates want ids of nine letters and digits."""
    return {
        "id": f"call{number:05d}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
