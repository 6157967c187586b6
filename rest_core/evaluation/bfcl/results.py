"""Result and score files in BFCL's own layout, so that `bfcl evaluate` can score the same answers again.

    result/<handler>/<group>/BFCL_v4_<category>_result.json     one JSON object a line
    score/<handler>/<group>/BFCL_v4_<category>_score.json       a header line, then the wrong entries

`bfcl evaluate` finds the decoder of a result file by the name of its folder, which must be a model that it knows. The
folder is therefore named after the handler that reads our files, not after the model that wrote them: `HANDLER` is a
function-calling handler that reads one {"name", "arguments"} object a <tool_call> block and allows dots in names.
With a full installation of bfcl-eval, in the folder that holds `result/`:

    BFCL_PROJECT_ROOT=$PWD bfcl evaluate --model Qwen/Qwen3-1.7B-FC --test-category single_turn --partial-eval

The field `result` holds the calls as our parser read them, nothing else, so that both scorings see the same calls;
the whole response is in the field `response`. Two things would end `bfcl evaluate` for all categories, and are kept
from it without a change of verdict: an entry on which the official checker raises an exception has an empty `result`
and the exception in `checker_error`; half of a surrogate pair, which cannot be written as UTF-8, becomes U+FFFD. A
prompt that was skipped as too long is wrong for us, and for `bfcl evaluate` a response without a call.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_core.evaluation.bfcl.categories import Category
from rest_core.evaluation.bfcl.official import Verdict
from rest_core.evaluation.generation import Answer
from rest_core.evaluation.report import write_jsonl
from rest_core.evaluation.statistics import Score
from rest_core.records import ToolCall

HANDLER = "Qwen/Qwen3-1.7B-FC"
"""What `bfcl evaluate --model` is to be given for our result files."""

_FOLDER = HANDLER.replace("/", "_")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Outcome:
    """One entry of a category: what the model answered, the calls in it, and the verdict."""

    id: str
    answer: Answer
    calls: tuple[ToolCall, ...]
    verdict: Verdict


def remove(out: Path) -> None:
    """Take away what an earlier evaluation left in `out`: `bfcl evaluate` scores every file that it finds there."""
    for kind in ("result", "score"):
        if (folder := out / kind / _FOLDER).is_dir():
            shutil.rmtree(folder)


def write_category(out: Path, category: Category, outcomes: Sequence[Outcome], score: Score, model_name: str) -> None:
    """Write the result file and the score file of one category below the folder `out`."""
    stem = f"BFCL_v4_{category.name}"
    results = out / "result" / _FOLDER / category.group / f"{stem}_result.json"
    write_jsonl(results, [_result(outcome) for outcome in outcomes])
    header = {"accuracy": score.accuracy, "correct_count": score.correct, "total_count": score.total}
    wrong = [_wrong(outcome, category, model_name) for outcome in outcomes if not outcome.verdict.valid]
    write_jsonl(out / "score" / _FOLDER / category.group / f"{stem}_score.json", [header, *wrong])


def _result(outcome: Outcome) -> dict[str, Any]:
    failed = outcome.verdict.checker_failed
    entry = {
        "id": outcome.id,
        "result": "" if failed else "\n".join(_block(call) for call in outcome.calls),
        "input_token_count": outcome.answer.prompt_tokens,
        "output_token_count": outcome.answer.response_tokens,
        "response": outcome.answer.text,
    }
    if failed:
        entry["checker_error"] = f"{outcome.verdict.error_type}: {outcome.verdict.error}"
    return entry


def _block(call: ToolCall) -> str:
    line = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{_SURROGATE.sub(chr(0xFFFD), line)}\n</tool_call>"


def _wrong(outcome: Outcome, category: Category, model_name: str) -> dict[str, Any]:
    return {
        "id": outcome.id,
        "model_name": model_name,
        "test_category": category.name,
        "valid": False,
        "error": [outcome.verdict.error],
        "error_type": outcome.verdict.error_type,
        "model_result_raw": outcome.answer.text,
        "model_result_decoded": [{call.name: call.arguments} for call in outcome.calls],
    }
