"""bfcl-eval's multi-turn executor and checker, in a process that can be killed; `executor.py` starts it.

A script, not a module to import: it reads and writes JSON on the socket whose number is its argument. It uses nothing
but the standard library and bfcl-eval, whose code runs unchanged but for one thing: where it passes a call to `eval`,
the name finds the strict evaluator below.

Requests: {"execute": id, "steps": [[call, …], …]} gives the results of the last step; {"judge": id, "turns": [[[call,
…], …], …]} the verdict. Calls are Python text. Every request begins with fresh instances and replays all calls.
"""

import ast
import inspect
import json
import os
import resource
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from bfcl_eval import utils
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

MODEL = "Qwen/Qwen3-1.7B-FC"  # a part of the instances' names, which may show in results: as `bfcl evaluate` names it
ADDRESS_SPACE = 2**30  # bytes
LARGEST = 10**6  # characters or items of a result, and characters of all results of a step; honest ones: below a tenth
OUT_OF_MEMORY = 3  # exit code

Turns = list[list[list[str]]]


def strict_eval(text: str) -> Any:
    """The value of a call on an instance of a dialogue, with literal arguments or such calls; nothing else.

    Errors have the text that Python's `eval` gives them, as far as a call of this kind can fail.
    """
    tree = compile(text.lstrip(" \t"), "<string>", "eval", ast.PyCF_ONLY_AST)
    assert isinstance(tree, ast.Expression)
    return _value(tree.body)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | str() | int() | float() as value):
            return value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True) if key is not None}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(sign, ast.USub) else +number
        case ast.Call(func=function, args=positional, keywords=keywords):
            method = _method(function)
            return _call(method, [_value(item) for item in positional], keywords)
        case ast.Name(id=name):
            raise NameError(f"name '{name}' is not defined")
    raise ValueError(f"{type(node).__name__} is refused: an argument is a literal or a call")


def _call(method: Callable[..., Any], positional: list[Any], keywords: list[ast.keyword]) -> Any:
    named: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg is None:
            raise ValueError("** is refused")
        if keyword.arg in named:
            raise SyntaxError(f"keyword argument repeated: {keyword.arg} (<string>, line 1)")
        named[keyword.arg] = _value(keyword.value)
    try:
        result = method(*positional, **named)
    except MemoryError:
        # The official code would report this to the model, and `bfcl evaluate`, without a limit, would take the memory.
        os._exit(OUT_OF_MEMORY)
    if _is_large(result):
        os._exit(OUT_OF_MEMORY)
    return result


def _is_large(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_large, value.values()))
    return isinstance(value, (str, list, tuple)) and len(value) > LARGEST


def _method(node: ast.expr) -> Callable[..., Any]:
    """The public method of an instance that `node` names."""
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in _instances():
            method = getattr(vars(multi_turn_utils)[owner], name, None)
            if name.startswith("_") or not inspect.ismethod(method):
                raise AttributeError(f"{owner!r} has no public method {name!r}")
            return method
    root = node
    while isinstance(root, ast.Attribute):
        root = root.value
    if isinstance(root, ast.Name):
        raise NameError(f"name '{root.id}' is not defined")
    raise ValueError(f"{type(root).__name__} is refused as the function of a call")


def _instances() -> list[str]:
    return [name for name in vars(multi_turn_utils) if name.endswith("_instance")]


@cache
def _category(name: str) -> dict[str, tuple[dict[str, Any], list[list[str]]]]:
    """Id → the official entry, without functions, and its ground truth; they belong together by position."""
    entries = utils.load_file(utils.PROMPT_PATH / f"{utils.VERSION_PREFIX}_{name}.json")
    answers = utils.load_ground_truth_entry(name)
    return {entry["id"]: (entry, answer["ground_truth"]) for entry, answer in zip(entries, answers, strict=True)}


def _execute(id_: str, steps: list[list[str]]) -> dict[str, Any]:
    category = id_.rsplit("_", 1)[0]
    entry, _ = _category(category)[id_]
    results: list[str] = []
    for calls in steps:
        results, _ = multi_turn_utils.execute_multi_turn_func_call(
            calls, entry["initial_config"], entry["involved_classes"], MODEL, id_, "long_context" in category
        )
    return {"results": results}


def _judge(id_: str, turns: Turns) -> dict[str, Any]:
    """Rule of `eval_runner._evaluate_single_multi_turn_entry`; calls are decoded already.

    An exception in the checker, or a verdict that cannot be written to a file, would end `bfcl evaluate`: here it is a
    wrong answer that says so. A directory copied into itself makes such a verdict.
    """
    category = id_.rsplit("_", 1)[0]
    entry, gold = _category(category)[id_]
    if len(turns) != len(gold):
        error = f"{len(turns)} of {len(gold)} turns: the dialogue was stopped"
        return {"valid": False, "error_type": "multi_turn:force_terminated", "error": error}
    decoded = [[calls for calls in turn if not multi_turn_utils.is_empty_execute_response(calls)] for turn in turns]
    try:
        found = multi_turn_checker(decoded, gold, entry, category, MODEL)
        json.dumps(utils.make_json_serializable(found))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception as problem:
        return {"valid": False, "error_type": f"checker_error:{type(problem).__name__}", "error": str(problem)[:500]}
    if found["valid"]:
        return {"valid": True}
    details = found.get("details", {})
    shown = str(details.get("differences") or details.get("missing_items") or "")[:500]
    return {"valid": False, "error_type": found["error_type"], "error": f"{found['error_message']} {shown}".strip()}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "execute" in request:
            reply = _execute(request["execute"], request["steps"])
        else:
            reply = _judge(request["judge"], request["turns"])
    finally:
        for name in _instances():
            del vars(multi_turn_utils)[name]
    if sum(map(len, reply.get("results", []))) > LARGEST:
        os._exit(OUT_OF_MEMORY)
    return reply


def _serve(connection: Connection) -> None:
    multi_turn_utils.eval = strict_eval
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:  # the other side has no more
            return
        connection.send_bytes(json.dumps(_answer(request)).encode())


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
