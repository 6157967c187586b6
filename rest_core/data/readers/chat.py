"""Chats in the spellings that OpenAI, LLaMA-Factory (ShareGPT), Hermes, ms-swift and TRL use, as a `Dialogue`.

They differ in names only. A turn is {"role" or "from", "content" or "value"}; the role may be

system     "system", "developer"
user       "user", "human"
assistant  "assistant", "gpt", "model"; its calls stand in "tool_calls" or "function_call", or in its words
           (`rest_core.data.written_calls`); its thoughts in "think", "reasoning_content", "reasoning" or "thinking",
           or in `<think> … </think>` before its words
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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rest_core.data import written_calls
from rest_core.data.dialogues import NO_TOOL_FITS, Dialogue, Turn, earlier_unreadable
from rest_core.data.fields import TOO_DEEP, Record, Rejected, Unreadable, items, mapping, parse_json, text, too_deep
from rest_core.data.python_calls import NotCalls
from rest_core.data.tools import read_tools
from rest_core.records import Tool, ToolCall

Entry = tuple[str, Any]  # a turn's field in the record, and what stands there


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
_TOOLS_KEYS = ("tools", "functions")
_TEXT_KEYS = ("text", "value", "content")
_THINK_KEYS = ("think", "reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_THINK_PARTS = ("thinking", "reasoning")
_OTHER_PARTS = (
    *("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url"),
    *("file", "input_file"),
)
_PARTS = _TEXT_PARTS + _THINK_PARTS + _OTHER_PARTS  # compared one by one: a type may be anything
_TOOLS_FROM, _TOOLS_TO = "<tools>", "</tools>"
_RESULT_FROM, _RESULT_TO = "<tool_response>", "</tool_response>"
_ARRAY_OF_OBJECTS = re.compile(r"\[\s*+\{")
_ATTEMPTS = 8  # places in a system text where a list of tools may begin: each costs a pass over the text
_THINK_END = "</think>"
_THINK_START = ("<think>", "<scratch_pad>", "<thinking>", "<reasoning>")


@dataclass(frozen=True)
class Said:
    """What a content says, its parts told apart."""

    words: str | None = None
    think: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_fields: tuple[str, ...] = ()


def numbered(value: Any, field: str) -> list[Entry]:
    """The entries of a list, each with its field."""
    return [
        (f"{field}[{n}]", _decoded(entry, f"{field}[{n}]") if isinstance(entry, str) else entry)
        for n, entry in enumerate(items(value, field))
    ]


def dialogue(record: Record, entries: Sequence[Entry], prompt_field: str, *, asked_from: int = 0) -> Dialogue:
    """The dialogue of a record.

    Args:
        entries: its turns, the wanted answers among them.
        prompt_field: where the record has them, for messages.
        asked_from: the first entry that may be an answer; ones before it are history.

    Raises:
        Unreadable: the record has no tools, or they cannot be read.
    """
    kinds = [_kind_of(entry) for _, entry in entries]
    told = {place: entries[place] for place, kind in enumerate(kinds) if kind == "system"}
    tools, tools_field, left_out = find_tools(record, told)
    turns: list[Turn | Rejected] = []
    first_asked = 0
    broken = False
    for place, ((field, entry), kind) in enumerate(zip(entries, kinds, strict=True)):
        if place == asked_from:
            first_asked = len(turns)
        if broken:
            if kind in ("assistant", "call"):
                turns.append(earlier_unreadable(record, field))
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
            turns.append(error.rejected(record))
            broken = True
    return Dialogue(tools, tuple(turns), prompt_field, tools_field, first_asked)


def find_tools(record: Record, system: Mapping[int, Entry]) -> tuple[tuple[Tool, ...], str, set[int]]:
    """The tools, the field that has them, and the places of the system turns that are left out: they tell of the tools.

    Args:
        system: the dialogue's system turns by their places.

    Raises:
        Unreadable: there are none, or they cannot be read.
    """
    texts = [
        (place, _place(entry, field, key), entry[key])
        for place, (field, entry) in system.items()
        for key in ("content", "value")
        if isinstance(entry.get(key), str)
    ]
    left_out = {place for place, _, said in texts if _TOOLS_TO in said}
    for key in _TOOLS_KEYS:
        if record.fields.get(key) not in (None, "", [], "[]", {}):
            return read_tools(record.fields[key], key), key, left_out
    for place, field, said in texts:
        if (tools := tools_in_text(said, field)) is not None:
            return tools, field, left_out | {place}
    given = next((key for key in _TOOLS_KEYS if key in record.fields), None)
    if texts and given is None:
        raise Unreadable("tools missing", texts[0][1], "no list of tools in it, nor in a field 'tools'")
    field = given or _TOOLS_KEYS[0]
    return read_tools(record.fields.get(field), field), field, left_out  # says what is wrong with them


def tools_in_text(said: str, field: str) -> tuple[Tool, ...] | None:
    """The tools that a system text lists, None where it lists none.

    Raises:
        Unreadable: what it lists are no tools.
    """
    start = said.find(_TOOLS_FROM)
    stop = said.find(_TOOLS_TO, start)
    # Hermes' own text says "within <tools></tools> XML tags" before it lists them.
    while start >= 0 and stop >= 0 and not said[start + len(_TOOLS_FROM) : stop].strip():
        start = said.find(_TOOLS_FROM, stop)
        stop = said.find(_TOOLS_TO, start)
    if 0 <= start < stop:
        try:
            return read_tools(written_calls.listed(said[start + len(_TOOLS_FROM) : stop]), field)
        except NotCalls as error:
            raise Unreadable("tool list cannot be read", field, str(error)) from None
    if (tools := tool_array(said, field)) is not None:
        return tools
    if (place := said.find("{")) < 0:
        return None
    objects, _ = written_calls.json_values(said, place)
    return read_tools(objects, field) if objects and all(map(_describes_tool, objects)) else None


def tool_array(said: str, field: str) -> tuple[Tool, ...] | None:
    """The tools of the first JSON array of objects in a text, None where there is none."""
    decoder = json.JSONDecoder()
    for attempt, start in enumerate(_ARRAY_OF_OBJECTS.finditer(said)):
        if attempt == _ATTEMPTS:
            break
        try:
            value, _ = decoder.raw_decode(said, start.start())
        except (ValueError, RecursionError):
            continue
        if too_deep(value):
            raise Unreadable(TOO_DEEP, field)
        if any(map(_describes_tool, value)):
            return read_tools(value, field)
    return None


def _describes_tool(value: Any) -> bool:
    """Whether an object in a text is a tool, and not an example of an answer that has a name."""
    return isinstance(value, dict) and (
        "function" in value or ("name" in value and ("parameters" in value or "description" in value))
    )


def lists_tools(said: str) -> bool:
    """Whether a system text has what begins a JSON array of objects, and no `<tools>`, as ToolACE's have."""
    return _TOOLS_TO not in said and _ARRAY_OF_OBJECTS.search(said) is not None


def assistant(fields: Mapping[str, Any], field: str, tools: Sequence[Tool], call_follows: bool = False) -> Turn:
    """An assistant turn, or the target of a record: both spell calls, words and thoughts.

    Args:
        call_follows: the calls stand in the next entry, so that it may be thoughts alone.

    Raises:
        Unreadable: it says nothing, or what looks like a call cannot be read.
    """
    key = next((key for key in ("response", "content", "value") if fields.get(key) is not None), "content")
    place = _place(fields, field, key)
    said = content(fields.get(key), place)
    own_calls, own_fields, no_call = _calls(fields, field)
    calls, call_fields = (*said.calls, *own_calls), (*said.call_fields, *own_fields)
    think, words = _thought_before(said.words) if said.words else (None, "")
    try:
        written = written_calls.split(_response_alone(words), tools) if words else written_calls.Said("")
    except NotCalls as error:
        raise Unreadable("call cannot be read", place, str(error)) from None
    if calls and written.calls and calls != written.calls:
        raise Unreadable("call cannot be read", place, "its words have other calls than its calls")
    if not calls:
        calls, call_fields = written.calls, (place,) * len(written.calls)
    response = (_response_alone(written.words) or None) if written.words else None
    if not calls and not response and not call_follows:
        if not no_call and not written.no_call:
            raise Unreadable("no call and no response", field)
        response = NO_TOOL_FITS
    thought = _own_thought(fields, field) or said.think or think
    return Turn("assistant", response, field, calls, call_fields, thought)


def content(value: Any, field: str) -> Said:
    """A message's content: a text, or a list of parts.

    Raises:
        Unreadable: it is something else, or has parts that are no text.
    """
    if value is None:
        return Said()
    if isinstance(value, str):
        return Said(value)
    if not isinstance(value, list):
        raise Unreadable("field of the wrong type", field, f"{type(value).__name__} instead of a string")
    words: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    call_fields: list[str] = []
    for number, part in enumerate(value):
        place = f"{field}[{number}]"
        if isinstance(part, str):
            words.append(part)
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
        said = fields.get(key)
        if not isinstance(said, str):
            raise Unreadable("field of the wrong type", f"{place}.{key}", f"{type(said).__name__} instead of a string")
        (thoughts if kind in _THINK_PARTS else words).append(said)
    return Said("\n".join(words), "\n".join(thoughts).strip() or None, tuple(calls), tuple(call_fields))


def _kind_of(entry: Any) -> _Kind | None:
    role = entry.get(_role_key(entry)) if isinstance(entry, dict) else None
    return _ROLES.get(role) if isinstance(role, str) else None


def _role_key(fields: Mapping[str, Any]) -> str:
    """The field of a turn that has its role; exports write the other one as null."""
    return "from" if fields.get("role") is None and "from" in fields else "role"


def _place(fields: Mapping[str, Any], field: str, key: str) -> str:
    return field if isinstance(fields, Plain) else f"{field}.{key}"


def _decoded(entry: str, field: str) -> Any:
    """A string of JSON stands for its object: `datasets` writes columns of mixed types so."""
    return parse_json(entry, field) if entry.lstrip().startswith("{") else entry


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
        return _results(_result(value, place), field)
    if kind == "user":
        said = content(value, place).words
        if said and said.lstrip().startswith(_RESULT_FROM):
            results, words = _results_and_words(said, field)
            return [*results, Turn("user", words, field)] if words else results
        return [Turn("user", text(said, place).strip(), field)]
    if kind == "system":
        said = content(value, place).words
        return [Turn("system", said, field)] if said and not said.isspace() else []
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
    """The calls of an assistant turn in fields of their own, where each stands, and whether "no call" is said.

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
    """What a tool gave back: text, or any JSON value."""
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") in _PARTS for part in value):
        return content(value, place).words or ""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _results(said: str, field: str) -> list[Turn]:
    """A result, or each of those that stand in `<tool_response>` tags with nothing around them."""
    results, words = _results_and_words(said, field) if said.lstrip().startswith(_RESULT_FROM) else ([], said)
    return [Turn("tool", said.strip(), field)] if words or not results else results


def _results_and_words(said: str, field: str) -> tuple[list[Turn], str]:
    """The results in `<tool_response>` tags, with which the text begins, and the words outside of them."""
    pieces = [piece.partition(_RESULT_TO) for piece in said.split(_RESULT_FROM)[1:]]
    words = "\n".join(outside.strip() for _, _, outside in pieces if outside.strip())
    return [Turn("tool", result.strip(), field) for result, _, _ in pieces], words


def _thought_before(said: str) -> tuple[str | None, str]:
    """Thoughts in tags before the words, and the words; the opening tag may be missing: chat templates write it."""
    said = said.strip()
    if "<" not in said:
        return None, said
    for opening in _THINK_START:
        if said.startswith(opening):
            inner, closed, rest = said[len(opening) :].partition(f"</{opening[1:]}")
            return (inner.strip() or None, rest.strip()) if closed else (None, said)
    before, closed, rest = said.partition(_THINK_END)
    return (before.strip() or None, rest.strip()) if closed and _THINK_START[0] not in before else (None, said)


def _response_alone(said: str) -> str:
    """What stands in `<response>` tags where there is nothing around them: our own format."""
    inner = said.strip()
    if inner.startswith("<response>") and inner.endswith("</response>"):
        inner = inner.removeprefix("<response>").removesuffix("</response>")
    return inner.strip()
