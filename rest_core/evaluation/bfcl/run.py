"""One BFCL evaluation: questions → prompts → answers → calls → official verdicts → figures and files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_core import response
from rest_core.config import BfclConfig
from rest_core.data import prompts
from rest_core.data.tools import read_tool
from rest_core.evaluation.bfcl import categories, official, results
from rest_core.evaluation.bfcl.results import HANDLER, Outcome
from rest_core.evaluation.generation import Answer, Progress, respond
from rest_core.evaluation.report import Report
from rest_core.evaluation.statistics import Score
from rest_core.evaluation.subset import seeded_subset
from rest_core.records import Message
from rest_core.rollout.engine import Engine

log = logging.getLogger(__name__)

Entry = dict[str, Any]


def evaluate(
    engine: Engine,
    tokenizer: Any,
    config: BfclConfig,
    *,
    style: prompts.Style,
    model_name: str,
    out: Path,
    on_progress: Progress | None = None,
) -> Report:
    """Evaluate a model on BFCL's single-turn categories with bfcl-eval's own questions and checkers.

    Args:
        style: the prompt style (`rest_core.data.prompts`); figures under different styles do not compare.
        model_name: what the report calls the model.
        out: folder for rows.jsonl, report.json, report.md, accuracy.png and BFCL's own result and score files.

    Returns:
        The report. Metrics, as fractions: `bfcl/<category>`, `bfcl/<average>` (see `categories.averages`),
        `bfcl/well_formed` (responses exactly in the format), `bfcl/truncated`; as numbers: `bfcl/count/<category>`,
        `bfcl/count/skipped_prompts`, `bfcl/count/checker_errors`; `bfcl/subset` is 1 where not all questions of the
        chosen categories were put, else 0.
    """
    chosen = categories.select(config.categories)
    questions = official.load([category.name for category in chosen])
    put = {
        name: seeded_subset(entries, config.limit_per_category, seed=config.seed, name=name)
        for name, entries in questions.items()
    }
    answers = iter(_answer(engine, tokenizer, [e for c in chosen for e in put[c.name]], config, style, on_progress))
    outcomes = _judge(
        {category.name: [(entry["id"], next(answers)) for entry in put[category.name]] for category in chosen}
    )

    results.remove(out)
    scores: dict[str, Score] = {}
    for category in chosen:
        found = outcomes[category.name]
        scores[category.name] = Score(sum(outcome.verdict.valid for outcome in found), len(found))
        results.write_category(out, category, found, scores[category.name], model_name)
    report = _report(scores, outcomes, questions, config, style, model_name)
    report.write(out)
    return report


def prompt(style: prompts.Style, entry: Entry) -> tuple[Message, ...]:
    """The chat that puts one question; the functions are described as BFCL describes them to a model."""
    history = tuple(Message(turn["role"], turn["content"]) for turn in entry["question"][0])
    tools = [read_tool(function, foreign_types=True) for function in entry["function"]]
    return prompts.render(style, tools, history)


def _answer(
    engine: Engine,
    tokenizer: Any,
    entries: Sequence[Entry],
    config: BfclConfig,
    style: prompts.Style,
    on_progress: Progress | None,
) -> list[Answer]:
    chats = [prompt(style, entry) for entry in entries]
    return respond(engine, tokenizer, chats, config.generation, on_progress)


def _judge(answers: Mapping[str, Sequence[tuple[str, Answer]]]) -> dict[str, list[Outcome]]:
    """The official verdict on every answer. A question that was not put counts as wrong, whatever its category."""
    calls = {
        name: [(id_, response.parse(answer.text).calls) for id_, answer in entries] for name, entries in answers.items()
    }
    verdicts = official.check(calls)
    outcomes: dict[str, list[Outcome]] = {}
    for name, entries in answers.items():
        outcomes[name] = []
        for (id_, answer), (_, made), verdict in zip(entries, calls[name], verdicts[name], strict=True):
            if answer.skipped is not None:
                # Without an answer there is no call, which the irrelevance checker would take for a right one.
                verdict = official.Verdict(False, "skipped_prompt", answer.skipped)
            outcomes[name].append(Outcome(id_, answer, made, verdict))
    return outcomes


def _report(
    scores: Mapping[str, Score],
    outcomes: Mapping[str, Sequence[Outcome]],
    questions: Mapping[str, Sequence[Entry]],
    config: BfclConfig,
    style: prompts.Style,
    model_name: str,
) -> Report:
    every = [outcome for found in outcomes.values() for outcome in found]
    averages = categories.averages(scores)
    skipped = sum(outcome.answer.skipped is not None for outcome in every)
    failed = sum(outcome.verdict.checker_failed for outcome in every)
    truncated = sum(not outcome.answer.finished and outcome.answer.skipped is None for outcome in every)
    well_formed = sum(response.parse(outcome.answer.text).well_formed for outcome in every)
    all_questions = sum(len(entries) for entries in questions.values())
    metrics = {f"bfcl/{name}": score.accuracy for name, score in scores.items()}
    metrics |= {f"bfcl/{name}": value for name, value in averages.items()}
    metrics |= {f"bfcl/count/{name}": float(score.total) for name, score in scores.items()}
    metrics |= {
        "bfcl/count/skipped_prompts": float(skipped),
        "bfcl/count/checker_errors": float(failed),
        "bfcl/truncated": truncated / len(every),
        "bfcl/well_formed": well_formed / len(every),
        "bfcl/subset": float(len(every) < all_questions),
    }
    notes = [
        f"bfcl-eval {official.version()}, prompt style {style}, greedy decoding, "
        f"responses up to {config.generation.max_response_tokens} tokens",
        f"score again: bfcl evaluate --model {HANDLER} --partial-eval, with BFCL_PROJECT_ROOT set to this folder",
    ]
    subset = None
    if len(every) < all_questions:
        subset = (
            f"{len(every)} of {all_questions} questions, at most {config.limit_per_category} a category "
            f"(seed {config.seed}); not comparable with the leaderboard"
        )
    if skipped:
        notes.append(f"{skipped} prompts over {config.generation.max_prompt_tokens} tokens count as wrong")
    if failed:
        notes.append(f"{failed} answers on which the official checker raised an exception count as wrong")
        log.warning("BFCL: %d answers on which the official checker raised an exception count as wrong", failed)
    rows = [_row(name, outcome) for name, found in outcomes.items() for outcome in found]
    return Report(
        "BFCL",
        model_name,
        scores,
        averages,
        metrics,
        rows,
        subset=subset,
        notes=tuple(notes),
        template=prompts.template_text(style),
    )


def _row(category: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.id,
        "category": category,
        "valid": outcome.verdict.valid,
        "error_type": outcome.verdict.error_type,
        "error": outcome.verdict.error,
        "response": outcome.answer.text,
        "prompt_tokens": outcome.answer.prompt_tokens,
        "response_tokens": outcome.answer.response_tokens,
        "finished": outcome.answer.finished,
    }
