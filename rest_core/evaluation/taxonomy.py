"""Why an answer is wrong: one kind of error an answer, so that kinds can be counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rest_core.evaluation.policy import Answer, Chat
from rest_core.records import ToolCall

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


class Kind(StrEnum):
    """Kinds of error, in the order in which they are shown."""

    SKIPPED = "skipped"  # a prompt was over the limit, or a step of a dialogue could not be executed
    CUT_OFF = "cut off"  # no call before the limit of tokens, or of steps
    NO_CALL = "no call"
    UNREADABLE = "unreadable call"  # something that looks like a call, in no form that is read
    UNWANTED = "call where none is wanted"
    WRONG_COUNT = "wrong number of calls"
    WRONG_TOOL = "wrong tool"
    MISSING = "missing argument"
    EXTRA = "extra argument"
    WRONG_VALUE = "wrong value"
    WRONG_STATE = "wrong state after a turn"  # of a dialogue, like the next
    MISSING_RESULT = "missing result in a turn"
    WRONG_ANSWER = "wrong answer in words"  # to a question about a memory
    CHECKER = "the checker failed"
    OTHER = "other"


@dataclass(frozen=True)
class ExpectedCall:
    """A call that an answer key wants; `arguments` as the key writes them (BFCL: a list of accepted values each)."""

    name: str
    arguments: Mapping[str, Any]
    optional: frozenset[str] = frozenset()  # arguments that may be left out

    def to_json(self) -> dict[str, Any]:
        optional = {"optional": sorted(self.optional)} if self.optional else {}
        return {"name": self.name, "arguments": dict(self.arguments), **optional}


_OFFICIAL = {
    "skipped_prompt": Kind.SKIPPED,
    "irrelevance_error": Kind.UNWANTED,
    "wrong_count": Kind.WRONG_COUNT,
    "wrong_func_name": Kind.WRONG_TOOL,
    "missing_required": Kind.MISSING,
    "missing_optional": Kind.MISSING,
    "unexpected_param": Kind.EXTRA,
    "type_error": Kind.WRONG_VALUE,
    "value_error": Kind.WRONG_VALUE,
    "checker_error": Kind.CHECKER,
    "inference_error": Kind.SKIPPED,
    "force_terminated": Kind.CUT_OFF,
    "empty_turn_model_response": Kind.NO_CALL,
    "instance_state_mismatch": Kind.WRONG_STATE,
    "execution_response_mismatch": Kind.MISSING_RESULT,
    "answer_not_found": Kind.WRONG_ANSWER,
    "no_last_message": Kind.CUT_OFF,
}
"""By a part of bfcl-eval's error types, "simple_function_checker:wrong_count"; those left out are compared here."""
_COMPARED = {Kind.WRONG_COUNT, Kind.WRONG_TOOL, Kind.MISSING, Kind.EXTRA, Kind.WRONG_VALUE}
"""Kinds of calls that were compared with others: where no call was made, another kind says why."""


def official(error_type: str | None) -> Kind | None:
    """The kind that an error type of bfcl-eval names by itself, such as "multi_turn:instance_state_mismatch"."""
    parts = (error_type or "").split(":")
    return next((_OFFICIAL[part] for part in parts if part in _OFFICIAL), None)


def kind_of(chat: Chat, answer: Answer, expected: Sequence[ExpectedCall] | None, error_type: str | None) -> Kind:
    """Why an answer is wrong.

    Args:
        chat: that it answers.
        answer: an answer that was judged wrong.
        expected: the calls that are wanted; None where they are not known.
        error_type: bfcl-eval's, where its checker has judged.
    """
    if answer.skipped is not None:
        return Kind.SKIPPED
    named = official(error_type)
    if named is not None and named not in _COMPARED:
        return named
    if not answer.parsed.calls:
        if not answer.finished:
            return Kind.CUT_OFF
        return Kind.UNREADABLE if _looks_like_a_call(chat, answer) else Kind.NO_CALL
    if named is not None:
        return named
    return Kind.OTHER if expected is None else _compared(answer.parsed.calls, expected)


def _looks_like_a_call(chat: Chat, answer: Answer) -> bool:
    """Whether a tool_call block, or a tool's name in the manner of JSON or of Python, stands outside the thoughts."""
    if answer.parsed.rejected or "<tool_call>" in answer.parsed.tags:
        return True
    text = _THOUGHT.sub("", answer.text)
    return any(f'"{tool.name}"' in text or f"{tool.name}(" in text for tool in chat.tools)


def _compared(calls: Sequence[ToolCall], expected: Sequence[ExpectedCall]) -> Kind:
    """The first difference in: number of calls, names, names of arguments, values. Order of calls is free."""
    if len(calls) != len(expected):
        return Kind.WRONG_COUNT if expected else Kind.UNWANTED
    by_name = sorted(calls, key=lambda call: call.name)
    wanted = sorted(expected, key=lambda call: call.name)
    if [call.name for call in by_name] != [call.name for call in wanted]:
        return Kind.WRONG_TOOL
    given = [(call.arguments.keys(), one) for call, one in zip(by_name, wanted, strict=True)]
    if any(one.arguments.keys() - one.optional - names for names, one in given):
        return Kind.MISSING
    if any(names - one.arguments.keys() for names, one in given):
        return Kind.EXTRA
    return Kind.WRONG_VALUE
