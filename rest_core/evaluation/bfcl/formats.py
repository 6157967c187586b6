"""The answer formats of BFCL's category format_sensitivity, and a reader of each.

Its prompts ask for calls as Python, JSON or XML, with or without a tag around them. A reader finds the calls that
bfcl-eval's `default_decode_ast_prompting` finds (`bfcl_eval/model_handler/utils.py` and `parser/`, bfcl-eval
2026.3.23). That one runs arithmetic of the model's through Python's `eval`, and takes exponential time on some JSON;
these run nothing.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

from rest_core.environments.environment import Verdict
from rest_core.records import ToolCall
from rest_core.response import Response

_AS = "ret_fmt={}&tool_call_tag={}&func_doc_fmt={}&prompt_fmt={}&style={}"
FORMATS: dict[str, str] = {
    **{
        f"format_{written}{'_tag' if tag else ''}_{documents}": _AS.format(
            written, tag, documents, "plaintext", "classic"
        )
        for written in ("python", "json", "verbose_xml", "concise_xml")
        for tag in (True, False)
        for documents in ("python", "xml", "json")
    },
    "format_python_json_markdown": _AS.format("python", False, "json", "markdown", "classic"),
    "format_python_json_experimental": _AS.format("python", False, "json", "plaintext", "experimental"),
}
"""Our name → bfcl-eval's. The parts of ours: how calls are written, a tag around them, how functions are described."""

_MOST_BITS = 10_000  # of a product
_UNREADABLE = (
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
_JSON_BEGIN, _JSON_END = re.compile(r"\[\s*\{"), re.compile(r"\}\s*\]")
_WRONG, _FAILED = "ast_decoder:decoder_wrong_output_format", "ast_decoder:decoder_failed"


def parse(text: str, name: str) -> Response:
    """Read an answer to a prompt of the format `name`; thoughts before it do not count. Never raises.

    The response has no spans. Its problem begins with bfcl-eval's error type, where that has one.
    """
    calls: list[ToolCall] = []
    problems: tuple[str, ...] = ()
    try:
        calls = _decode(text.rpartition("</think>")[2], name)
    except _WrongOutput as error:
        problems = (f"{_WRONG}: {error}",)
    except _UNREADABLE as error:
        problems = (f"{_FAILED}: {error}"[:500],)
    if not calls and not problems:
        problems = ("no call",)
    return Response(
        text, tuple(calls), call_spans=(), blocks=(), think=None, response=None, rejected=(), tags=(), problems=problems
    )


def unreadable(response: Response) -> Verdict | None:
    """The official verdict on an answer that cannot be read; None where the checker judges its calls."""
    for error_type in (_WRONG, _FAILED):
        if response.problems and response.problems[0].startswith(error_type):
            return Verdict(False, error_type, response.problems[0].removeprefix(f"{error_type}: "))
    return None


class _WrongOutput(Exception):
    """Readable, and no list of calls."""


def _decode(text: str, name: str) -> list[ToolCall]:
    """Raises: `_WrongOutput`, or one of `_UNREADABLE`."""
    settings = dict(part.split("=") for part in FORMATS[name].split("&"))
    text = text.strip("`\n ")
    text = f"{'' if text.startswith('[') else '['}{text}{'' if text.endswith(']') else ']'}"
    if settings["tool_call_tag"] == "True":
        text = _between(text, "<TOOLCALL>", "</TOOLCALL>").strip()
    found = _READERS[settings["ret_fmt"]](text)
    if not all(isinstance(arguments, dict) for _, arguments in found):
        raise _WrongOutput("a call's arguments have no names")
    return [
        ToolCall(str(called), {str(key): _plain(value) for key, value in arguments.items()})
        for called, arguments in found
    ]


def _between(text: str, begin: str, end: str) -> str:
    _, opened, rest = text.partition(begin)
    content, closed, _ = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"no {begin}…{end}")
    return content


def _plain(value: Any) -> Any:
    """A value that JSON can write; what no official answer has (sets, keys that are no text) becomes a tuple, which is
    of the wrong type."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (str, int, float)) else (repr(value),)


def _read_json(text: str) -> list[tuple[Any, Any]]:
    if "[" in text and text.rfind("]") > text.find("["):
        text = text[text.find("[") : text.rfind("]") + 1]
    if (begin := _JSON_BEGIN.search(text)) and (end := _JSON_END.search(text, begin.end())):
        text = text[begin.start() : end.end()]
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return []
    calls = [{call["function"]: call["parameters"]} for call in found if isinstance(call, dict)]
    return [item for call in calls for item in call.items()]


def _read_xml(text: str, *, verbose: bool) -> list[tuple[Any, Any]]:
    root = ElementTree.fromstring(f"<functions>{_between(text, '<functions>', '</functions>')}</functions>")
    read = _verbose_parameters if verbose else _concise_parameters
    return [(function.attrib["name"], read(function)) for function in root.findall("function")]


def _verbose_parameters(function: ElementTree.Element) -> dict[Any, Any]:
    place = function.find("params")
    found = [one.attrib for one in (function if place is None else place).findall("param")]
    return {one.get("name"): _typed(one.get("value", ""), one.get("type", "string")) for one in found}


def _concise_parameters(function: ElementTree.Element) -> dict[Any, Any]:
    found = function.findall("param")
    return {one.attrib["name"]: _typed((one.text or "").strip(), one.attrib.get("type", "string")) for one in found}


def _typed(text: str, type_: str) -> Any:
    match type_:
        case "integer":
            return int(text)
        case "float":
            return float(text)
        case "boolean":
            return text.lower() == "true"
        case "null":
            return None
        case "array" | "tuple" | "object" | "dict":
            return ast.literal_eval(text)
    return text


def _read_python(text: str) -> list[tuple[Any, Any]]:
    with warnings.catch_warnings(action="ignore"):  # about the model's code, such as "\d" in a text
        body = ast.parse(text.strip().strip("'"), mode="eval").body
    nodes = [body] if isinstance(body, ast.Call) else body.elts  # type: ignore[attr-defined]
    if not all(isinstance(node, ast.Call) for node in nodes):
        raise ValueError("an element is no call")
    return [_call(node) for node in nodes]


def _call(node: ast.Call) -> tuple[str, dict[Any, Any]]:
    """Positional arguments do not count, as officially."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    return ".".join(reversed(parts)), {keyword.arg: _value(keyword.value) for keyword in node.keywords}


def _value(node: ast.expr | None) -> Any:
    """The value that bfcl-eval reads, its oddities included: a name is a text, and any sign turns a number around."""
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(operand=ast.Constant(value=value)):
            return -value  # type: ignore[operator]
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(id=name):
            return name
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            return dict([_call(node)])
        case ast.Subscript(value=owner, slice=index):
            return f"{ast.unparse(owner)}[{ast.unparse(index)}]"
        case ast.BinOp():
            return _arithmetic(node)
    raise ValueError(f"{type(node).__name__} is no value")


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def _arithmetic(node: ast.expr) -> Any:
    """Of numbers, and texts put together. bfcl-eval evaluates any expression; what is none of these is unreadable."""
    match node:
        case ast.Constant(value=str() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_arithmetic(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return +_arithmetic(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _result(type(op), _arithmetic(left), _arithmetic(right))
    raise ValueError(f"{type(node).__name__} is no arithmetic")


def _result(kind: type[ast.operator], left: Any, right: Any) -> Any:
    if kind is not ast.Add and (isinstance(left, str) or isinstance(right, str)):
        raise ValueError("arithmetic with texts")
    if kind is ast.Pow and (abs(left) > 10**15 or abs(right) > 64):
        raise ValueError("a power that is too large")
    value = _OPERATORS[kind](left, right)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError("a number that is too large")
    return value


_READERS: dict[str, Callable[[str], list[tuple[Any, Any]]]] = {
    "python": _read_python,
    "json": _read_json,
    "verbose_xml": lambda text: _read_xml(text, verbose=True),
    "concise_xml": lambda text: _read_xml(text, verbose=False),
}
