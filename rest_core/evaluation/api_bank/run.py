"""An evaluation on API-Bank: its questions, both rules, the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_core import response
from rest_core.config import ApiBankConfig
from rest_core.data import files
from rest_core.data.api_bank_files import LEVELS, level_file
from rest_core.data.fields import Record, Rejected, Unreadable, mapping, text
from rest_core.errors import UserError
from rest_core.evaluation.generation import Answer, Progress, respond
from rest_core.evaluation.report import Report
from rest_core.evaluation.statistics import Score
from rest_core.evaluation.subset import seeded_subset
from rest_core.records import Message, ToolCall
from rest_core.rollout.engine import Engine


@dataclass(frozen=True)
class Item:
    """One question and the call that answers it."""

    id: str  # "level-1-17", counted from 0 in its file
    level: int
    prompt: tuple[Message, ...]
    wanted: ToolCall


def evaluate(
    engine: Engine,
    tokenizer: Any,
    config: ApiBankConfig,
    *,
    folder: Path,
    out: Path,
    model_name: str,
    on_progress: Progress | None = None,
) -> Report:
    """Evaluate a model on API-Bank.

    Args:
        folder: where ToolRL's three files lie.
        out: folder for rows.jsonl, report.json, report.md and accuracy.png.
        model_name: what the report calls the model.

    Returns:
        The report. Metrics, as fractions: `api_bank/level_<n>_soft`, `api_bank/level_<n>_strict`,
        `api_bank/overall_soft`, `api_bank/overall_strict`, `api_bank/well_formed`, `api_bank/truncated`; as numbers:
        `api_bank/count/level_<n>`, `api_bank/count/overall`, `api_bank/count/skipped_prompts`; `api_bank/subset` is 1
        where not all items were put, else 0.

    Raises:
        UserError: a file is missing or an item in it is not as described; names file, item and field.
    """
    levels = {level: read_level(folder, level) for level in LEVELS}
    items = [
        item
        for level, available in levels.items()
        for item in seeded_subset(available, config.limit_per_level, seed=config.seed, name=f"level-{level}")
    ]
    answers = respond(engine, tokenizer, [item.prompt for item in items], config.generation, on_progress)
    report = _report(items, answers, config, sum(map(len, levels.values())), model_name)
    report.write(out)
    return report


def read_level(folder: Path, level: int) -> list[Item]:
    """The items of one level's file."""
    path = level_file(folder, level)
    items: list[Item] = []
    for record in files.records(path):
        if isinstance(record, Rejected):
            raise UserError(f"{record}; give ToolRL's processed API-Bank files")
        try:
            items.append(_item(record, level, len(items)))
        except Unreadable as error:
            raise UserError(f"{error.rejected(record.where)}; give ToolRL's processed API-Bank files") from None
    return items


def soft_match(parsed: response.Response, wanted: ToolCall) -> bool:
    """The authors' rule: any call is the wanted one, or any bare object its parameters."""
    if any(call == wanted for call in parsed.calls):
        return True
    if not parsed.rejected:
        return False
    return any(bare == wanted.arguments for bare in _bare_objects(parsed))


def strict_match(parsed: response.Response, wanted: ToolCall) -> bool:
    """Exactly one call, equal in name and parameters as JSON."""
    if len(parsed.calls) != 1 or parsed.calls[0].name != wanted.name:
        return False
    return _canonical(parsed.calls[0].arguments) == _canonical(wanted.arguments)


def _bare_objects(parsed: response.Response) -> list[dict[str, Any]]:
    """JSON objects that stand on a line of a tool_call block and are no {"name", "parameters"}."""
    found = []
    for block in parsed.blocks:
        if block.kind is not response.Kind.TOOL_CALL:
            continue
        for line in parsed.text[block.content.start : block.content.end].splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):  # no JSON, or hostile: no parameters either
                continue
            if isinstance(value, dict) and not {"name", "parameters"} <= value.keys():
                found.append(value)
    return found


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _item(record: Record, level: int, index: int) -> Item:
    system, user = text(record.fields.get("system"), "system"), text(record.fields.get("user"), "user")
    answer = record.fields.get("answer")
    if isinstance(answer, list):
        if len(answer) != 1:
            raise Unreadable("not exactly one call", "answer", f"{len(answer)} calls")
        answer = answer[0]
    call = mapping(answer, "answer")
    wanted = ToolCall(text(call.get("name"), "answer.name"), mapping(call.get("parameters"), "answer.parameters"))
    return Item(f"level-{level}-{index}", level, (Message("system", system), Message("user", user)), wanted)


def _report(
    items: Sequence[Item], answers: Sequence[Answer], config: ApiBankConfig, available: int, model_name: str
) -> Report:
    rows = [_row(item, answer) for item, answer in zip(items, answers, strict=True)]
    scores: dict[str, Score] = {}
    for rule in ("soft", "strict"):
        for level in LEVELS:
            right = [row[rule] for row in rows if row["level"] == level]
            scores[f"level_{level}_{rule}"] = Score(sum(right), len(right))
        scores[f"overall_{rule}"] = Score(sum(row[rule] for row in rows), len(rows))
    skipped = sum(answer.skipped is not None for answer in answers)
    truncated = sum(not answer.finished and answer.skipped is None for answer in answers)
    metrics = {f"api_bank/{name}": score.accuracy for name, score in scores.items()}
    metrics |= {f"api_bank/count/level_{level}": float(scores[f"level_{level}_soft"].total) for level in LEVELS}
    metrics |= {
        "api_bank/count/overall": float(len(rows)),
        "api_bank/count/skipped_prompts": float(skipped),
        "api_bank/truncated": truncated / len(rows),
        "api_bank/well_formed": sum(row["well_formed"] for row in rows) / len(rows),
        "api_bank/subset": float(len(rows) < available),
    }
    notes = [
        "ToolRL's prompts, greedy decoding, "
        f"responses up to {config.generation.max_response_tokens} tokens; soft is the rule of the published figures"
    ]
    subset = None
    if len(rows) < available:
        subset = (
            f"{len(rows)} of {available} items, at most {config.limit_per_level} a level "
            f"(seed {config.seed}); not comparable with published figures"
        )
    if skipped:
        notes.append(f"{skipped} prompts over {config.generation.max_prompt_tokens} tokens count as wrong")
    return Report("API-Bank", model_name, scores, {}, metrics, rows, subset=subset, notes=tuple(notes))


def _row(item: Item, answer: Answer) -> dict[str, Any]:
    parsed = response.parse(answer.text)
    return {
        "id": item.id,
        "level": item.level,
        "soft": soft_match(parsed, item.wanted),
        "strict": strict_match(parsed, item.wanted),
        "well_formed": parsed.well_formed,
        "wanted": _canonical({"name": item.wanted.name, "parameters": item.wanted.arguments}),
        "response": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "response_tokens": answer.response_tokens,
        "finished": answer.finished,
        "skipped": answer.skipped,
    }
