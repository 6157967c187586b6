"""Chats in the spellings that OpenAI, LLaMA-Factory (ShareGPT), Hermes, ms-swift and TRL use, as a `Dialogue`.

They differ in names only. A turn is {"role" or "from", "content" or "value"}; the role may be

system     "system", "developer"
user       "user", "human"
assistant  "assistant", "gpt", "model"; its calls stand in "tool_calls" or "function_call", or in its text
           (`rest_core.data.written_calls`); its thoughts in "think", "reasoning_content", "reasoning" or "thinking",
           or in `<think> … </think>` before its text
a call     "tool_call", "function_call": the content is the call as JSON; it joins the assistant turn before it, so
           that several in a row are parallel calls
a result   "tool", "function", "observation", "tool_response", "function_response", "ipython"; may be empty. A turn
           of several `<tool_response> … </tool_response>` is as many results.

Content is text or a list of parts, of which those of text count. The tools stand in "tools" or "functions", or in the
system text: between `<tools>` and `</tools>`, as a JSON array (ToolACE), or as JSON objects (Glaive). Such a system
text also says how calls are to be written, in another way than ours, and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rest_core.data import written_calls
from rest_core.data.dialogues import NO_TOOL_FITS, Dialogue, Turn
from rest_core.data.fields import Record, Rejected, Unreadable, decoded, items, mapping, text
from rest_core.data.python_calls import NotCalls
from rest_core.data.readers.tool_lists import find_tools
from rest_core.records import Tool, ToolCall

Entry = tuple[str, Any]  # a turn's field in the record, and its value there


class Plain(dict[str, Any]):
    """A turn that is its content alone in the record: the turn's field is the content's."""

    def __init__(self, role: str, content: Any) -> None:
        super().__init__(role=role, content=content)


_Kind = Literal["system", "user", "assistant", "call", "tool"]
_ROLES: dict[str, _Kind] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    **dict.fromkeys(("tool_call", "function_call"), "call"),
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_response", "function_response", "ipython"),
        "tool",
    ),
}
_TEXT_KEYS = ("text", "value", "content")
_THINK_KEYS = ("think", "reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_THINK_PARTS = ("thinking", "reasoning")
_OTHER_PARTS = (
    *("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url"),
    *("file", "input_file"),
)
_PARTS = _TEXT_PARTS + _THINK_PARTS + _OTHER_PARTS  # compared one by one: a type may be anything
_RESULT_FROM, _RESULT_TO = "<tool_response>", "</tool_response>"
_THINK_END = "</think>"
_THINK_START = ("<think>", "<scratch_pad>", "<thinking>", "<reasoning>")


@dataclass(frozen=True)
class Content:
    """A message's content, taken apart."""

    text: str | None = None
    think: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_fields: tuple[str, ...] = ()


def numbered(value: Any, field: str) -> list[Entry]:
    """The entries of a list, each with its field."""
    return [(f"{field}[{n}]", decoded(entry, f"{field}[{n}]")) for n, entry in enumerate(items(value, field))]


def dialogue(
    record: Record,
    entries: Sequence[Entry],
    prompt_field: str,
    *,
    asked_from: int = 0,
    unanswered: Unreadable | None = None,
) -> Dialogue:
    """The dialogue of a record.

    Args:
        entries: its turns, the wanted answers among them.
        prompt_field: where the record has them, for messages.
        asked_from: the first entry that may be an answer; ones before it are history.
        unanswered: see `Dialogue`.

    Raises:
        Unreadable: the record has no tools, or they cannot be read.
    """
    kinds = [_kind_of(entry) for _, entry in entries]
    system_texts = [
        (place, _place(entry, field, key), entry[key])
        for place, ((field, entry), kind) in enumerate(zip(entries, kinds, strict=True))
        for key in ("content", "value")
        if kind == "system" and isinstance(entry.get(key), str)
    ]
    tools, tools_field, left_out = find_tools(record, system_texts)
    turns: list[Turn | Rejected] = []
    first_asked = 0
    broken = False
    for place, ((field, entry), kind) in enumerate(zip(entries, kinds, strict=True)):
        if place == asked_from:
            first_asked = len(turns)
        if broken:
            if kind in ("assistant", "call"):
                turns.append(Unreadable("an earlier turn cannot be read", field).rejected(record.where))
            continue
        if place in left_out:
            continue
        try:
            if kind == "assistant":
                turns.append(assistant(entry, field, tools, kinds[place + 1 : place + 2] == ["call"]))
            elif kind == "call":
                _add_call(turns, _call_turn(entry, field), joins=len(turns) > first_asked)
            else:
                turns += _other_turns(mapping(entry, field), field, kind)
        except Unreadable as error:
            turns.append(error.rejected(record.where))
            broken = True
    return Dialogue(tools, tuple(turns), prompt_field, tools_field, first_asked, unanswered)


def assistant(fields: Mapping[str, Any], field: str, tools: Sequence[Tool], call_follows: bool = False) -> Turn:
    """An assistant turn, or the target of a record: both spell calls, text and thoughts.

    Args:
        call_follows: the calls stand in the next entry, so that it may be thoughts alone.

    Raises:
        Unreadable: it is empty, or something that looks like a call cannot be read.
    """
    key = next((key for key in ("response", "content", "value") if fields.get(key) is not None), "content")
    place = _place(fields, field, key)
    own = content(fields.get(key), place)
    field_calls, fields_of_calls, no_call = _calls(fields, field)
    calls, call_fields = (*own.calls, *field_calls), (*own.call_fields, *fields_of_calls)
    think, rest = _thought_before(own.text) if own.text else (None, "")
    try:
        written = written_calls.split(_response_alone(rest), tools)
    except NotCalls as error:
        raise error.unreadable(place) from None
    if calls and written.calls and calls != written.calls:
        raise Unreadable("call cannot be read", place, "its text has other calls than its calls")
    if not calls:
        calls, call_fields = written.calls, (place,) * len(written.calls)
    response = _response_alone(written.text) or None
    if not calls and not response and not call_follows:
        if not no_call and not written.no_call:
            raise Unreadable("no call and no response", field)
        response = NO_TOOL_FITS
    return Turn("assistant", response, field, calls, call_fields, _own_thought(fields, field) or own.think or think)


def content(value: Any, field: str) -> Content:
    """A message's content: a text, or a list of parts.

    Raises:
        Unreadable: it is something else, or has parts that are no text.
    """
    if value is None or isinstance(value, str):
        return Content(value)
    if not isinstance(value, list):
        raise Unreadable("field of the wrong type", field, f"{type(value).__name__} instead of a string")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    call_fields: list[str] = []
    for number, part in enumerate(value):
        place = f"{field}[{number}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        fields = mapping(part, place)
        kind = fields.get("type", "text")
        if kind in ("tool_call", "function_call"):
            found = written_calls.calls_of(fields.get("value", part), place)
            calls += found
            call_fields += [place] * len(found)
            continue
        if kind not in _TEXT_PARTS + _THINK_PARTS:
            raise Unreadable("content that is no text", f"{place}.type", repr(kind)[:60])
        key = next((key for key in (*_TEXT_KEYS, kind) if isinstance(fields.get(key), str)), _TEXT_KEYS[0])
        inner = fields.get(key)
        if not isinstance(inner, str):
            raise Unreadable("field of the wrong type", f"{place}.{key}", f"{type(inner).__name__} instead of a string")
        (thoughts if kind in _THINK_PARTS else texts).append(inner)
    return Content("\n".join(texts), "\n".join(thoughts).strip() or None, tuple(calls), tuple(call_fields))


def _kind_of(entry: Any) -> _Kind | None:
    role = entry.get(_role_key(entry)) if isinstance(entry, dict) else None
    return _ROLES.get(role) if isinstance(role, str) else None


def _role_key(fields: Mapping[str, Any]) -> str:
    """The field of a turn that has its role; exports write the other one as null."""
    return "from" if fields.get("role") is None and "from" in fields else "role"


def _place(fields: Mapping[str, Any], field: str, key: str) -> str:
    return field if isinstance(fields, Plain) else f"{field}.{key}"


def _own_thought(fields: Mapping[str, Any], field: str) -> str | None:
    """The thought in a field of its own; a number or a flag of that name is none."""
    for name in _THINK_KEYS:
        thought = fields.get(name)
        if thought and isinstance(thought, str | list | dict) and not (isinstance(thought, str) and thought.isspace()):
            return text(thought, f"{field}.{name}").strip()
    return None


def _content_of(fields: Mapping[str, Any], field: str) -> tuple[Any, str]:
    """A turn's content and its field."""
    key = "value" if fields.get("content") is None and ("value" in fields or "from" in fields) else "content"
    return fields.get(key), _place(fields, field, key)


def _other_turns(fields: Mapping[str, Any], field: str, kind: _Kind | None) -> list[Turn]:
    """The turns of a system, user or tool entry: none for a system text that is empty, several for several results."""
    value, place = _content_of(fields, field)
    if kind == "tool":
        result = _result(value, place)
        results, rest = split_results(result, field)
        return results if results and not rest else [Turn("tool", result.strip(), field)]
    if kind == "user":
        user = content(value, place).text
        results, rest = split_results(user or "", field)
        if not results:
            return [Turn("user", text(user, place).strip(), field)]
        return [*results, Turn("user", rest, field)] if rest else results
    if kind == "system":
        system = content(value, place).text
        return [Turn("system", system, field)] if system and not system.isspace() else []
    name = _role_key(fields)
    raise Unreadable("unknown role", f"{field}.{name}", repr(fields.get(name))[:60])


def _call_turn(fields: Mapping[str, Any], field: str) -> Turn:
    value, place = _content_of(fields, field)
    think = None
    if isinstance(value, str):
        think, value = _thought_before(value)
    calls = written_calls.calls_of(value, place)
    call_fields = (place,) if len(calls) == 1 else tuple(f"{place}[{n}]" for n in range(len(calls)))
    return Turn("assistant", None if calls else NO_TOOL_FITS, field, tuple(calls), call_fields, think)


def _add_call(turns: list[Turn | Rejected], turn: Turn, *, joins: bool) -> None:
    """Append a call, as part of the assistant turn before it where it may join that."""
    last = turns[-1] if turns else None
    if joins and isinstance(last, Turn) and last.role == "assistant":
        turns[-1] = replace(
            last,
            text=None if turn.calls and last.text == NO_TOOL_FITS else last.text,
            calls=(*last.calls, *turn.calls),
            call_fields=(*last.call_fields, *turn.call_fields),
            think="\n".join(part for part in (last.think, turn.think) if part) or None,
        )
    else:
        turns.append(turn)


def _calls(fields: Mapping[str, Any], field: str) -> tuple[list[ToolCall], list[str], bool]:
    """The calls in an assistant turn's fields for them, where each stands, and whether it says that no call is right.

    An empty "calls" says so: it stands in targets. An empty "tool_calls" does not: chat servers write it into every
    message, as they write an empty "function_call".
    """
    spelled: list[list[Entry]] = []
    for key in ("calls", "tool_calls"):
        if fields.get(key) not in (None, "", {}):
            spelled.append(numbered(fields[key], f"{field}.{key}"))
    one = fields.get("function_call")
    if any(one.values()) if isinstance(one, dict) else one not in (None, ""):
        spelled.append([(f"{field}.function_call", one)])
    found: list[ToolCall] = []
    places: list[str] = []
    for entries in spelled:
        calls = [written_calls.call_of(mapping(entry, place), place) for place, entry in entries]
        if found and calls and calls != found[:1] and calls != found:
            raise Unreadable("call cannot be read", entries[0][0], f"other calls than in {places[0]!r}")
        if not found:
            found, places = calls, [place for place, _ in entries]
    return found, places, fields.get("calls") in ([], "[]")


def _result(value: Any, place: str) -> str:
    """The text of a tool's result, which may be any JSON value."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") in _PARTS for part in value):
        return content(value, place).text or ""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def split_results(value: str, field: str) -> tuple[list[Turn], str]:
    """The results in `<tool_response>` tags, where the text begins with one, and the text outside of them."""
    if not value.lstrip().startswith(_RESULT_FROM):
        return [], value
    pieces = [piece.partition(_RESULT_TO) for piece in value.split(_RESULT_FROM)[1:]]
    rest = "\n".join(outside.strip() for _, _, outside in pieces if outside.strip())
    return [Turn("tool", result.strip(), field) for result, _, _ in pieces], rest


def _thought_before(value: str) -> tuple[str | None, str]:
    """Thoughts in tags before the text, and the text; the opening tag may be missing: chat templates write it."""
    value = value.strip()
    if "<" not in value:
        return None, value
    for opening in _THINK_START:
        if value.startswith(opening):
            inner, closed, rest = value[len(opening) :].partition(f"</{opening[1:]}")
            return (inner.strip() or None, rest.strip()) if closed else (None, value)
    before, closed, rest = value.partition(_THINK_END)
    return (before.strip() or None, rest.strip()) if closed and _THINK_START[0] not in before else (None, value)


def _response_alone(value: str) -> str:
    """The inner text of `<response>` tags where there is nothing around them: our own format."""
    inner = value.strip()
    if inner.startswith("<response>") and inner.endswith("</response>"):
        inner = inner.removeprefix("<response>").removesuffix("</response>")
    return inner.strip()
