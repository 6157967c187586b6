"""bfcl-eval's own command `bfcl evaluate` and its own dialogue loops, in a process of their own.

As a script, with vendors' clients replaced by stubs (nothing that is used here calls them):

    official_bfcl.py evaluate CATEGORY …       scores $BFCL_PROJECT_ROOT/result
    official_bfcl.py dialogues                 reads {"fc", "category", "scripts": {id: [text, …]}} on standard input
    official_bfcl.py decode                    reads [[format, text], …]
    official_bfcl.py formats                   reads {id: text} of format_sensitivity
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

HANDLER = "Qwen/Qwen3-1.7B-FC"


def evaluate(root: Path, *categories: str, seconds: float = 900) -> dict[str, str]:
    """Score the result files below `root`; id → error type of every wrong entry.

    Raises:
        AssertionError: the command failed.
    """
    _run(root, ["evaluate", *categories], "", seconds)
    wrong = {}
    for path in (root / "score").rglob("*_score.json"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        wrong.update({entry["id"]: entry.get("error_type") or entry["error"]["error_type"] for entry in lines[1:]})
    return wrong


def dialogues(root: Path, category: str, scripts: dict[str, list[str]], *, fc: bool) -> dict[str, Any]:
    """Run the official loop with scripted answers, in their order: a memory category's conversations come first.

    Returns:
        id → {"messages", "tools" (a step), "turns" (responses)}.
    """
    request = json.dumps({"fc": fc, "category": category, "scripts": scripts})
    reply: dict[str, Any] = json.loads(_run(root, ["dialogues"], request, 900))
    return reply


def decode(root: Path, texts: list[tuple[str, str]]) -> list[str | None]:
    """The calls that the official decoder of answer formats finds, as Python; None where it fails. It runs code."""
    reply: list[str | None] = json.loads(_run(root, ["decode"], json.dumps(texts), 900))
    return reply


def formats(root: Path, texts: dict[str, str]) -> dict[str, str]:
    """Score answers to format_sensitivity as a prompted model's; id → error type of every wrong one. It runs code."""
    reply: dict[str, str] = json.loads(_run(root, ["formats"], json.dumps(texts), 900))
    return reply


def _run(root: Path, arguments: list[str], text: str, seconds: float) -> str:
    done = subprocess.run(
        [sys.executable, "-P", __file__, *arguments],
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=seconds,
        cwd=root,
        env={**os.environ, "BFCL_PROJECT_ROOT": str(root), "TZ": "UTC", "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _stub(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def _import_official() -> Any:
    def same(function: Any) -> Any:
        return function

    _stub("overrides", final=same, override=same, EnforceOverrides=object)
    _stub("openai", OpenAI=types.SimpleNamespace)
    _stub("tenacity", **dict.fromkeys(("retry", "retry_if_exception_message", "retry_if_exception_type"), same))
    vars(sys.modules["tenacity"])["wait_random_exponential"] = same
    parsers = "bfcl_eval.model_handler.parser"
    _stub(f"{parsers}.java_parser", parse_java_function_call=None)
    _stub(f"{parsers}.js_parser", parse_javascript_function_call=None)
    config = types.SimpleNamespace(
        model_name="Qwen/Qwen3-1.7B",
        display_name="Qwen3-1.7B (FC)",
        url="",
        org="",
        license="",
        input_price=None,
        output_price=None,
        is_fc_model=True,
        underscore_to_dot=False,
    )
    _stub("bfcl_eval.constants.model_config", MODEL_CONFIG_MAPPING={HANDLER: config, HANDLER.replace("/", "_"): config})
    from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler

    config.model_handler = QwenFCHandler
    return QwenFCHandler


def _evaluate(categories: list[str]) -> None:
    _import_official()
    from bfcl_eval.eval_checker import eval_runner

    eval_runner.main([HANDLER], categories, None, None, partial_eval=True)


def _dialogues() -> None:
    request = json.load(sys.stdin)
    handler_class = _import_official()
    from bfcl_eval import utils
    from bfcl_eval.model_handler.base_handler import BaseHandler

    class Scripted(BaseHandler):  # type: ignore[misc]
        """The official loops with answers from a list, and a history of plain messages."""

        decode_execute = handler_class.decode_execute
        _extract_tool_calls = staticmethod(handler_class._extract_tool_calls)

        def begin(self, script: list[str]) -> None:
            self.script, self.tools = iter(script), []

        def _pre_query_processing_prompting(self, entry: Any) -> Any:
            return {"messages": [], "tools": [f["name"] for f in entry["function"]]}

        _pre_query_processing_FC = lambda self, data, entry: data  # noqa: E731

        def _compile_tools(self, data: Any, entry: Any) -> Any:
            return {"messages": data.get("messages", []), "tools": [f["name"] for f in entry["function"]]}

        def _query_FC(self, data: Any) -> Any:
            self.last = data["messages"]
            self.tools.append(data["tools"])
            return next(self.script), 0.0

        def _parse_query_response_FC(self, text: str) -> Any:
            return {"model_responses": text, "input_token": 1, "output_token": 1}

        def _add_assistant_message_FC(self, data: Any, response: Any) -> Any:
            data["messages"].append({"role": "assistant", "content": response["model_responses"]})
            return data

        def _add_execution_results_FC(self, data: Any, results: list[str], response: Any) -> Any:
            data["messages"] += [{"role": "tool", "content": result} for result in results]
            return data

        def add_first_turn_message_FC(self, data: Any, messages: Any) -> Any:
            data["messages"] += messages
            return data

        _add_next_turn_user_message_FC = add_first_turn_message_FC
        add_first_turn_message_prompting = add_first_turn_message_FC
        _add_next_turn_user_message_prompting = add_first_turn_message_FC
        _query_prompting = _query_FC
        _parse_query_response_prompting = _parse_query_response_FC
        _add_assistant_message_prompting = _add_assistant_message_FC
        _add_execution_results_prompting = _add_execution_results_FC

    found = {}
    entries = {entry["id"]: entry for entry in utils.load_dataset_entry(request["category"])}
    utils.populate_initial_settings_for_memory_test_cases(entries.values(), utils.RESULT_PATH / "snapshots")
    with contextlib.redirect_stdout(io.StringIO()):
        for id_, script in request["scripts"].items():
            # Its name is a part of the instances' names, which show in some results.
            handler = Scripted(HANDLER, 0, HANDLER if request["fc"] else "prompted", request["fc"])
            handler.begin(script)
            turns, _ = handler.inference(entries[id_], False, True)
            found[id_] = {"messages": handler.last, "tools": handler.tools, "turns": turns}
    json.dump(found, sys.stdout)


def _decode() -> None:
    _import_official()
    from bfcl_eval.constants.enums import ReturnFormat
    from bfcl_eval.model_handler.utils import default_decode_ast_prompting, parse_prompt_variation_params

    found: list[str | None] = []
    for config, text in json.load(sys.stdin):
        written, tagged, *_ = parse_prompt_variation_params(config)
        try:
            found.append(repr(default_decode_ast_prompting(text, ReturnFormat(written), tagged)))
        except Exception:  # as bfcl-eval's own runner, which takes any for an answer that cannot be read
            found.append(None)
    json.dump(found, sys.stdout)


def _formats() -> None:
    handler_class = _import_official()
    from bfcl_eval.constants.enums import Language, ReturnFormat
    from bfcl_eval.eval_checker.eval_runner import _evaluate_single_ast_entry
    from bfcl_eval.model_handler.utils import default_decode_ast_prompting, parse_prompt_variation_params
    from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry

    handler_class.decode_ast = staticmethod(default_decode_ast_prompting)
    category, texts, wrong = "format_sensitivity", json.load(sys.stdin), {}
    entries = load_dataset_entry(category, include_prereq=False, include_language_specific_hint=False)
    for entry, answer in zip(entries, load_ground_truth_entry(category), strict=True):
        if (id_ := entry["id"]) not in texts:
            continue
        written, tagged, *_ = parse_prompt_variation_params(id_.split(":")[1])
        verdict = _evaluate_single_ast_entry(
            handler_class,
            id_,
            texts[id_],
            answer["ground_truth"],
            entry,
            HANDLER,
            category,
            Language.PYTHON,
            ReturnFormat(written),
            tagged,
        )
        if not verdict["valid"]:
            wrong[id_] = verdict["error_type"]
    json.dump(wrong, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "evaluate":
        _evaluate(sys.argv[2:])
    else:
        {"dialogues": _dialogues, "decode": _decode, "formats": _formats}[sys.argv[1]]()
