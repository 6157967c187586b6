"""An evaluation of any policy on any benchmark: questions → chats → answers → verdicts → figures and files."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rest_core.evaluation.answering import answered
from rest_core.evaluation.benchmark import Benchmark, Figures, Question, Row
from rest_core.evaluation.evaluation_report import EvaluationReport
from rest_core.evaluation.measurement import Measurement, items_hash, text_hash
from rest_core.evaluation.policy import Answer, Chat, Policy, Progress
from rest_core.evaluation.taxonomy import ExpectedCall, Kind, kind_of
from rest_core.styles.few_calls import few_calls

log = logging.getLogger(__name__)

T = TypeVar("T")


def evaluate(
    benchmark: Benchmark, policy: Policy, *, out: Path, on_progress: Progress | None = None
) -> EvaluationReport:
    """Evaluate a policy on a benchmark.

    Args:
        out: directory for rows.jsonl, report.json, report.md, accuracy.png and the benchmark's own files.

    Returns:
        The report. Metrics, all below the benchmark's name: its scores and averages, `well_formed` (responses exactly
        in the format) and `truncated` as fractions; `low/…` and `high/…`, the bounds of the headline figures' 95 %
        intervals; `count/…` as numbers, `count/skipped_prompts` among them; `subset` is 1 where questions were left
        out, else 0.

    Raises:
        UserError: the benchmark's files are missing or not as they should be, or the disk is full.
    """
    available = benchmark.questions()
    questions = [
        question
        for category, entries in available.items()
        for question in seeded_subset(entries, benchmark.limit, seed=benchmark.seed, name=benchmark.subset_of(category))
    ]
    chats = [benchmark.chat(question) for question in questions]
    try:
        answers, verdicts = answered(benchmark, policy, questions, chats, on_progress)
    finally:
        benchmark.close()
    rows = [_row(benchmark, *parts) for parts in zip(questions, chats, answers, verdicts, strict=True)]
    measured = _measurement(benchmark, policy, questions, chats)
    report = _report(benchmark, policy, measured, answers, rows, sum(map(len, available.values())))
    benchmark.write_files(out, policy.name, answers, rows)
    report.write(out)
    return report


def seeded_subset(items: Sequence[T], limit: int | None, *, seed: int, name: str) -> list[T]:
    """`limit` of the items in their own order, or all of them.

    Which ones depends on the seed, the name and the number of items alone, so that a category's subset is the same
    whatever else is evaluated.
    """
    if limit is None or limit >= len(items):
        return list(items)
    chosen = random.Random(f"{seed}:{name}").sample(range(len(items)), limit)
    return [items[index] for index in sorted(chosen)]


def _row(benchmark: Benchmark, question: Question, chat: Chat, answer: Answer, verdict: Row) -> Row:
    """All that is known of an answer; the benchmark's own columns win."""
    expected = None
    if question.expected is not None:
        expected = [call.to_json() if isinstance(call, ExpectedCall) else call for call in question.expected]
    return {
        "id": question.id,
        "category": question.category,
        **dict.fromkeys(benchmark.rules),
        "kind": _kind(benchmark, question, chat, answer, verdict),
        "error_type": None,
        "error": None,
        "question": [asdict(message) for message in chat.history],
        "expected": expected,
        "calls": [asdict(call) for call in answer.parsed.calls],
        "response": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "response_tokens": answer.response_tokens,
        "seconds": answer.seconds,
        "well_formed": answer.parsed.well_formed,
        "finished": answer.finished,
        "skipped": answer.skipped,
        "tools": [asdict(tool) for tool in chat.tools],
        **verdict,
    }


def _kind(benchmark: Benchmark, question: Question, chat: Chat, answer: Answer, verdict: Row) -> Kind | None:
    """Why an answer is wrong; None where it is right. Of a dialogue, by its error type alone."""
    if all(verdict[rule] for rule in benchmark.rules):
        return None
    expected = [call for call in question.expected or () if isinstance(call, ExpectedCall)]
    known = question.expected is not None and len(expected) == len(question.expected)
    return kind_of(chat, answer, expected if known else None, verdict.get("error_type"))


def _measurement(
    benchmark: Benchmark, policy: Policy, questions: Sequence[Question], chats: Sequence[Chat]
) -> Measurement:
    prompted = not policy.keeps_prompts or any(chat.prompt is None for chat in chats)
    return Measurement(
        benchmark=benchmark.name,
        items=items_hash([question.id for question in questions], chats),
        condition=policy.condition if prompted else "the benchmark's own prompts",
        template=text_hash(policy.template if prompted else ""),
        limits=benchmark.limits,
        checker=benchmark.checker,
        rules=benchmark.rules,
    )


def _report(
    benchmark: Benchmark,
    policy: Policy,
    measured: Measurement,
    answers: Sequence[Answer],
    rows: list[Row],
    available: int,
) -> EvaluationReport:
    figures = benchmark.figures(rows)
    skipped = sum(answer.skipped is not None for answer in answers)
    prompted = measured.condition == policy.condition
    temperature = benchmark.generation.temperature
    decoding = f"temperature {temperature:g} with seed {benchmark.seed}" if temperature else "greedy decoding"
    notes = [*figures.notes, f"{decoding}, responses up to {benchmark.generation.max_response_tokens} tokens"]
    if prompted:
        notes.insert(0, policy.condition)
    if skipped:
        notes.append(f"{skipped} questions with a prompt over the limit of tokens count as wrong")
    if warning := few_calls([bool(row["calls"]) for row in rows if row["expected"]]):
        notes.append(warning)
        log.warning("%s: %s", benchmark.title, warning)
    subset = None
    if len(rows) < available:
        subset = (
            f"{len(rows)} of {available} questions, at most {benchmark.limit} a category (seed {benchmark.seed}); "
            "not comparable with published figures"
        )
    metrics = _metrics(figures, rows) | {
        "count/skipped_prompts": float(skipped),
        "subset": float(subset is not None),
    }
    return EvaluationReport(
        title=benchmark.title,
        model=policy.name,
        figures=figures,
        metrics={f"{benchmark.name}/{name}": value for name, value in metrics.items()},
        rows=rows,
        measured=measured,
        subset=subset,
        notes=tuple(notes),
        template=policy.template if prompted else None,
    )


def _metrics(figures: Figures, rows: Sequence[Row]) -> dict[str, float]:
    truncated = sum(not row["finished"] and row["skipped"] is None for row in rows)
    headline = figures.first
    return {
        **{name: figure.value for name, figure in figures.all.items()},
        **figures.values,
        **{f"low/{name}": figure.interval.low for name, figure in headline.items()},
        **{f"high/{name}": figure.interval.high for name, figure in headline.items()},
        **{f"count/{name}": float(figure.total) for name, figure in headline.items()},
        **{f"count/{name}": float(count) for name, count in figures.counts.items()},
        "truncated": truncated / len(rows),
        "well_formed": sum(row["well_formed"] for row in rows) / len(rows),
    }
