"""Result and score files of multi-turn categories in BFCL's own layout (see `result_files`), safe to score again.

    {"id": …, "result": [[step, …], …], "input_token_count": [[…], …], …}      a list of steps a turn

A step holds the calls of one response, and is empty where it made none. `bfcl evaluate` passes these calls to Python's
`eval`, so they stand there as `calls.harmless` leaves them: a call whose name is none of the dialogue's functions, or
whose keys are no identifiers, is `refused_call`, and the original is in `refused`. A dialogue that could not go on (a
prompt over the limit, calls that took too much time or memory), and one on which the official checker fails, has a text
for a result, as bfcl-eval writes it after an error: nothing of it is executed, and it counts as wrong. `responses` has
all that was sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_core.evaluation.benchmark import Row
from rest_core.evaluation.bfcl import checkers, result_files
from rest_core.evaluation.bfcl.calls import REFUSED, block, harmless
from rest_core.evaluation.bfcl.multi_turn import INFERENCE_ERROR
from rest_core.records import ToolCall


def write(out: Path, model_name: str, rows: Sequence[Row], tools: Mapping[str, frozenset[str]]) -> None:
    """Write the files of every category below `out`, and of samples beyond the first below `out/samples/NUMBER`.

    Args:
        rows: with the columns of `answering`.
        tools: names that may be called, by the dialogue's id.
    """
    for category in {row["category"]: None for row in rows}:
        members = [row for row in rows if row["category"] == category]
        samples = [[(row["id"], sample) for sample in row.get("samples", [row])] for row in members]
        for number, dialogues in enumerate(zip(*samples, strict=True), start=1):
            results = [_result(id_, dialogue, tools[id_]) for id_, dialogue in dialogues]
            wrong = [
                _wrong(id_, dialogue, category, model_name) for id_, dialogue in dialogues if not dialogue["valid"]
            ]
            place = out if number == 1 else out / result_files.SAMPLES / str(number)
            result_files.write_category(place, category, results, wrong)


def _result(id_: str, dialogue: Row, tools: frozenset[str]) -> Row:
    turns = dialogue["turns"]
    row: Row = {
        "id": id_,
        "result": [[_step(step, tools) for step in turn] for turn in turns],
        "input_token_count": [[step["prompt_tokens"] for step in turn] for turn in turns],
        "output_token_count": [[step["response_tokens"] for step in turn] for turn in turns],
        "responses": [[step["response"] for step in turn] for turn in turns],
    }
    if dialogue["error_type"] == INFERENCE_ERROR or checkers.failed(dialogue["error_type"]):
        return row | {"result": f"Error during inference: {dialogue['error_type']}: {dialogue['error']}"}
    if refused := [call for turn in turns for step in turn for call in _refused(step, tools)]:
        row["refused"] = refused
    return row


def _step(step: Row, tools: frozenset[str]) -> str:
    return "\n".join(block(harmless(call, tools)) for call in _calls(step))


def _refused(step: Row, tools: frozenset[str]) -> Iterable[dict[str, Any]]:
    pairs = zip(step["calls"], _calls(step), strict=True)
    return (written for written, call in pairs if harmless(call, tools) is REFUSED)


def _calls(step: Row) -> list[ToolCall]:
    return [ToolCall(call["name"], call["arguments"]) for call in step["calls"]]


def _wrong(id_: str, dialogue: Row, category: str, model_name: str) -> Row:
    return {
        "id": id_,
        "model_name": model_name,
        "test_category": category,
        "valid": False,
        "error": {"error_message": [dialogue["error"]], "error_type": dialogue["error_type"]},
        "model_result_raw": [[step["response"] for step in turn] for turn in dialogue["turns"]],
        "model_result_decoded": [[step["calls"] for step in turn] for turn in dialogue["turns"]],
    }
