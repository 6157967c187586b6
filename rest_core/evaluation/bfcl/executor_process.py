"""bfcl-eval's executor of dialogues, and their checkers, in a process that can be killed; `executor.py` starts it.

A script, not a module to import: it reads and writes JSON on the socket whose number is its argument. It uses nothing
but the standard library and bfcl-eval, whose code runs unchanged but for one thing: where it passes a call to `eval`,
the name finds the strict evaluator below.

Requests: {"execute": id, "steps": [[call, …], …]} gives the results of the last step; {"judge": id, "turns": [[[call,
…], …], …]} the verdict. Calls are Python text. Every request begins with fresh instances and replays all calls.

Dialogues of memory categories begin with a memory, {"memory": …}, which is the content of bfcl-eval's snapshot file, or
null where nothing was kept. {"show": id} gives the system prompt with it; {"keep": id, "steps": …} the memory after the
steps; {"judge_answer": id, "answer": text} the verdict.
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
from pathlib import Path
from typing import Any

from bfcl_eval import utils
from bfcl_eval.constants import default_prompts, eval_config
from bfcl_eval.eval_checker.agentic_eval.agentic_checker import agentic_checker
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


@cache
def _memory_category(name: str) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Id → the official entry of a question and its accepted answers, or of a conversation, which has none."""
    entries = utils.load_dataset_entry(name, include_prereq=True)
    answers = utils.load_ground_truth_entry(name)
    questions = [entry["id"] for entry in entries if not utils.is_memory_prereq(entry["id"])]
    accepted = {id_: answer["ground_truth"] for id_, answer in zip(questions, answers, strict=True)}
    return {entry["id"]: (entry, accepted.get(entry["id"], [])) for entry in entries}


def _memory_entry(id_: str) -> tuple[dict[str, Any], list[str]]:
    return _memory_category(utils.extract_test_category_from_id(id_, remove_prereq=True))[id_]


def _execute(id_: str, steps: list[list[str]], memory: Any = None) -> dict[str, Any]:
    return {"results": _replay(id_, steps, memory)[0]}


def _replay(id_: str, steps: list[list[str]], memory: Any = None) -> tuple[list[str], dict[str, Any]]:
    """The results of the last step's calls, and the instances by class."""
    category = id_.rsplit("_", 1)[0]
    if utils.is_memory(category):
        entry, _ = _memory_entry(id_)
        initial = _with_memory(entry, memory)
    else:
        entry, _ = _category(category)[id_]
        initial = entry["initial_config"]
    results: list[str] = []
    instances: dict[str, Any] = {}
    for calls in [[], *steps]:  # as the official loop does, first none: that makes the instances
        results, instances = multi_turn_utils.execute_multi_turn_func_call(
            calls, initial, entry["involved_classes"], MODEL, id_, "long_context" in category
        )
    return results, instances


def _with_memory(entry: dict[str, Any], memory: Any) -> dict[str, Any]:
    """The initial configuration, with `memory` as the snapshot that the official class reads."""
    utils.populate_initial_settings_for_memory_test_cases([entry], eval_config.RESULT_PATH)
    snapshot = _snapshot(entry)
    if memory is None:
        snapshot.unlink(missing_ok=True)
    else:
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        snapshot.write_text(json.dumps(memory), encoding="utf-8")
    return dict(entry["initial_config"])


def _snapshot(entry: dict[str, Any]) -> Path:
    directory = eval_config.RESULT_PATH / utils.get_directory_structure_by_id(entry["id"]) / "memory_snapshot"
    return Path(directory, f"{entry['scenario']}_final.json")


def _show(id_: str, memory: Any) -> dict[str, Any]:
    """Rule of `add_memory_instruction_system_prompt` in `model_handler/utils.py`."""
    entry, _ = _memory_entry(id_)
    kind = "UNIFIED" if "rec_sum" in id_ else "CORE_ARCHIVAL"
    template: str = getattr(default_prompts, f"MEMORY_BACKEND_INSTRUCTION_{kind}")
    (instance,) = _replay(id_, [], memory)[1].values()
    prompt = template.format(
        scenario_setting=default_prompts.MEMORY_AGENT_SETTINGS[entry["scenario"]],
        memory_content=instance._dump_core_memory_to_context(),
    )
    return {"prompt": prompt}


def _keep(id_: str, steps: list[list[str]], memory: Any) -> dict[str, Any]:
    entry, _ = _memory_entry(id_)
    for instance in _replay(id_, steps, memory)[1].values():
        instance._flush_memory_to_local_file()
    kept = _snapshot(entry).read_text(encoding="utf-8")
    if len(kept) > LARGEST:
        os._exit(OUT_OF_MEMORY)
    return {"memory": json.loads(kept)}


def _judge_answer(id_: str, answer: str) -> dict[str, Any]:
    """Rule of `eval_runner._evaluate_single_agentic_entry`, of the last response without a call."""
    if not answer:
        error = "Cannot find the last chat message that is not a function call."
        return {"valid": False, "error_type": "agentic:no_last_message", "error": error}
    _, accepted = _memory_entry(id_)
    found = agentic_checker(answer, accepted)
    if found["valid"]:
        return {"valid": True}
    return {"valid": False, "error_type": found["error_type"], "error": f"{found['error_message']} {accepted}"}


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


_REQUESTS: dict[str, Callable[..., dict[str, Any]]] = {
    "execute": _execute,
    "judge": _judge,
    "show": _show,
    "keep": _keep,
    "judge_answer": _judge_answer,
}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        (name, id_), *rest = request.items()
        reply = _REQUESTS[name](id_, **dict(rest))
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
