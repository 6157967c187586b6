"""A policy's answers to a benchmark's questions, and the verdicts: single responses all at once, dialogues in waves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial

from rest_core.environments.dialogue import Dialogue, run_dialogues
from rest_core.evaluation.benchmark import Benchmark, Question, Row, Task
from rest_core.evaluation.policy import Answer, Chat, Policy, Progress
from rest_core.progress_bar import ProgressBar
from rest_core.seeds import derive


def answered(
    benchmark: Benchmark,
    policy: Policy,
    questions: Sequence[Question],
    chats: Sequence[Chat],
    on_progress: Progress | None = None,
) -> tuple[list[Answer], list[Row]]:
    """The answer to each question, and `Benchmark.judge`'s columns about it.

    The answer of a dialogue sums up its steps: all texts, all tokens. Its columns have the user's messages of all turns
    in `question`, the dialogue itself in `turns` and, where there are several samples, all of them in `samples`; the
    other columns are the first one's.

    Args:
        chats: of each question; a dialogue's first.
        on_progress: of the single responses; dialogues have a bar of their own.
    """
    benchmark.prepare(questions, policy, partial(_held, benchmark, policy))
    environments = [benchmark.environments(question, native_tools=policy.native_tools) for question in questions]
    single = [n for n, made in enumerate(environments) if not made]
    found: dict[int, tuple[Answer, Row]] = {}
    if single:
        asked = [replace(chats[n], seed=derive(benchmark.seed, "answer", questions[n].id)) for n in single]
        given = policy.respond(asked, benchmark.generation, on_progress)
        readers = [benchmark.reader(questions[n]) for n in single]
        answers = [replace(one, read=read or one.read) for one, read in zip(given, readers, strict=True)]
        rows = benchmark.judge([questions[n] for n in single], answers)
        found.update(zip(single, zip(answers, rows, strict=True), strict=True))
    places = [(n, sample) for n, made in enumerate(environments) for sample in range(len(made))]
    held = _held(benchmark, policy, [Task(questions[n].id, sample, environments[n][sample]) for n, sample in places])
    samples: dict[int, list[Dialogue]] = defaultdict(list)
    for (n, _), dialogue in zip(places, held, strict=True):
        samples[n].append(dialogue)
    found.update((n, _summed_up(questions[n], dialogues)) for n, dialogues in samples.items())
    return [found[n][0] for n in range(len(questions))], [found[n][1] for n in range(len(questions))]


def _held(benchmark: Benchmark, policy: Policy, tasks: Sequence[Task]) -> list[Dialogue]:
    """One dialogue a task, all together."""
    if not tasks:
        return []
    with ProgressBar(desc=f"{benchmark.title}: dialogues", total=len(tasks), unit="dialogue") as bar:

        def advance(ended: int, of: int, steps: int) -> None:
            bar.update(ended - bar.n)
            bar.set_postfix(steps=steps)

        return run_dialogues(
            [task.environment for task in tasks],
            policy,
            benchmark.dialogue_generation,
            max_steps=benchmark.max_steps,
            seeds=[derive(benchmark.seed, "dialogue", task.id, task.sample) for task in tasks],
            on_progress=advance,
        )


def _summed_up(question: Question, dialogues: Sequence[Dialogue]) -> tuple[Answer, Row]:
    samples = [_columns(dialogue) for dialogue in dialogues]
    asked = [asdict(message) for message in dialogues[0].history if message.role not in ("assistant", "tool")]
    row = {"category": question.category, "question": asked, **samples[0]}
    if len(samples) > 1:
        row["samples"] = samples
    steps = dialogues[0].steps
    answers = [step.answer for step in steps]
    answer = Answer(
        text="\n\n".join(answer.text for answer in answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        response_tokens=sum(answer.response_tokens for answer in answers),
        finished=all(answer.finished for answer in answers),
        skipped=answers[-1].skipped if answers else None,
        seconds=_sum(answer.seconds for answer in answers),
    )
    return answer, row


def _sum(seconds: Iterable[float | None]) -> float | None:
    """The sum; None where one is not known."""
    known = list(seconds)
    return None if None in known else sum(one for one in known if one is not None)


def _columns(dialogue: Dialogue) -> Row:
    """What a row says about a dialogue."""
    assert dialogue.stop is not None
    answers = [step.answer for step in dialogue.steps]
    return {
        **asdict(dialogue.environment.verdict(dialogue.stop)),
        "stop": dialogue.stop,
        "stop_reason": dialogue.error,
        "steps": len(answers),
        "calls": [asdict(call) for step in dialogue.steps for call in step.calls],
        "well_formed": bool(answers) and all(answer.parsed.well_formed for answer in answers),
        "turns": [[step.to_json() for step in turn] for turn in dialogue.turns],
    }
