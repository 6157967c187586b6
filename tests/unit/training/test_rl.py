"""The whole loop on a random model of two layers: real sampling, real rewards, real updates."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rest_core import storage
from rest_core.algorithm.rest import Judgement, ResT
from rest_core.algorithm.rewards import Reward
from rest_core.config import LoraConfig, LossConfig, ModelConfig, RlConfig
from rest_core.errors import Preempted, UserError
from rest_core.model import precision
from rest_core.response import parse
from rest_core.training import probe
from rest_core.training.progress import Observer
from rest_core.training.rl import RlTrainer
from rest_core.training.tasks import Task

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# The reference has no tag, so the format is right where a random response happens to have none: real variance.
TASKS = [Task(f"task/{n}", [10 + n, 20, 30 + n][: 1 + n % 3], parse("words")) for n in range(6)]
FLOAT32 = ModelConfig(dtype="float32")
COLUMNS = [
    "step",
    "sample",
    "prompt",
    "tools",
    "response",
    "reference",
    "reward",
    "format",
    "correctness",
    "tokens",
    "finished",
]
TIMED = ("seconds/", "tokens_per_second/", "memory/")


class Log:
    """What a training has reported."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.stop_at = stop_at

    def observer(self) -> Observer:
        return Observer(self._take, lambda rows, name: self.tables.__setitem__(name, rows))

    def _take(self, metrics: dict[str, float], step: int) -> None:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.metrics[step] = self.metrics.get(step, {}) | metrics

    def untimed(self) -> dict[int, dict[str, float]]:
        return {
            step: {name: value for name, value in metrics.items() if not name.startswith(TIMED)}
            for step, metrics in self.metrics.items()
        }


def settings(**changes: Any) -> RlConfig:
    defaults: dict[str, Any] = {
        "steps": 2,
        "prompts_per_step": 4,
        "group_size": 4,
        "max_response_tokens": 24,
        "micro_batch_tokens": 128,
        "rollout_batch_tokens": 400,
        "learning_rate": 0.003,
        "reward": "rest",
        "reward_probe_prompts": 3,
        "checkpoint_every": 1,
        "table_every": 1,
    }
    return RlConfig(**{**defaults, **changes})


@pytest.fixture
def trainer(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., RlTrainer]:
    """trainer(config, log): a trainer on a fresh copy of the tiny model; its checkpoints go to `folder`."""

    def make(
        config: RlConfig,
        log: Log,
        *,
        folder: str = "checkpoints",
        fingerprint: str = "data",
        model: ModelConfig = FLOAT32,
        validation: Sequence[Task] = (),
    ) -> RlTrainer:
        return RlTrainer(
            copy.deepcopy(tiny_model),
            tiny_tokenizer,
            TASKS,
            config,
            model,
            folder=tmp_path / folder,
            fingerprint=fingerprint,
            observer=log.observer(),
            validation=validation,
        )

    return make


Trainer = Callable[..., RlTrainer]


def test_each_step_reports_what_its_responses_were(trainer: Trainer) -> None:
    log = Log()
    made = trainer(settings(), log)
    result = made.train()
    assert result["rl/steps"] == 2 and result["rl/updates"] == made.update.version == 2
    assert result["rl/tokens_per_second"] > 0
    assert sorted(log.metrics) == [1, 2] and sorted(log.tables) == [
        "completions_step_000001",
        "completions_step_000002",
    ]
    for step, metrics in log.metrics.items():
        rows = log.tables[f"completions_step_{step:06d}"]
        assert len(rows) == 16 and {row["step"] for row in rows} == {step}

        def mean(values: list[float]) -> Any:
            return pytest.approx(sum(values) / len(values))

        rewards = [row["reward"] for row in rows]
        groups = [rewards[n : n + 4] for n in range(0, 16, 4)]
        assert len(set(rewards)) == 2  # there is something to learn from
        assert metrics["reward/total"] == mean(rewards)
        assert metrics["reward/std"] == pytest.approx(float(torch.tensor(rewards).std()))
        assert metrics["reward/format"] == mean([row["format"] for row in rows])
        assert metrics["reward/correctness"] == mean([row["correctness"] for row in rows])
        assert metrics["reward/zero_variance_share"] == mean([float(len(set(group)) == 1) for group in groups])
        assert metrics["response/tokens"] == mean([row["tokens"] for row in rows])
        assert metrics["response/truncated_share"] == mean([float(not row["finished"]) for row in rows])
        assert metrics["tokens/generated"] == sum(row["tokens"] for row in rows)
        assert metrics["ratio/mean"] == metrics["ratio/max"] == 1.0  # one update a rollout: on policy
        assert metrics["clip_share"] == metrics["dual_clip_share"] == 0
        assert metrics["updates"] == 1 and metrics["grad_norm"] > 0 and metrics["learning_rate"] == 0.003
        assert 0 < metrics["entropy/other"] <= math.log(265)
        assert metrics["weight/other"] == pytest.approx(1)  # the only region in these responses, rescaled
        assert metrics["tokens/other"] == metrics["tokens/generated"]
        for name in ("seconds/rollout", "seconds/reward", "seconds/update", "memory/peak_gib"):
            assert metrics[name] > 0
        assert metrics["tokens_per_second/rollout"] == mean([metrics["tokens/generated"] / metrics["seconds/rollout"]])
        assert metrics["mismatch/ratio_mean"] == pytest.approx(1, abs=1e-3)


def test_a_row_of_the_table_can_be_read_and_checked(trainer: Trainer, tiny_tokenizer: Any) -> None:
    log = Log()
    trainer(settings(steps=1), log).train()
    for row in log.tables["completions_step_000001"]:
        assert list(row) == [*COLUMNS, "problems"]
        row["response"].encode()  # plain UTF-8, whatever was sampled
        assert row["reference"] == "words"
        without_tags = "<" not in row["response"] or not parse(row["response"]).tags
        assert row["format"] == (2 - 1 / 150 if without_tags else -2 + 2 / 150)
        assert row["problems"] == "; ".join(parse(row["response"]).problems)
    assert {row["sample"] for row in log.tables["completions_step_000001"]} <= {task.id for task in TASKS}


def test_reward_rises(trainer: Trainer) -> None:
    log = Log()
    config = settings(steps=12, learning_rate=0.02, prompts_per_step=6, group_size=8, checkpoint_every=12)
    result = trainer(config, log).train()
    rewards = [log.metrics[step]["reward/total"] for step in range(1, 13)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    assert result["reward/after"] > result["reward/before"]


VARIANTS: dict[str, dict[str, Any]] = {
    "one update a rollout": {},
    "two mini-batches a rollout": {"mini_batch_prompts": 2},
    "adapters with dropout": {"lora": LoraConfig(r=2, dropout=0.2), "learning_rate": 0.02},
    "all of DAPO, with GSPO's ratio": {
        "mini_batch_prompts": 2,
        "loss": LossConfig(surrogate="gspo", clip_low=0.01, clip_high=0.02, aggregation="constant_length"),
        "advantage_std": "batch",
        "mask_truncated": True,
        "overlong": {"buffer": 20, "penalty": 0.5},
        "resample_rounds": 2,
    },
    "penalty and bonus": {"loss": LossConfig(kl_coefficient=0.1, entropy_coefficient=0.1, aggregation="token_mean")},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_that_was_interrupted_ends_as_if_it_had_not_been(trainer: Trainer, variant: str) -> None:
    config = settings(steps=4, checkpoint_every=2, **VARIANTS[variant])
    straight = Log()
    one = trainer(config, straight, folder="straight")
    first = one.train()

    begun = Log(stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        trainer(config, begun).train()
    assert sorted(begun.metrics) == [1, 2, 3]
    resumed = Log()
    two = trainer(config, resumed)
    again = two.train()

    assert begun.untimed()[3] == straight.untimed()[3]  # which was done again: the checkpoint is that of step 2
    assert resumed.untimed() == straight.untimed() and resumed.tables == straight.tables
    assert one.progress.history.tables == two.progress.history.tables
    assert again["reward/before"] == first["reward/before"] and again["reward/after"] == first["reward/after"]
    assert two.update.version == one.update.version
    start = dict(trainer(config, Log(), folder="unused").model.named_parameters())
    moved = False
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, dict(two.model.named_parameters())[name]), name
        moved = moved or not torch.equal(parameter, start[name])
    assert moved
    if "mini_batch_prompts" in VARIANTS[variant]:
        assert straight.metrics[1]["updates"] == 2 and straight.metrics[1]["ratio/max"] > 1


def test_a_step_without_an_update_reports_the_same_after_a_resume(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate of the warm-up is that of the last update, which lies before the checkpoint."""
    judge = ResT.judge

    def same_from_step_2(self: ResT, ids: Any, reference: Any, step: int, tools: Any = ()) -> Judgement:
        judged = judge(self, ids, reference, step)
        return judged if step == 1 else Judgement(judged.response, Reward(0.5, 0.0), judged.regions)

    monkeypatch.setattr(ResT, "judge", same_from_step_2)
    config = settings(steps=3, warmup_steps=10, reward_probe_prompts=0)
    straight = Log()
    trainer(config, straight, folder="straight").train()
    with pytest.raises(KeyboardInterrupt):
        trainer(config, Log(stop_at=2)).train()
    resumed = Log()
    trainer(config, resumed).train()
    assert resumed.untimed() == straight.untimed()
    assert straight.metrics[2]["learning_rate"] == pytest.approx(0.0003) and straight.metrics[2]["updates"] == 0


HELD_OUT = [Task(f"held/{n}", [40 + n], parse("words")) for n in range(5)]


def judged_by(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> list[int]:
    """Let each evaluation find one of `accuracies` (of five prompts); returns a list of how many prompts it saw."""
    seen: list[int] = []

    def outcome(given: Any, wanted: Any) -> bool:
        seen.append(1)
        measured, place = divmod(len(seen) - 1, 5)
        return place < round(5 * accuracies[measured])

    monkeypatch.setattr(probe, "succeeds", outcome)
    return seen


@pytest.mark.parametrize("final", ["last", "best"])
def test_the_best_on_the_task_is_kept_and_handed_on_when_asked_for(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, final: str
) -> None:
    seen = judged_by(monkeypatch, [0.2, 0.6, 0.6, 0.4])
    log = Log()
    config = settings(steps=5, evaluate_every=2, checkpoint_every=5, keep_checkpoints=1, final=final)
    made = trainer(config, log, validation=HELD_OUT)
    result = made.train()
    assert [log.metrics[step].get("task/accuracy") for step in range(6)] == [0.2, None, 0.6, None, 0.6, 0.4]
    assert log.metrics[2]["reward/total"] >= 0 and log.metrics[2]["task/response_tokens"] > 0
    assert len(seen) == 4 * 5
    assert (result["rl/best_step"], result["task/best"], result["rl/steps"]) == (2, 0.6, 5)
    assert result["task/last/accuracy"] == 0.4
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000002", "step-000005"]
    wanted = load_file(folder / ("step-000002" if final == "best" else "step-000005") / "model.safetensors")
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, wanted[name])
        assert torch.equal(dict(made.engine.model.named_parameters())[name], wanted[name])
    rewards = made.probe.rewards()  # of what is handed on
    assert rewards is not None and result["reward/after"] == fmean(reward or 0.0 for reward in rewards)


def test_accuracy_of_sampled_responses(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def outcome(given: Any, wanted: Any) -> bool:
        seen.append(given)
        return len(seen) % 3 == 1  # of each prompt's three the first

    monkeypatch.setattr(probe, "succeeds", outcome)
    log = Log()
    made = trainer(settings(steps=1, evaluate_every=1, evaluate_samples=3), log, validation=HELD_OUT)
    assert made.train()["task/last/accuracy"] == pytest.approx(1 / 3)
    assert len(seen) == 2 * 5 * 3
    texts = [tuple(one.text for one in seen[n : n + 3]) for n in range(0, 15, 3)]
    assert any(len(set(three)) > 1 for three in texts)  # sampled, each with its own numbers
    before = [one.text for one in seen[15:]]
    made.probe.task_accuracy()
    assert [one.text for one in seen[30:]] == before  # and the same numbers again


def test_accuracy_is_not_measured_at_the_start_where_that_is_off(trainer: Trainer) -> None:
    log = Log()
    config = settings(steps=3, evaluate_every=2, evaluate_at_start=False)
    result = trainer(config, log, validation=HELD_OUT).train()
    assert ["task/accuracy" in log.metrics.get(step, {}) for step in range(4)] == [False, False, True, True]
    assert result["rl/best_step"] in (2, 3)


def test_accuracy_where_calls_are_wanted_and_where_none_is(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    call = parse('<tool_call>\n{"name": "add", "parameters": {"n": 1}}\n</tool_call>')
    held_out = [dataclasses.replace(task, reference=call) if n < 2 else task for n, task in enumerate(HELD_OUT)]
    monkeypatch.setattr(probe, "succeeds", lambda given, wanted: bool(wanted.calls))
    log = Log()
    result = trainer(settings(steps=1, evaluate_every=1), log, validation=held_out).train()
    found = {"accuracy": 0.4, "call_accuracy": 1.0, "irrelevance_accuracy": 0.0}
    assert {name: result[f"task/last/{name}"] for name in found} == found
    assert {name: log.metrics[0][f"task/{name}"] for name in found} == found


def test_a_best_checkpoint_that_is_lost_is_told_and_the_best_is_looked_for_anew(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged_by(monkeypatch, [0.8, 0.2, 0.4, 0.6])
    config = settings(steps=3, evaluate_every=1, checkpoint_every=1, keep_checkpoints=1, final="best")
    with pytest.raises(KeyboardInterrupt):
        trainer(config, Log(stop_at=3), validation=HELD_OUT).train()
    (tmp_path / "checkpoints" / "step-000000" / "model.safetensors").unlink()
    judged_by(monkeypatch, [0.6])
    result = trainer(config, Log(), validation=HELD_OUT).train()
    assert result["rl/best_step"] == 3 and "step-000000, the best checkpoint so far, is lost" in caplog.text


def test_evaluation_is_greedy_on_held_out_prompts_and_changes_nothing(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, evaluated = Log(), Log()
    trainer(settings(), plain, folder="plain").train()
    made = trainer(settings(evaluate_every=1, evaluate_prompts=3), evaluated, validation=HELD_OUT)
    asked: list[tuple[Any, Any]] = []
    generate = made.engine.generate

    def listen(prompts: Any, **options: Any) -> Any:
        if options["temperature"] == 0:
            asked.append((prompts, options["samples"]))
        return generate(prompts, **options)

    monkeypatch.setattr(made.engine, "generate", listen)
    made.train()
    assert len(asked) == 3 and all(one == asked[0] for one in asked)
    prompts, samples = asked[0]
    assert (
        samples == 1 and len(prompts) == 3 and all([p] and p in [task.prompt_ids for task in HELD_OUT] for p in prompts)
    )
    for step in (1, 2):
        left = {name: value for name, value in evaluated.untimed()[step].items() if not name.startswith("task/")}
        assert left == plain.untimed()[step]


def send_at(trainer: RlTrainer, phase: str, step: int, number: int = signal.SIGTERM) -> None:
    """Let a real signal come at a phase's beginning."""

    def listen(name: str, at: int) -> None:
        if (name, at) == (phase, step):
            os.kill(os.getpid(), number)

    trainer.progress.observer = dataclasses.replace(trainer.progress.observer, phase=listen)


@pytest.mark.parametrize(
    ("phase", "step", "left_after"),
    [("rollout", 1, 0), ("rollout", 3, 2), ("update", 3, 2), ("evaluate", 2, 2), ("checkpoint", 2, 2)],
)
@pytest.mark.parametrize("variant", ["one update a rollout", "two mini-batches a rollout"])
def test_a_signal_leaves_a_checkpoint_of_the_last_whole_step(
    trainer: Trainer, tmp_path: Path, variant: str, phase: str, step: int, left_after: int
) -> None:
    config = settings(steps=3, checkpoint_every=2, evaluate_every=1, reward_probe_prompts=2, **VARIANTS[variant])
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    straight = Log()
    one = trainer(config, straight, folder="straight", validation=HELD_OUT)
    first = one.train()
    stopped = trainer(config, Log(), validation=HELD_OUT)
    send_at(stopped, phase, step)
    path = tmp_path / "checkpoints" / f"step-{left_after:06d}"
    with pytest.raises(Preempted, match=rf"SIGTERM: left after step {left_after} of 3; .* from {path}") as caught:
        stopped.train()
    assert caught.value.exit_code == 75
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)] == before
    resumed = Log()
    two = trainer(config, resumed, validation=HELD_OUT)
    again = two.train()
    assert resumed.untimed() == straight.untimed() and resumed.tables == straight.tables
    for figure in ("reward/before", "reward/after", "rl/updates", "rl/best_step"):
        assert again[figure] == first[figure]
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, dict(two.model.named_parameters())[name]), name


def signal_in_update(made: RlTrainer, number: int, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[int]:
    """A signal after the first of the updates of step 1, and slow work after it; returns what of that has ended."""
    step, ended = made.update._step, list[int]()

    def updating(*arguments: Any) -> None:
        step(*arguments)
        if made.update.version == 1:
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                time.sleep(0.01)
            ended.append(number)

    monkeypatch.setattr(made.update, "_step", updating)
    return ended


def test_a_step_whose_first_update_is_done_is_ended_first(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(mini_batch_prompts=2)
    made = trainer(config, Log())
    signal_in_update(made, signal.SIGTERM, monkeypatch)
    with pytest.raises(Preempted, match="left after step 1 of 2"):
        made.train()
    straight, resumed = Log(), Log()
    trainer(config, straight, folder="straight").train()
    trainer(config, resumed).train()
    assert resumed.untimed() == straight.untimed()


def test_a_step_that_outlives_the_grace_period_is_left_to_the_last_checkpoint(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(mini_batch_prompts=2, grace_seconds=0.05)
    made = trainer(config, Log())
    ended = signal_in_update(made, signal.SIGTERM, monkeypatch, seconds=60)
    with pytest.raises(
        Preempted, match=r"did not end within 0\.05 s .*last good checkpoint is .*step-000000"
    ) as caught:
        made.train()
    assert caught.value.exit_code == 75 and not ended
    resumed, straight = Log(), Log()
    trainer(config, straight, folder="straight").train()
    trainer(config, resumed).train()
    assert resumed.untimed() == straight.untimed()


def test_a_second_interrupt_does_not_wait(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(settings(mini_batch_prompts=2), Log())
    step = made.update._step

    def updating(*arguments: Any) -> None:
        step(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(made.update, "_step", updating)
    with pytest.raises(KeyboardInterrupt):
        made.train()


def test_a_signal_before_the_first_step_leaves_nothing(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(settings(), Log())
    monkeypatch.setattr(made.probe, "rewards", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Preempted, match="SIGINT: nothing had been trained yet") as caught:
        made.train()
    assert caught.value.exit_code == 130


def test_a_training_goes_on_from_the_mirror_on_another_machine(trainer: Trainer, tmp_path: Path) -> None:
    config = settings(steps=3, checkpoint_every=1, evaluate_every=2, mirror=str(tmp_path / "volume"))
    straight = Log()
    first = trainer(settings(steps=3, evaluate_every=2), straight, folder="straight", validation=HELD_OUT).train()
    one = trainer(config, Log(), folder="one", validation=HELD_OUT)
    send_at(one, "rollout", 3)
    with pytest.raises(Preempted, match="left after step 2"):
        one.train()
    resumed = Log()
    two = trainer(config, resumed, folder="two", validation=HELD_OUT)
    two.train_step = only(two.train_step, 3)  # type: ignore[method-assign]
    again = two.train()

    def without_mirror(figures: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in figures.items() if "mirror" not in name and "per_second" not in name}

    assert {step: without_mirror(row) for step, row in resumed.untimed().items()} == straight.untimed()
    assert resumed.tables == straight.tables
    assert without_mirror(again) == without_mirror(first) and again["checkpoint/mirror_failures"] == 0


def test_a_mirror_that_is_slow_does_not_outlive_the_grace_period(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never = threading.Event()
    monkeypatch.setattr(storage, "put_file", lambda *_: never.wait())
    made = trainer(settings(steps=3, mirror=str(tmp_path / "volume"), grace_seconds=0.3), Log())
    send_at(made, "rollout", 3)
    with pytest.raises(Preempted, match=r"left after step 2 of 3; .*step-000002"):
        made.train()
    assert "the newest checkpoint was not copied within" in caplog.text
    never.set()


def only(train_step: Any, wanted: int) -> Any:
    def checked(step: int) -> Any:
        assert step == wanted
        return train_step(step)

    return checked


def test_a_finished_training_is_not_run_again(trainer: Trainer) -> None:
    log = Log()
    first = trainer(settings(), log).train()
    again = Log()
    made = trainer(settings(), again)
    made.train_step = pytest.fail  # type: ignore[assignment]
    assert made.train() == first  # the speed of the steps, too
    assert again.metrics == log.metrics and again.tables == log.tables


def test_what_decides_the_result_must_not_change_on_the_way(trainer: Trainer) -> None:
    trainer(settings(steps=1), Log()).train()
    # What a user changes to get a stopped training going again may change.
    trainer(settings(steps=1, keep_checkpoints=5, learning_rate=0.1, micro_batch_tokens=64), Log()).train()
    for other in (
        trainer(settings(steps=1, reward="strict"), Log()),
        trainer(settings(steps=1), Log(), fingerprint="other data"),
    ):
        with pytest.raises(UserError, match="step-000001: a checkpoint of another training"):
            other.train()


def test_the_split_into_batches_does_not_change_the_training(trainer: Trainer) -> None:
    small, large = Log(), Log()
    one = trainer(settings(micro_batch_tokens=64, rollout_batch_tokens=100), small, folder="small")
    two = trainer(settings(micro_batch_tokens=10**6, rollout_batch_tokens=10**6), large, folder="large")
    one.train()
    two.train()
    assert [row["response"] for row in small.tables["completions_step_000001"]] == [
        row["response"] for row in large.tables["completions_step_000001"]
    ]
    for step in (1, 2):
        divided, whole = small.untimed()[step], large.untimed()[step]
        # The price of a small budget: prompts of divided groups are computed again, and that is reported.
        assert divided.pop("update/divided_groups") > whole.pop("update/divided_groups") == 0
        assert divided.pop("tokens/computed") > whole.pop("tokens/computed")
        assert divided == pytest.approx(whole, rel=1e-3, abs=1e-5)


def test_logits_that_are_no_numbers_name_the_last_good_checkpoint(trainer: Trainer, tmp_path: Path) -> None:
    made = trainer(settings(steps=3), Log())
    step = made.train_step

    def poisoned(number: int) -> dict[str, float]:
        if number == 2:
            with torch.no_grad():
                made.model.model.norm.weight[0] = math.nan
        return step(number)

    made.train_step = poisoned  # type: ignore[method-assign]
    message = r"step 2: update: the policy's logits are NaN .* lower rl\.learning_rate .* checkpoint is .*step-000001$"
    with pytest.raises(UserError, match=message):
        made.train()
    good = made.progress.last
    assert good is not None
    assert good == tmp_path / "checkpoints" / "step-000001"
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(good / "model.safetensors").values())


def test_sampling_from_a_policy_that_has_diverged_is_told(trainer: Trainer) -> None:
    made = trainer(settings(steps=3), Log())
    run = made.update.run

    def diverges(*arguments: Any) -> Any:
        statistics = run(*arguments)
        with torch.no_grad():
            made.model.model.norm.weight[0] = math.nan
        return statistics

    made.update.run = diverges  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"step 2: rollout: .*NaN.*has diverged.*step-000001$"):
        made.train()


def test_what_the_model_cannot_see_is_refused_before_the_first_step(trainer: Trainer) -> None:
    config = settings(max_response_tokens=600, micro_batch_tokens=1024, rollout_batch_tokens=4096)
    with pytest.raises(UserError, match=r"rl\.max_response_tokens: .* have 603 tokens together, the model sees 512"):
        trainer(config, Log())


def test_a_policy_that_is_broken_from_the_start_is_told(trainer: Trainer) -> None:
    made = trainer(settings(), Log())
    with torch.no_grad():
        made.engine.model.lm_head.weight.fill_(math.inf)
    with pytest.raises(UserError, match=r"reward probe: .*before the first update: take another policy.*no checkpoint"):
        made.train()


def test_a_reward_that_is_no_number_stops_the_training(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(settings(reward_probe_prompts=0), Log())
    judge = ResT.judge

    def broken(self: ResT, *arguments: Any) -> Judgement:
        judged = judge(self, *arguments)
        return Judgement(judged.response, Reward(math.nan, 0.0), judged.regions)

    monkeypatch.setattr(ResT, "judge", broken)
    with pytest.raises(UserError, match=r"step 1: a reward is not a finite number.*step-000000"):
        made.train()


def test_a_step_without_any_signal_goes_on(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ResT.judge

    def same(self: ResT, *arguments: Any) -> Judgement:
        judged = judge(self, *arguments)
        return Judgement(judged.response, Reward(0.5, 0.0), judged.regions)

    monkeypatch.setattr(ResT, "judge", same)
    log = Log()
    made = trainer(settings(), log)
    before = copy.deepcopy(made.model.state_dict())
    made.train()
    assert [log.metrics[step]["reward/zero_variance_share"] for step in (1, 2)] == [1, 1]
    assert [log.metrics[step]["updates"] for step in (1, 2)] == [0, 0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())


def positions(made: RlTrainer, step: int, places: Sequence[int], number: int = 0) -> list[int]:
    """Indices of the tasks at `places` of a step, in round `number`."""
    return made.schedule.visited(made.schedule.visits(step, places, number))


def with_rewards(made: RlTrainer, reward: Callable[[str, int], float], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the n-th response to a task have `reward(task's id, n)`; returns each judged round's tasks and tokens."""
    judge, rounds = made.sampler.judge, list[Any]()

    def given(tasks: Sequence[Task], groups: Any, *arguments: Any, **options: Any) -> Any:
        judged = judge(tasks, groups, *arguments, **options)
        rewards = [[reward(task.id, n) for n in range(made.config.group_size)] for task in tasks]
        judged.rewards.copy_(torch.tensor(rewards, dtype=torch.float64).reshape(judged.rewards.shape))
        rounds.append(([task.id for task in tasks], sum(len(r.response_ids) for group in groups for r in group)))
        return judged

    monkeypatch.setattr(made.sampler, "judge", given)
    return rounds


def test_groups_without_signal_are_replaced_by_further_prompts(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six tasks the even ones are flat; a step takes four, and asks again for the places of the flat ones."""
    config = settings(steps=1, resample_rounds=4, reward_probe_prompts=0)
    log = Log()
    made = trainer(config, log)
    rounds = with_rewards(made, lambda task, n: float(n) if int(task[-1]) % 2 else 1.0, monkeypatch)
    made.train()
    planned = [TASKS[n].id for n in positions(made, 1, range(4))]
    assert rounds[0][0] == planned
    wanting = [place for place, task in enumerate(planned) if int(task[-1]) % 2 == 0]
    final = list(planned)
    for number, (asked, _) in enumerate(rounds[1:], 1):
        assert asked == [TASKS[n].id for n in positions(made, 1, wanting, number)]
        for place, task in zip(wanting, asked, strict=True):
            final[place] = task if int(task[-1]) % 2 else final[place]
        wanting = [place for place in wanting if int(final[place][-1]) % 2 == 0]
    assert len(rounds) > 2 and not wanting  # of these seeds: more than one round, and they did
    metrics, rows = log.metrics[1], log.tables["completions_step_000001"]
    assert [row["sample"] for row in rows[::4]] == final
    assert metrics["resample/rounds"] == len(rounds) - 1
    assert metrics["resample/replaced_groups"] == sum(one != other for one, other in zip(planned, final, strict=True))
    assert metrics["reward/zero_variance_share"] == 0 and metrics["reward/total"] == 1.5
    sampled, kept = sum(tokens for _, tokens in rounds), sum(row["tokens"] for row in rows)
    assert metrics["tokens/generated"] == sampled and metrics["tokens/discarded"] == sampled - kept > 0
    assert metrics["tokens_per_second/rollout"] == pytest.approx(sampled / metrics["seconds/rollout"])
    assert metrics["tokens_per_second/update"] == pytest.approx(kept / metrics["seconds/update"])


def test_rounds_end_where_nothing_is_to_be_had(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    made = trainer(settings(steps=1, resample_rounds=2, reward_probe_prompts=0), log)
    rounds = with_rewards(made, lambda task, n: 1.0, monkeypatch)
    made.train()
    assert [len(asked) for asked, _ in rounds] == [4, 4, 4]
    metrics = log.metrics[1]
    assert metrics["resample/rounds"] == 2 and metrics["resample/replaced_groups"] == metrics["updates"] == 0
    assert [row["sample"] for row in log.tables["completions_step_000001"][::4]] == rounds[0][0]  # the planned ones


def test_groups_with_signal_are_left_alone(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, resampling = Log(), Log()
    for rounds, log in ((0, plain), (3, resampling)):
        made = trainer(settings(resample_rounds=rounds, reward_probe_prompts=0), log, folder=f"rounds-{rounds}")
        with_rewards(made, lambda task, n: float(n), monkeypatch)
        made.train()
    for step, metrics in resampling.untimed().items():
        assert [metrics.pop(f"resample/{name}") for name in ("rounds", "replaced_groups")] == [0, 0]
        assert metrics.pop("tokens/discarded") == 0 and metrics == plain.untimed()[step]


def test_truncated_responses_are_not_trained_on_and_count_in_their_groups_mean(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    bonus = LossConfig(entropy_coefficient=0.1)  # which takes every response
    made = trainer(
        settings(steps=1, mask_truncated=True, max_response_tokens=60, rollout_batch_tokens=10**4, loss=bonus), log
    )
    with_rewards(made, lambda task, n: float(n), monkeypatch)
    seen: list[Any] = []
    run = made.update.run
    monkeypatch.setattr(made.update, "run", lambda made, *others: seen.append(made) or run(made, *others))
    made.train()
    metrics, rows = log.metrics[1], log.tables["completions_step_000001"]
    finished = [row["finished"] for row in rows]
    assert 0 < sum(finished) < 16 and metrics["response/truncated_share"] == 1 - sum(finished) / 16
    assert (~seen[0].untrained).tolist() == finished
    assert metrics["tokens/trained"] == sum(row["tokens"] for row in rows if row["finished"])
    assert metrics["tokens/generated"] == sum(row["tokens"] for row in rows)
    assert metrics["reward/total"] == 1.5
    deviation = math.sqrt(5 / 3) + 1e-6
    assert seen[0].advantages.tolist() == pytest.approx([(n - 1.5) / deviation for n in range(4)] * 4)


def test_a_group_whose_responses_were_all_cut_off_carries_no_signal(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for masked, rounds in ((False, 0), (True, 1)):
        log = Log()
        made = trainer(settings(steps=1, mask_truncated=masked, resample_rounds=1), log, folder=f"masked-{masked}")
        with_rewards(made, lambda task, n: float(n), monkeypatch)
        monkeypatch.setattr(made.engine, "_stop", made.engine._stop[:0])
        made.train()
        assert log.metrics[1]["response/truncated_share"] == 1
        assert log.metrics[1]["resample/rounds"] == rounds and log.metrics[1]["updates"] == 1 - rounds


def test_the_penalty_on_long_responses_is_part_of_the_reward(trainer: Trainer) -> None:
    log = Log()
    trainer(settings(steps=1, overlong={"buffer": 20, "penalty": 0.5}), log).train()
    metrics, rows = log.metrics[1], log.tables["completions_step_000001"]
    for row in rows:
        assert row["overlong"] == pytest.approx(-0.5 * min(1, max(0, row["tokens"] - 4) / 20))
        assert row["reward"] == pytest.approx(row["format"] + row["correctness"] + row["overlong"])
    assert len({row["overlong"] for row in rows}) > 1
    assert metrics["reward/overlong"] == pytest.approx(sum(row["overlong"] for row in rows) / 16)
    assert metrics["reward/total"] == pytest.approx(
        metrics["reward/format"] + metrics["reward/correctness"] + metrics["reward/overlong"]
    )


def test_half_precision_samples_and_the_master_stays_whole(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: True)  # on any CPU
    log = Log()
    made = trainer(settings(), log, model=ModelConfig(dtype="bfloat16"))
    made.train()
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
    assert {p.dtype for p in made.engine.model.parameters()} == {torch.bfloat16}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = copy.deepcopy(made.model).bfloat16().eval()(ids).logits
        torch.testing.assert_close(made.engine.model(ids).logits, wanted)
    assert math.isfinite(log.metrics[2]["loss"])


def test_gradient_checkpointing_changes_no_weight(trainer: Trainer) -> None:
    plain = trainer(settings(steps=1), Log(), folder="plain")
    saving = trainer(settings(steps=1, gradient_checkpointing=True), Log(), folder="saving")
    for made in (plain, saving):
        made.train()
    for ours, theirs in zip(plain.model.parameters(), saving.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_probe_measures_the_same_thing_each_time(trainer: Trainer) -> None:
    made = trainer(settings(), Log())
    rewards = made.probe.rewards()
    assert rewards is not None and len(rewards) == 3 and rewards == made.probe.rewards()
    assert trainer(settings(reward_probe_prompts=0), Log()).probe.rewards() is None
    result = trainer(settings(reward_probe_prompts=0), Log(), folder="other").train()
    assert "reward/before" not in result


def test_the_probe_takes_held_out_prompts_where_they_are_enough(trainer: Trainer) -> None:
    config = settings(reward_probe_prompts=2)
    few, enough = trainer(config, Log(), validation=TASKS[:1]), trainer(config, Log(), validation=TASKS[-2:])
    asked: list[str] = []
    for made in (few, enough):
        respond = made.sampler.responses
        made.sampler.responses = lambda tasks, *rest, respond=respond: (  # type: ignore[method-assign]
            asked.extend(task.id for task in tasks) or respond(tasks, *rest)
        )
        made.probe.rewards()
    assert asked[:2] == [few.sampler.tasks[n].id for n in few.schedule.visited(range(2))]
    assert asked[2:] == [task.id for task in TASKS[-2:]]


def test_the_change_of_the_reward_is_paired_by_prompt(trainer: Trainer) -> None:
    probe = trainer(settings(), Log()).probe
    figures = probe.change((0.0, 1.0, None, 2.0), (1.0, 3.0, 5.0, 5.0))
    assert figures["reward/before"] == 1.0 and figures["reward/after"] == 3.0 and figures["reward/change"] == 2.0
    # Student: 2 -+ 4.303 * 1 / sqrt(3)
    assert (figures["reward/low/change"], figures["reward/high/change"]) == pytest.approx((-0.484, 4.484), abs=1e-3)
    assert figures["reward/training_prompts"] == 3
    assert "reward/low/change" not in probe.change((1.0,), (2.0,)) and probe.change((None,), (1.0,)) == {}
