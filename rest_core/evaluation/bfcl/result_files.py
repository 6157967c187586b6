"""Result and score files in BFCL's own layout, so that `bfcl evaluate` can score the same answers again.

    result/<handler>/<group>/BFCL_v4_<category>_result.json     one JSON object a line
    score/<handler>/<group>/BFCL_v4_<category>_score.json       a header line, then the wrong entries

`bfcl evaluate` finds the decoder of a result file by the name of its directory, which must be a model that it knows. So
it is named after the handler that reads our files, not after the model that wrote them: `HANDLER` is a
function-calling handler that reads one {"name", "arguments"} object a <tool_call> block and allows dots in names.
With a full installation of bfcl-eval, in the directory that holds `result/`:

    BFCL_PROJECT_ROOT=$PWD bfcl evaluate --model Qwen/Qwen3-1.7B-FC --test-category single_turn --partial-eval

The field `result` holds the calls as our parser read them, nothing else, so that both scorings see the same calls;
the whole response is in the field `response`. Two things would end `bfcl evaluate` for all categories, and are kept
from it without a change of verdict: an entry on which the official checker raises an exception has an empty `result`
and the exception in `checker_error`; half of a surrogate pair, which cannot be written as UTF-8, becomes U+FFFD. A
prompt that was skipped as too long is wrong for us, and for `bfcl evaluate` a response without a call.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_core.evaluation.benchmark import Row
from rest_core.evaluation.bfcl import checkers
from rest_core.evaluation.bfcl.calls import block
from rest_core.evaluation.bfcl.categories import CATEGORIES
from rest_core.evaluation.evaluation_report import write_jsonl
from rest_core.evaluation.policy import Answer
from rest_core.records import ToolCall

HANDLER = "Qwen/Qwen3-1.7B-FC"
"""The `--model` with which `bfcl evaluate` reads our result files."""

SAMPLES = "samples"
"""The directory of multi-turn samples beyond the first; each has its own `result` and `score` below its number."""

_DIRECTORY = HANDLER.replace("/", "_")


def clear(out: Path) -> None:
    """Remove the files of an earlier evaluation: `bfcl evaluate` scores every file that it finds there."""
    for place in (out, *(out / SAMPLES).glob("*")):
        for directory in (place / "result" / _DIRECTORY, place / "score" / _DIRECTORY):
            if directory.is_dir():
                shutil.rmtree(directory)


def write(out: Path, model_name: str, answered: Sequence[tuple[Answer, Row]], header: Mapping[str, Any]) -> None:
    """Write the result file and the score file of every single-turn category below `out`.

    Args:
        header: further figures of format_sensitivity.
    """
    by_file: dict[str, list[tuple[Answer, Row]]] = defaultdict(list)
    for answer, row in answered:
        by_file[CATEGORIES[row["category"]].file].append((answer, row))
    for name, members in by_file.items():
        wrong = [_wrong(answer, row, model_name) for answer, row in members if not row["valid"]]
        further = header if name == "format_sensitivity" else {}
        write_category(out, name, [_result(*member) for member in members], wrong, further)


def write_category(
    out: Path, name: str, results: Sequence[Row], wrong: Sequence[Row], header: Mapping[str, Any] | None = None
) -> None:
    correct, total = len(results) - len(wrong), len(results)
    first = {"accuracy": correct / total, "correct_count": correct, "total_count": total, **(header or {})}
    write_results(out, name, results)
    write_jsonl(out / "score" / _place(name) / f"BFCL_v4_{name}_score.json", [first, *wrong])


def write_results(out: Path, name: str, results: Sequence[Row]) -> None:
    write_jsonl(out / "result" / _place(name) / f"BFCL_v4_{name}_result.json", results)


def _place(name: str) -> Path:
    category = CATEGORIES.get(name.removesuffix("_prereq"))
    return Path(_DIRECTORY, name if category is None else category.directory)


def _result(answer: Answer, row: Row) -> dict[str, Any]:
    failed = checkers.failed(row["error_type"])
    entry = {
        "id": row["id"],
        "result": "" if failed else "\n".join(block(_written(call, row)) for call in answer.parsed.calls),
        "input_token_count": answer.prompt_tokens,
        "output_token_count": answer.response_tokens,
        "response": answer.text,
    }
    return entry | ({"checker_error": f"{row['error_type']}: {row['error']}"} if failed else {})


def _written(call: ToolCall, row: Row) -> ToolCall:
    """A tuple, which only calls in Python have, becomes a list; of a wrong answer a text, which is no list either."""
    return call if row["valid"] else ToolCall(call.name, _without_tuples(call.arguments))


def _without_tuples(value: Any) -> Any:
    if isinstance(value, tuple):
        return repr(value)
    if isinstance(value, list):
        return [_without_tuples(item) for item in value]
    return {key: _without_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _wrong(answer: Answer, row: Row, model_name: str) -> dict[str, Any]:
    return {
        "id": row["id"],
        "model_name": model_name,
        "test_category": CATEGORIES[row["category"]].file,
        "valid": False,
        "error": [row["error"]],
        "error_type": row["error_type"],
        "model_result_raw": answer.text,
        "model_result_decoded": [{call.name: call.arguments} for call in answer.parsed.calls],
    }
