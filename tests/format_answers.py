"""Answers to BFCL's category format_sensitivity: right, or corrupted in one of many ways."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from bfcl_gold import gold_calls

from rest_core.config import BfclConfig, GenerationConfig
from rest_core.evaluation.benchmark import Question
from rest_core.evaluation.bfcl.benchmark import Bfcl
from rest_core.evaluation.bfcl.categories import CATEGORIES
from rest_core.evaluation.bfcl.format_sensitivity import category_of, question_of
from rest_core.evaluation.bfcl.formats import FORMATS
from rest_core.evaluation.evaluate import evaluate
from rest_core.evaluation.evaluation_report import EvaluationReport
from rest_core.evaluation.policy import Answer, Chat, Progress
from rest_core.records import ToolCall
from rest_core.seeds import derive


def gold(question: str) -> list[ToolCall]:
    """Calls that answer the question with this id, such as "simple_python_58"."""
    return gold_calls(CATEGORIES[question.rsplit("_", 1)[0]])[question]


def text_of(calls: Sequence[ToolCall], name: str) -> str:
    """The calls in a format, as its prompt asks for them."""
    settings = dict(part.split("=") for part in FORMATS[name].split("&"))
    text = _WRITERS[settings["ret_fmt"]](calls)
    return f"<TOOLCALL>{text}</TOOLCALL>" if settings["tool_call_tag"] == "True" else text


def _python(calls: Sequence[ToolCall]) -> str:
    arguments = [", ".join(f"{key}={value!r}" for key, value in call.arguments.items()) for call in calls]
    return f"[{', '.join(f'{call.name}({text})' for call, text in zip(calls, arguments, strict=True))}]"


def _json(calls: Sequence[ToolCall]) -> str:
    return f"```json\n{json.dumps([{'function': c.name, 'parameters': c.arguments} for c in calls])}\n```"


_TYPES = {
    str: "string",
    int: "integer",
    float: "float",
    bool: "boolean",
    list: "array",
    dict: "dict",
    type(None): "null",
}


def _verbose(calls: Sequence[ToolCall]) -> str:
    def parameter(key: str, value: Any) -> str:
        return f'<param name={quoteattr(key)} value={quoteattr(str(value))} type="{_TYPES.get(type(value), "tuple")}"/>'

    return _functions(calls, parameter, "<params>{}</params>")


def _concise(calls: Sequence[ToolCall]) -> str:
    def parameter(key: str, value: Any) -> str:
        type_ = _TYPES.get(type(value), "tuple")
        return f'<param name={quoteattr(key)} type="{type_}">{escape(str(value))}</param>'

    return _functions(calls, parameter, "{}")


def _functions(calls: Sequence[ToolCall], parameter: Callable[[str, Any], str], around: str) -> str:
    found = [(c.name, "".join(parameter(k, v) for k, v in c.arguments.items())) for c in calls]
    inner = "".join(f"<function name={quoteattr(name)}>{around.format(text)}</function>" for name, text in found)
    return f"<functions>{inner}</functions>"


_WRITERS = {"python": _python, "json": _json, "verbose_xml": _verbose, "concise_xml": _concise}


def _each(change: Callable[[Any], Any]) -> Callable[[list[ToolCall], random.Random], list[ToolCall]]:
    """Changes one argument of the first call."""

    def changed(calls: list[ToolCall], rng: random.Random) -> list[ToolCall]:
        key = rng.choice(sorted(calls[0].arguments)) if calls[0].arguments else "x"
        value = change(calls[0].arguments.get(key, 1))
        return [ToolCall(calls[0].name, {**calls[0].arguments, key: value}), *calls[1:]]

    return changed


_OF_CALLS: dict[str, Callable[[list[ToolCall], random.Random], list[ToolCall]]] = {
    "right": lambda calls, rng: calls,
    "no call": lambda calls, rng: [],
    "call twice": lambda calls, rng: [calls[0], *calls],
    "calls turned around": lambda calls, rng: calls[::-1],
    "other name": lambda calls, rng: [ToolCall(f"{calls[0].name}_x", calls[0].arguments), *calls[1:]],
    "argument left out": lambda calls, rng: [
        ToolCall(calls[0].name, dict([*calls[0].arguments.items()][1:])),
        *calls[1:],
    ],
    "further argument": lambda calls, rng: [ToolCall(calls[0].name, {**calls[0].arguments, "extra": 1}), *calls[1:]],
    "number as text": _each(str),
    "other number": _each(lambda value: value + 1 if isinstance(value, (int, float)) else 7),
    "negative number": _each(lambda value: -3.5),
    "null": _each(lambda value: None),
    "truth value": _each(lambda value: True),
    "tuple": _each(lambda value: tuple(value) if isinstance(value, list) else (value,)),
    "list": _each(lambda value: [value]),
    "object": _each(lambda value: {"a b": value}),
    "other text": _each(lambda value: f' it\'s "{value}" <&> \\n [x] '),
    "text in capitals": _each(lambda value: str(value).upper()),
}
_OF_TEXTS: dict[str, Callable[[str], str]] = {
    "prose before": lambda text: f"Sure, here are the calls: {text}",
    "prose behind": lambda text: f"{text}\n\nLet me know!",
    "code block": lambda text: f"```python\n{text}\n```",
    "in quotes": lambda text: f"'{text}'",
    "cut off": lambda text: text[: len(text) * 2 // 3],
    "end left out": lambda text: text.rstrip("`\n")[:-1],
    "twice": lambda text: f"{text}\n{text}",
    "without brackets": lambda text: text.replace("[", "").replace("]", ""),
    "tag left out": lambda text: text.replace("<TOOLCALL>", ""),
    "tag around": lambda text: f"<TOOLCALL>\n{text}\n</TOOLCALL>",
    "other case": lambda text: text.replace("function", "Function"),
    "only prose": lambda text: "None of the functions can be used.",
    "nothing": lambda text: "",
    "single quotes": lambda text: text.replace('"', "'"),
    "arguments in a list": lambda text: text.replace('"parameters": {', '"parameters": [').replace("}}", "]}"),
}
KINDS = (*_OF_CALLS, *_OF_TEXTS)


def answer(question: str, name: str, kind: str) -> str:
    """The answer in a format, corrupted in the way `kind`; the same at each call."""
    rng = random.Random(f"{question}:{kind}")
    if kind in _OF_TEXTS:
        return _OF_TEXTS[kind](text_of(gold(question), name))
    return text_of(_OF_CALLS[kind](gold(question), rng), name)


class Answers:
    """A `Policy` whose text for a question is found by the question's seed."""

    name, condition, template, native_tools, keeps_prompts = "answers", "scripted", "", False, True

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Args:
        texts: by the question's id.
        """
        self._texts = {derive(0, "answer", id_): text for id_, text in texts.items()}

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        return [Answer(self._texts[chat.seed], 1, 1, finished=True) for chat in chats]


@cache
def questions() -> dict[str, list[Question]]:
    return Bfcl(BfclConfig(categories=("format_sensitivity",))).questions()


class Loaded(Bfcl):
    """BFCL with the questions of format_sensitivity, which are loaded once a process."""

    def questions(self) -> dict[str, list[Question]]:
        return questions()


def run(texts: Mapping[str, str], out: Path, limit: int | None = None) -> EvaluationReport:
    """Evaluate these answers to format_sensitivity."""
    benchmark = Loaded(BfclConfig(categories=("format_sensitivity",), limit_per_category=limit))
    return evaluate(benchmark, Answers(texts), out=out)


def scripted(kinds: Sequence[str], shift: int = 0) -> dict[str, str]:
    """Id → an answer to every question in every format, of these kinds in turn."""
    ids = [question.id for asked in questions().values() for question in asked]
    kind = {id_: kinds[(n + n // 200 + shift) % len(kinds)] for n, id_ in enumerate(ids)}
    return {id_: answer(question_of(id_), str(category_of(id_)), kind[id_]) for id_ in ids}
