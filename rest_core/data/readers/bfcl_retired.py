"""BFCL's questions that are retired from scoring, out of the installed bfcl-eval package.

Question files hold {id, question: [[{role, content}]], function: [BFCL function schemas]}; the answers are
["f(n=20, p=1/6)", …], or possible answers [{"f": {"n": [20, 21]}}], a list of accepted values for each argument.

Left out: `chatable`, of whose 200 questions 197 are those of scored categories, and `multi_turn_composite`, of whose
200 dialogues 49 begin as those of multi_turn_base do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from rest_core.data import bfcl_wheel
from rest_core.data.dialogues import NO_TOOL_FITS, Dialogue, Turn
from rest_core.data.fields import Record, Unreadable, items, mapping, text
from rest_core.data.python_calls import NotCalls, read_calls
from rest_core.data.tools import by_name, read_tools, same_name
from rest_core.records import Tool, ToolCall

_EXECUTABLE = ("exec_simple", "exec_multiple", "exec_parallel", "exec_parallel_multiple")
_FOLDER = "unused_datasets"
_REST_CALLS = f"{_FOLDER}/executable_eval_sanity_check/api_status_check_ground_truth_rest.json"
# A missing quote; alternatives of a condition written as further conditions.
_WRONG = ("sql_71", "sql_76", "sql_77")
# exec_simple has two questions in a row for each tool; 50 places on is a tool for something else, for each of them.
_OTHER_TOOL = 50
# One question in so many is asked again without its tool; were it each, a small model would learn to refuse.
_WITHHELD_EVERY = 3
# Without the tool that is called, the tools left could still serve in part ("calculate_total_price" for a booking).
_SERVED_IN_PART = frozenset({"exec_multiple_42", "exec_multiple_45"})


def records() -> Iterator[Record]:
    """All questions with their answers; at the end, questions whose tool is withheld, so that no call is right."""
    found = {category: list(_answered(category, _answers(category))) for category in (*_EXECUTABLE, "sql")}
    rest = {f"rest_{answer['idx']}": [answer["ground_truth"]] for answer in bfcl_wheel.entries(_REST_CALLS)}
    found["rest"] = list(_answered("rest", rest))
    found["withheld"] = list(_withheld(found["exec_simple"], found["exec_multiple"]))
    for entry in chain.from_iterable(found.values()):
        yield Record(entry, f"bfcl-eval: record {entry['id']}", entry["id"])


def _answers(category: str) -> dict[str, Any]:
    answers = bfcl_wheel.questions(category, f"{_FOLDER}/possible_answer")
    return {answer["id"]: answer["ground_truth"] for answer in answers}


def _answered(category: str, answers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for question in bfcl_wheel.questions(category, f"{_FOLDER}/question"):
        if question["id"] not in _WRONG:
            yield {**question, "ground_truth": answers.get(question["id"])}


def _withheld(simple: Sequence[dict[str, Any]], multiple: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """exec_simple's questions with another question's tool, exec_multiple's without the tool that is called."""
    for place, entry in list(enumerate(simple))[::_WITHHELD_EVERY]:
        yield _no_call(entry, simple[(place + _OTHER_TOOL) % len(simple)]["function"])
    for entry in multiple[::_WITHHELD_EVERY]:
        if entry["id"] not in _SERVED_IN_PART:
            called = {answer.partition("(")[0] for answer in entry["ground_truth"]}
            yield _no_call(entry, [tool for tool in entry["function"] if tool["name"] not in called])


def _no_call(entry: dict[str, Any], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"withheld_{entry['id']}", "question": entry["question"], "function": tools, "ground_truth": []}


def read(record: Record) -> Dialogue:
    """All calls of a question are one answer, in the order of the data; an empty list says that no tool fits."""
    tools = read_tools(record.fields.get("function"), "function")
    turns = [
        _turn(mapping(message, field), field)
        for field, message in _messages(items(record.fields.get("question"), "question"))
    ]
    calls: list[ToolCall] = []
    fields: list[str] = []
    for place, call in enumerate(items(record.fields.get("ground_truth"), "ground_truth")):
        field = f"ground_truth[{place}]"
        found = [_possible_answer(call, tools, field)] if isinstance(call, dict) else _written(call, tools, field)
        calls += found
        fields += [field] * len(found)
    answer = None if calls else NO_TOOL_FITS
    turns.append(Turn("assistant", answer, "ground_truth", tuple(calls), tuple(fields)))
    return Dialogue(tools, tuple(turns), "question", "function")


def _messages(question: list[Any]) -> Iterator[tuple[str, Any]]:
    """The messages of all steps with their fields; `sql` has no steps, its question is a list of messages."""
    for step, messages in enumerate(question):
        if isinstance(messages, dict):
            yield f"question[{step}]", messages
            continue
        for place, message in enumerate(items(messages, f"question[{step}]")):
            yield f"question[{step}][{place}]", message


def _turn(message: Mapping[str, Any], field: str) -> Turn:
    role = message.get("role", "user")
    if role not in ("system", "user"):
        raise Unreadable("unknown role", f"{field}.role", repr(role)[:60])
    return Turn(role, text(message.get("content"), f"{field}.content"), field)


def _written(call: Any, tools: Sequence[Tool], field: str) -> list[ToolCall]:
    try:
        return read_calls(f"[{text(call, field)}]", tools)
    except NotCalls as error:
        raise error.unreadable(field) from None


def _possible_answer(answer: Mapping[str, Any], tools: Sequence[Tool], field: str) -> ToolCall:
    """The call with the first accepted value of each argument."""
    if len(answer) != 1:
        raise Unreadable("call cannot be read", field, f"{len(answer)} names instead of one")
    name, accepted = next(iter(answer.items()))
    if (tool := by_name(tools).get(same_name(name))) is None:
        raise Unreadable("tool does not exist", field, repr(name)[:60])
    properties = tool.parameters["properties"]
    arguments = {
        argument: _accepted(values, properties.get(argument, {}), f"{field}.{argument}")
        for argument, values in mapping(accepted, field).items()
    }
    return ToolCall(tool.name, arguments)


def _accepted(values: Any, schema: Mapping[str, Any], field: str) -> Any:
    """The first accepted value. `sql` often has the value itself in place of the list of values: its type decides.

    A list of several lists, which may be one value of several rows or several values, is no value itself.
    """
    given = items(values, field)
    ambiguous = len(given) > 1 and isinstance(given[0], list)
    for value in (*given[:1], *(() if ambiguous else (given,))):
        if _is_of(value, schema):
            return value
    raise Unreadable("argument of the wrong type", field, repr(values)[:60])


def _is_of(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is of a schema's type, as far as lists and strings go, and one of its enumerated values."""
    if schema.get("type") == "array":
        return isinstance(value, list) and all(_is_of(entry, schema.get("items", {})) for entry in value)
    if schema.get("type") == "string" and not isinstance(value, str):
        return False
    return value in schema.get("enum", [value])
