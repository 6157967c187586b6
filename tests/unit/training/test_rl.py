"""The whole loop on a random model of two layers: real sampling, real rewards, real updates."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rest_core.algorithm.rest import Judgement, ResT
from rest_core.algorithm.rewards import Reward
from rest_core.config import LoraConfig, LossConfig, ModelConfig, RlConfig, load, profiles
from rest_core.errors import UserError
from rest_core.response import parse
from rest_core.training import rl
from rest_core.training.rl import Observer, RlTrainer, Task

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

# The reference has no tag, so the format is right where a random response happens to have none: real variance.
TASKS = [Task(f"task/{n}", [10 + n, 20, 30 + n][: 1 + n % 3], parse("words")) for n in range(6)]
FLOAT32 = ModelConfig(dtype="float32")
COLUMNS = ["step", "sample", "response", "reference", "reward", "format", "correctness", "tokens", "finished"]
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
        self.metrics[step] = metrics

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
        "reward": "toolrl",
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
        assert 0 < sum(rewards) < 16  # there is something to learn from
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
        assert row["format"] == float("<" not in row["response"] or not parse(row["response"]).tags)
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

    assert sorted(resumed.metrics) == [3, 4]  # the checkpoint is that of step 2
    assert begun.untimed() | resumed.untimed() == straight.untimed()
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


def test_a_finished_training_is_not_run_again(trainer: Trainer) -> None:
    log = Log()
    first = trainer(settings(), log).train()
    again = Log()
    second = trainer(settings(), again).train()
    assert again.metrics == {}
    assert second["reward/after"] == first["reward/after"]


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


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(trainer: Trainer, tmp_path: Path) -> None:
    made = trainer(settings(steps=3), Log())
    step = made.train_step

    def poisoned(number: int) -> dict[str, float]:
        if number == 2:
            with torch.no_grad():
                made.model.model.norm.weight[0] = math.nan
        return step(number)

    made.train_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"loss is nan.*the last good checkpoint is .*step-000001$"):
        made.train()
    good = made.checkpoints.latest()
    assert good == tmp_path / "checkpoints" / "step-000001"
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(good / "model.safetensors").values())


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


def test_half_precision_samples_and_the_master_stays_whole(trainer: Trainer) -> None:
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


def test_every_task_is_trained_on_once_an_epoch(trainer: Trainer) -> None:
    made = trainer(settings(), Log())
    seen = [n for step in range(1, 7) for n in made._positions(step)]  # 24 places: four epochs of six
    epochs = [seen[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert Counter(seen) == dict.fromkeys(range(6), 4)


def test_every_response_of_a_training_is_drawn_anew(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(settings(reward_probe_prompts=0), Log())
    generate, seeds = made.engine.generate, []

    def listen(*arguments: Any, **options: Any) -> Any:
        seeds.extend(options["seeds"])
        return generate(*arguments, **options)

    monkeypatch.setattr(made.engine, "generate", listen)
    made.train()
    assert len(set(seeds)) == len(seeds) == 2 * 4
    other = trainer(settings(seed=1), Log(), folder="other")
    assert not set(seeds) & {rl.derive(other.config.seed, "rollout", 1, place) for place in range(4)}


def test_the_probe_measures_the_same_thing_each_time(trainer: Trainer) -> None:
    made = trainer(settings(), Log())
    assert made.probe() == made.probe()
    assert trainer(settings(reward_probe_prompts=0), Log()).probe() is None
    result = trainer(settings(reward_probe_prompts=0), Log(), folder="other").train()
    assert "reward/before" not in result


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"temperature": 0.7}, r"rl\.temperature is 0\.7"),
        (
            {"mini_batch_prompts": 3},
            r"rl\.mini_batch_prompts \(3\) does not divide rl\.prompts_per_step \(4\).*whole groups",
        ),
        ({"mini_batch_prompts": 8}, r"does not divide"),
    ],
)
def test_settings_that_would_change_the_objective_are_refused(
    trainer: Trainer, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        trainer(settings(**changes), Log())
    assert not (tmp_path / "checkpoints").exists()


def test_a_training_needs_prompts() -> None:
    with pytest.raises(UserError, match="the dataset's split 'rl' is empty"):
        rl._check(settings(), [], 1)


@pytest.mark.parametrize(
    ("name", "needed", "what"),
    [
        ("micro_batch_tokens", 50 + 24, "one response"),
        ("rollout_batch_tokens", 50 + 4 * 24, "one group of 4"),
    ],
)
def test_a_budget_smaller_than_what_it_must_hold_is_refused(name: str, needed: int, what: str) -> None:
    rl._check(settings(**{name: needed}), [3, 50, 2], 1)
    problem = rf"rl\.{name} \({needed - 1}\) does not hold {what}: the longest prompt has 50 .*set rl\.{name}={needed}"
    with pytest.raises(UserError, match=problem):
        rl._check(settings(**{name: needed - 1}), [3, 50, 2], 1)


@pytest.mark.parametrize("profile", profiles())
def test_the_budgets_of_every_profile_hold_its_longest_samples(profile: str) -> None:
    config = load(profile)
    rl._check(config.rl, [config.data.max_prompt_tokens], 1)


@pytest.mark.parametrize(
    ("name", "changes"), [("prompts_per_step", {}), ("mini_batch_prompts", {"mini_batch_prompts": 1})]
)
def test_processes_share_the_prompts_evenly(name: str, changes: dict[str, int]) -> None:
    processes = 3 if name == "prompts_per_step" else 2  # of 4 prompts; an odd share would leave a process waiting
    rl._check(settings(prompts_per_step=12, mini_batch_prompts=6), [3] * 6, processes)
    with pytest.raises(UserError, match=rf"rl\.{name} .* multiple of the number of processes \({processes}\).*choose "):
        rl._check(settings(**changes), [3] * 6, processes)
