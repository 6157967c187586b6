"""Result and score files of dialogues in BFCL's own layout (see `result_files`), safe to score again.

    {"id": …, "result": [[step, …], …], "input_token_count": [[…], …], …}      a list of steps a turn

A step holds the calls of one response, and is empty where it made none. `bfcl evaluate` passes these calls to Python's
`eval`, so they stand there as `calls.harmless` leaves them: a call whose name is none of the dialogue's functions, or
whose keys are no identifiers, is `refused_call`, and the original is in `refused`. A dialogue that could not go on (a
prompt over the limit, calls that took too much time or memory), and one on which the official checker fails, has a text
for a result, as bfcl-eval writes it after an error: nothing of it is executed, and it counts as wrong. `responses` has
all that was sampled.

The answer to a question about a memory is a step without a call, and stands there in its words. The conversations that
wrote the memories are in BFCL_v4_<category>_prereq_result.json, each with the memory that it has left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_core.call_json import without_surrogates
from rest_core.evaluation.benchmark import Row
from rest_core.evaluation.bfcl import checkers, memory, multi_turn, result_files
from rest_core.evaluation.bfcl.calls import REFUSED, block, harmless
from rest_core.evaluation.bfcl.categories import CATEGORIES
from rest_core.evaluation.bfcl.memory import Conversation, answer_text
from rest_core.records import ToolCall

_INFERENCE_ERRORS = (multi_turn.INFERENCE_ERROR, memory.INFERENCE_ERROR)


def write(out: Path, model_name: str, rows: Sequence[Row], tools: Mapping[str, frozenset[str]]) -> None:
    """Write the files of every category below `out`, and of samples beyond the first below `out/samples/NUMBER`.

    Args:
        rows: with the columns of `answering`.
        tools: names that may be called, by the dialogue's id.
    """
    for category in {row["category"]: None for row in rows}:
        in_words = CATEGORIES[category].scorer == "memory"
        members = [row for row in rows if row["category"] == category]
        samples = [[(row["id"], sample) for sample in row.get("samples", [row])] for row in members]
        for number, dialogues in enumerate(zip(*samples, strict=True), start=1):
            results = [_result(id_, dialogue, tools[id_], in_words) for id_, dialogue in dialogues]
            wrong = [
                _wrong(id_, dialogue, category, model_name) for id_, dialogue in dialogues if not dialogue["valid"]
            ]
            result_files.write_category(_place(out, number), category, results, wrong)


def write_conversations(out: Path, held: Sequence[Conversation], tools: Mapping[str, frozenset[str]]) -> None:
    """Write a file a memory category and sample; `bfcl evaluate` leaves it out."""
    by_file: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for one in held:
        id_ = one.entry["id"]
        turns = [[step.to_json() for step in turn] for turn in one.dialogue.turns]
        result = _result(id_, {"turns": turns, "error_type": None}, tools[id_], in_words=True)
        by_file[one.sample + 1, id_.rsplit("_", 1)[0]].append(result | {"memory": one.memory, "error": one.error})
    for (number, category), results in by_file.items():
        result_files.write_results(_place(out, number), category, results)


def _place(out: Path, number: int) -> Path:
    return out if number == 1 else out / result_files.SAMPLES / str(number)


def _result(id_: str, dialogue: Row, tools: frozenset[str], in_words: bool) -> Row:
    """Args:
    in_words: whether responses without a call stand there.
    """
    turns = dialogue["turns"]
    row: Row = {
        "id": id_,
        "result": [[_step(step, tools, in_words) for step in turn] for turn in turns],
        "input_token_count": [[step["prompt_tokens"] for step in turn] for turn in turns],
        "output_token_count": [[step["response_tokens"] for step in turn] for turn in turns],
        "responses": [[step["response"] for step in turn] for turn in turns],
    }
    if dialogue["error_type"] in _INFERENCE_ERRORS or checkers.failed(dialogue["error_type"]):
        return row | {"result": f"Error during inference: {dialogue['error_type']}: {dialogue['error']}"}
    if refused := [call for turn in turns for step in turn for call in _refused(step, tools)]:
        row["refused"] = refused
    return row


def _step(step: Row, tools: frozenset[str], in_words: bool) -> str:
    if in_words and not step["calls"]:
        return without_surrogates(answer_text(step["response"]))
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
