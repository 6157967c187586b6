"""bfcl-eval's own data and checkers, in a process of their own; `checkers.py` starts it and reads its answers.

A script, not a module to import: it reads one JSON request on standard input and writes one JSON reply on standard
output. It uses nothing but the standard library and bfcl-eval. A separate process, because

- bfcl-eval's checkers import the registry of every vendor's client, which is replaced below, and a replacement in
  `sys.modules` must not reach a program that uses a full bfcl-eval;
- bfcl-eval makes folders beside itself when it is imported, unless BFCL_PROJECT_ROOT names another place: an
  installation is read-only in a container;
- the checkers apply regular expressions that take exponential time on some strings ("[[1],[1],… without an end for a
  JavaScript array), and the strings are model output: a timer can stop them in a main thread only.

Requests: {"load": [category, …]} or {"check": {category: [{"id": …, "calls": [{name: arguments}, …]}, …]}}.
"""

import json
import signal
import sys
import types
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

TUPLE = "\0tuple"  # the only key of an object that stands for a tuple; the same in checkers.py
CHECK_SECONDS = 2.0  # for one entry; an honest one takes less than a millisecond


class _AnyModel(dict[str, Any]):
    """MODEL_CONFIG_MAPPING as far as the checkers read it: a model that may use dots in function names."""

    def __missing__(self, name: str) -> Any:
        return types.SimpleNamespace(underscore_to_dot=False)


def _replace_vendor_clients() -> None:
    module = types.ModuleType("bfcl_eval.constants.model_config")
    module.MODEL_CONFIG_MAPPING = _AnyModel()  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


def _replace_retries_and_parsers() -> None:
    """What the module with the prompts of format_sensitivity imports besides, and these do not use."""
    tenacity = types.ModuleType("tenacity")
    for name in ("retry", "retry_if_exception_message", "retry_if_exception_type", "wait_random_exponential"):
        setattr(tenacity, name, None)
    sys.modules[tenacity.__name__] = tenacity
    for language in ("java", "javascript"):
        module = types.ModuleType(f"bfcl_eval.model_handler.parser.{language.replace('javascript', 'js')}_parser")
        setattr(module, f"parse_{language}_function_call", None)
        sys.modules[module.__name__] = module


_replace_vendor_clients()

from bfcl_eval import utils  # noqa: E402
from bfcl_eval.constants.enums import Language  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402

Verdict = dict[str, Any]
Calls = list[dict[str, Any]]


def _language(category: str) -> Language:
    if utils.is_java(category):
        return Language.JAVA
    return Language.JAVASCRIPT if utils.is_js(category) else Language.PYTHON


def _ast(category: str, calls: Calls, entry: dict[str, Any], answer: Any) -> Verdict:
    """Rule of `eval_runner._evaluate_single_ast_entry`; calls are decoded already, so no decoder can fail."""
    return dict(ast_checker(entry["function"], calls, answer["ground_truth"], _language(category), category, "any"))


def _relevance(category: str, calls: Calls, entry: dict[str, Any], answer: Any) -> Verdict:
    """Rule of `eval_runner._evaluate_single_relevance_entry`: is there a call, where one is wanted or not?"""
    wanted = "irrelevance" not in category
    if utils.is_empty_output(calls) != wanted:
        return {"valid": True}
    if wanted:
        return {"valid": False, "error": ["no call was made"], "error_type": "relevance_error:decoder_failed"}
    return {"valid": False, "error": ["a call was made"], "error_type": "irrelevance_error:decoder_success"}


def _check_category(category: str, outputs: list[dict[str, Any]]) -> list[Verdict]:
    entries = utils.load_dataset_entry(category, include_prereq=False, include_language_specific_hint=False)
    formats = utils.is_format_sensitivity(category)
    if utils.is_relevance_or_irrelevance(category):
        check, answers = _relevance, [None] * len(entries)
    else:
        # Answers belong to questions by position; bfcl-eval says that some of their ids differ.
        check, answers = _ast, utils.load_ground_truth_entry(category)
    pairs = {entry["id"]: (entry, answer) for entry, answer in zip(entries, answers, strict=True)}
    return [
        _check_within_limit(
            partial(check, id_.split(":")[-1] if formats else category, _received(output["calls"]), *pairs[id_])
        )
        for output in outputs
        for id_ in [output["id"]]
    ]


def _received(value: Any) -> Any:
    """A value as it was before `checkers` wrote its tuples as JSON."""
    if isinstance(value, list):
        return [_received(item) for item in value]
    if isinstance(value, dict) and value.keys() == {TUPLE}:
        return tuple(map(_received, value[TUPLE]))
    return {key: _received(item) for key, item in value.items()} if isinstance(value, dict) else value


def _check_within_limit(check: Callable[[], Verdict]) -> Verdict:
    """The verdict; an exception in the checker, or its taking too long, is a wrong answer and says so."""
    late = TimeoutError(f"the official checker took more than {CHECK_SECONDS:g} s")
    expired = False

    def stop(signum: int, frame: Any) -> None:
        nonlocal expired
        expired = True
        raise late

    signal.signal(signal.SIGALRM, stop)
    # The timer goes on ringing: the checker has a bare `except`, behind which it may hang again.
    signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS, 0.2)
    try:
        verdict = check()
        signal.setitimer(signal.ITIMER_REAL, 0)
        if expired:
            raise late
    except Exception as error:
        return {"valid": False, "error": [f"{error}"], "error_type": f"checker_error:{type(error).__name__}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return verdict


def _load(category: str) -> list[dict[str, Any]]:
    """The entries; those of format_sensitivity have the official "prompt" as well."""
    entries: list[dict[str, Any]] = utils.load_dataset_entry(category)
    if utils.is_format_sensitivity(category):
        _replace_retries_and_parsers()
        from bfcl_eval.model_handler.utils import system_prompt_pre_processing_chat_model as prompted

        for entry in entries:
            entry["prompt"] = prompted(deepcopy(entry["question"][0]), entry["function"], entry["id"])
    return entries


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "load" in request:
        return {category: _load(category) for category in request["load"]}
    return {category: _check_category(category, outputs) for category, outputs in request["check"].items()}


if __name__ == "__main__":
    reply = sys.stdout
    sys.stdout = sys.stderr  # bfcl-eval prints
    json.dump(_answer(json.load(sys.stdin)), reply, default=str)
