"""An evaluation of any policy on any benchmark: questions → chats → answers → verdicts → figures and files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rest_core.evaluation.answering import answered
from rest_core.evaluation.benchmark import Benchmark, Figures, Question, Row
from rest_core.evaluation.evaluation_report import EvaluationReport
from rest_core.evaluation.policy import Answer, Policy, Progress

T = TypeVar("T")


def evaluate(
    benchmark: Benchmark, policy: Policy, *, out: Path, on_progress: Progress | None = None
) -> EvaluationReport:
    """Evaluate a policy on a benchmark.

    Args:
        out: directory for rows.jsonl, report.json, report.md, accuracy.png and the benchmark's own files.

    Returns:
        The report. Metrics, all below the benchmark's name: its scores and averages, `well_formed` (responses exactly
        in the format) and `truncated` as fractions; `count/…` as numbers, `count/skipped_prompts` among them; `subset`
        is 1 where not all questions were put, else 0.

    Raises:
        UserError: the benchmark's files are missing or not as they should be, or the disk is full.
    """
    available = benchmark.questions()
    questions = [
        question
        for category, entries in available.items()
        for question in seeded_subset(entries, benchmark.limit, seed=benchmark.seed, name=category)
    ]
    chats = [benchmark.chat(question) for question in questions]
    try:
        answers, verdicts = answered(benchmark, policy, questions, chats, on_progress)
    finally:
        benchmark.close()
    rows = [_row(*parts) for parts in zip(questions, answers, verdicts, strict=True)]
    prompted = any(chat.prompt is None for chat in chats)
    report = _report(benchmark, policy, prompted, answers, rows, sum(map(len, available.values())))
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


def _row(question: Question, answer: Answer, verdict: Row) -> Row:
    return {
        "id": question.id,
        "well_formed": answer.parsed.well_formed,
        "response": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "response_tokens": answer.response_tokens,
        "finished": answer.finished,
        "skipped": answer.skipped,
        **verdict,
    }


def _report(
    benchmark: Benchmark, policy: Policy, prompted: bool, answers: Sequence[Answer], rows: list[Row], available: int
) -> EvaluationReport:
    """Args:
    prompted: whether the policy made the prompts, and not the benchmark.
    """
    figures = benchmark.figures(rows)
    skipped = sum(answer.skipped is not None for answer in answers)
    temperature = benchmark.generation.temperature
    decoding = f"temperature {temperature:g} with seed {benchmark.seed}" if temperature else "greedy decoding"
    notes = [*figures.notes, f"{decoding}, responses up to {benchmark.generation.max_response_tokens} tokens"]
    if prompted:
        notes.insert(0, policy.condition)
    if skipped:
        notes.append(f"{skipped} questions with a prompt over the limit of tokens count as wrong")
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
        scores=figures.scores,
        averages=figures.averages,
        metrics={f"{benchmark.name}/{name}": value for name, value in metrics.items()},
        rows=rows,
        subset=subset,
        notes=tuple(notes),
        template=policy.template if prompted else None,
    )


def _metrics(figures: Figures, rows: Sequence[Row]) -> dict[str, float]:
    truncated = sum(not row["finished"] and row["skipped"] is None for row in rows)
    return {
        **{name: score.value for name, score in figures.scores.items()},
        **figures.averages,
        **{f"count/{name}": float(count) for name, count in figures.counts.items()},
        "truncated": truncated / len(rows),
        "well_formed": sum(row["well_formed"] for row in rows) / len(rows),
    }
