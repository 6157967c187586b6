"""Reward functions in TRL's contract: what they are given, what they may give back, and what a failure costs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rest_core import config as configuration
from rest_core.config import FrequencyWeights, ModelConfig, RewardFunction, RlConfig, UniformWeights
from rest_core.errors import UserError
from rest_core.records import Message, Sample, Tool
from rest_core.response import parse
from rest_core.training.experience import make_experience
from rest_core.training.reward_functions import RewardFunctions
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

SAMPLES = [
    Sample(f"own/{n}", "own", (Message("system", "s"), Message("user", "u" * n)), (Tool("f", "d", {}),), "words")
    for n in range(1, 5)
]
TASKS = [Task(s.id, [10 + n, 20, 30 + n], parse(s.reference), s) for n, s in enumerate(SAMPLES)]
MODULE = """
import builtins
import itertools
import math
import os
import sys

SEEN = []

def length(completions, **kwargs):
    return [len(c[0]["content"]) / 10 for c in completions]

def token_share(completion_ids, log_extra, log_metric, **kwargs):
    log_extra("first", [ids[0] for ids in completion_ids])
    log_metric("rows", len(completion_ids))
    return [float(ids[0] % 7) for ids in completion_ids]

def picky(completion_ids, id, **kwargs):
    if id[0] == "own/2":
        raise RuntimeError("service away")
    if id[0] == "own/3":
        return [None] + [1.0] * (len(id) - 1)
    return [float(ids[0] % 5) for ids in completion_ids]

def nothing(**kwargs):
    return None

def too_few(**kwargs):
    return [1.0]

def words(completions, **kwargs):
    return ["high"] * len(completions)

def not_a_number(completions, **kwargs):
    return [math.nan] * len(completions)

def huge(completions, **kwargs):
    return [10 ** 400] * len(completions)

def without_end(**kwargs):
    return itertools.count()

def one_number(**kwargs):
    return 3

def leaves(**kwargs):
    sys.exit(0)

def leaves_at_once(**kwargs):
    os._exit(0)

def forks(completions, **kwargs):
    if (child := os.fork()) == 0:
        os._exit(3)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] * len(completions)

def see(prompts, completions, completion_ids, solution, trainer_state, **kwargs):
    SEEN.append((prompts, completions, completion_ids, solution, trainer_state, kwargs))
    prompts[0].clear()
    return [0] * len(prompts)

async def later(completions, **kwargs):
    return [1.0] * len(completions)

def closed(prompts, completions):
    return [1.0] * len(completions)

class Model:
    pass
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_rewards", None)


def functions(*names: str, **settings: Any) -> RlConfig:
    return RlConfig(
        reward_functions=[RewardFunction(function=f"my_rewards:{name}", **settings) for name in names], steps=9
    )


def score(*names: str, **settings: Any) -> Any:
    return RewardFunctions(functions(*names, **settings)).score(SAMPLES[0], ["ab", "c"], [[7, 8], [9]], step=3)


def test_a_function_is_given_what_trl_gives_it() -> None:
    score("see", columns={"solution": "reference"})
    ((prompts, completions, ids, solution, state, rest),) = sys.modules["my_rewards"].SEEN
    assert prompts == [[], [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]]
    assert completions == [[{"role": "assistant", "content": "ab"}], [{"role": "assistant", "content": "c"}]]
    assert ids == [[7, 8], [9]] and solution == rest["reference"] == ["words", "words"]
    assert rest["id"] == ["own/1"] * 2 and rest["source"] == ["own"] * 2
    assert rest["tools"] == [[{"name": "f", "description": "d", "parameters": {}}]] * 2
    assert (state.global_step, state.max_steps) == (2, 9)
    assert SAMPLES[0].prompt == (Message("system", "s"), Message("user", "u"))
    assert set(rest) == {"id", "source", "tools", "reference", "log_extra", "log_metric"}


def test_what_functions_give_is_weighted_and_added() -> None:
    config = RlConfig(
        reward_functions=(
            RewardFunction(function="my_rewards:length", weight=10),
            RewardFunction(function="my_rewards:token_share", weight=-0.5),
        )
    )
    given = RewardFunctions(config).score(SAMPLES[0], ["ab", "c"], [[8, 8], [9]], step=1)
    assert given.totals == pytest.approx([2 - 0.5, 1 - 1]) and given.failure is None
    assert given.parts == {"length": [0.2, 0.1], "token_share": [1, 2]}
    assert given.extra == {"first": [8, 9]} and given.metrics == [("rows", 2.0)]


def test_trls_own_reward_functions_run_as_they_are() -> None:
    pytest.importorskip("trl", reason="the optional extra trl is not installed")
    config = RlConfig(reward_functions=(RewardFunction(function="trl.rewards:think_format_reward"),))
    given = RewardFunctions(config).score(SAMPLES[0], ["<think>\nx\n</think>\ny", "y"], [[1], [2]], step=1)
    assert given.parts == {"think_format_reward": [1.0, 0.0]}


def test_what_cannot_be_scored_names_its_reason() -> None:
    assert score("length", "nothing").failure == "nothing: it returned None"
    assert score("one_number").failure == "one_number: TypeError: 'int' object is not iterable"
    runner = RewardFunctions(functions("length", "picky"))
    given = [runner.score(sample, ["a", "b"], [[1], [2]], step=1) for sample in SAMPLES]
    assert [each.failure for each in given] == [
        None,
        "picky: RuntimeError: service away",
        "picky: it returned None",
        None,
    ]
    assert given[1].totals == [0.0, 0.0] and not given[1].parts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "too_few: it returned 1 rewards for 2 completions"),
        ("words", r"words: it returned \['high', 'high'\], not a list of numbers"),
        ("not_a_number", "not_a_number: a reward of nan for sample own/1"),
        ("huge", "huge: it returned .*, not a list of numbers"),
        ("without_end", "without_end: it returned more than 2 rewards for 2 completions"),
    ],
)
def test_what_is_no_list_of_finite_numbers_stops_the_training(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(name)


@pytest.mark.parametrize("name", ["leaves", "leaves_at_once"])
def test_a_function_that_ends_the_process_fails_the_training(make: Make, name: str) -> None:
    trainer, _ = make(name)
    with pytest.raises(UserError, match=rf"reward function {name}: it ends the process \(exit code 0\)"):
        trainer.train()
    assert trainer.update.version == 0


def test_a_functions_own_processes_may_end() -> None:
    assert score("forks").parts == {"forks": [3.0, 3.0]}


@pytest.mark.parametrize("line", ["import sys; sys.exit(0)", "1 / 0", "def"])
def test_a_module_that_cannot_be_imported_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "my_rewards.py").write_text(line)
    with pytest.raises(UserError, match="'my_rewards:length': my_rewards cannot be imported: "):
        score("length")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_rewards.length", "write it as module:function"),
        ("my_rewrds:length", "there is no module 'my_rewrds'"),
        ("my_rewards:lenght", r"has no 'lenght'; did you mean 'length'.*closed, .*later, .*length, "),
        ("my_rewards:Model", "of type type; only plain functions"),
        ("my_rewards:later", "asynchronous functions are not supported"),
        ("my_rewards:closed", r"cannot be called as TRL does: got an unexpected keyword.*\*\*kwargs"),
        ("my_rewards:see", "cannot be called as TRL does: missing a required argument: 'solution'.*columns"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_training(function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardFunctions(RlConfig(reward_functions=(RewardFunction(function=function),)))


def test_a_wrong_column_and_a_function_given_twice_are_refused() -> None:
    with pytest.raises(UserError, match="samples have no 'referense'; did you mean 'reference'"):
        RewardFunctions(functions("see", columns={"solution": "referense"}))
    with pytest.raises(UserError, match="'length' is given twice"):
        RewardFunctions(functions("length", "length"))


class Log:
    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def observer(self) -> Observer:
        return Observer(
            lambda metrics, step: self.metrics.__setitem__(step, metrics),
            lambda rows, name: self.tables.__setitem__(name, rows),
        )


@pytest.fixture
def make(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., tuple[RlTrainer, Log]]:
    """make(*function names, **settings): a trainer of one step on a copy of the tiny model, and its log."""
    count = iter(range(9))

    def trainer(*names: str, **settings: Any) -> tuple[RlTrainer, Log]:
        log = Log()
        defaults: dict[str, Any] = {
            "steps": 1,
            "prompts_per_step": 4,
            "group_size": 4,
            "max_response_tokens": 12,
            "learning_rate": 0.003,
            "reward": "rest",
            "weights": UniformWeights(),
            "reward_probe_prompts": 0,
            "reward_functions": [RewardFunction(function=f"my_rewards:{name}") for name in names],
        }
        return RlTrainer(
            copy.deepcopy(tiny_model),
            tiny_tokenizer,
            TASKS,
            RlConfig(**{**defaults, **settings}),
            ModelConfig(dtype="float32"),
            folder=tmp_path / str(next(count)),
            fingerprint="data",
            observer=log.observer(),
        ), log

    return trainer


Make = Callable[..., tuple[RlTrainer, Log]]


def test_functions_join_the_reward_of_a_step(make: Make) -> None:
    trainer, log = make("token_share", reward_weight=0.5)
    trainer.train()
    rows, metrics = log.tables["completions_step_000001"], log.metrics[1]
    shares = [row["function/token_share"] for row in rows]
    for row in rows:
        assert row["function/token_share"] == row["extra/first"] % 7
        assert row["reward"] == pytest.approx(
            0.5 * (row["format"] + row["correctness"]) + row["function/token_share"], abs=1e-6
        )
    assert metrics["reward/function/token_share"] == pytest.approx(sum(shares) / len(shares))
    assert metrics["rows"] == 4 and metrics["reward/dropped_groups"] == 0
    assert trainer.update.version == 1
    trainer, log = make("token_share", reward_weight=0.0)
    trainer.train()
    assert [row["reward"] for row in log.tables["completions_step_000001"]] == shares


def test_a_dropped_group_is_counted_and_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    trainer, log = make("picky", reward_probe_prompts=4)
    result = trainer.train()
    rows, metrics = log.tables["completions_step_000001"], log.metrics[1]
    assert metrics["reward/dropped_groups"] == 2 and len(rows) == 16
    gone = [row for row in rows if "dropped" in row]
    assert {(row["sample"], row["dropped"]) for row in gone} == {
        ("own/2", "picky: RuntimeError: service away"),
        ("own/3", "picky: it returned None"),
    }
    assert len(gone) == 8 and all(row["reward"] is None for row in gone)
    kept = [row for row in rows if "dropped" not in row]
    rewards = [row["reward"] for row in kept]
    assert metrics["reward/total"] == pytest.approx(sum(rewards) / 8)
    assert metrics["reward/std"] == pytest.approx(float(torch.tensor(rewards).std()))
    assert metrics["response/tokens"] == pytest.approx(sum(row["tokens"] for row in rows) / 16)
    assert metrics["tokens/other"] == sum(row["tokens"] for row in kept)
    assert trainer.update.version == 1 and {"reward/before", "reward/after"} <= result.keys()
    assert [r.getMessage().split(" groups dropped: picky: ")[0] for r in caplog.records if "dropped" in r.msg] == [
        "reward probe: 2 of 4",
        "step 1: 2 of 4",
        "reward probe: 2 of 4",
    ]


def test_a_dropped_group_touches_no_weight_of_the_others(make: Make) -> None:
    """Schemes that compare a token with the rest of the rollout: as if the group had not been sampled."""

    def experience(tasks: list[Task]) -> Any:
        trainer, _ = make("picky", weights=FrequencyWeights())
        rollouts = trainer.sampler.responses(tasks, [task.prompt_ids[0] for task in tasks], "rollout")
        groups = trainer.sampler.judge(tasks, rollouts, 1, where="step 1")
        return make_experience(groups, trainer.algorithm, 1, entropies=trainer.update.entropies, gather=list, process=0)

    some, alone = experience(TASKS), experience([TASKS[0], TASKS[3]])
    kept = some.kept(range(16))
    assert kept == [0, 1, 2, 3, 12, 13, 14, 15]
    width = alone.weights.shape[1]
    assert torch.equal(some.weights[kept][:, :width], alone.weights)
    assert torch.equal(some.advantages[kept], alone.advantages) and bool(alone.advantages.any())
    assert not bool(some.weights[4:12].any()) and not bool(some.advantages[4:12].any())


def test_a_step_without_any_group_stops_the_training(make: Make) -> None:
    trainer, _ = make("nothing")
    with pytest.raises(UserError, match="step 1: no group could be scored: nothing: it returned None; the last good"):
        trainer.train()


def test_the_settings_survive_a_pipelines_parameters() -> None:
    config = functions("length", weight=0.5, columns={"solution": "reference"})
    assert configuration.validate(RlConfig, config.to_parameter(), where="rl") == config
    written = 'rl.reward_functions=[{function: "my_rewards:length", weight: 2}]'
    (given,) = configuration.load("quickstart", (written, "rl.reward_weight=0")).rl.reward_functions
    assert given == RewardFunction(function="my_rewards:length", weight=2)
    with pytest.raises(UserError, match=r"unknown key 'rl\.reward_functions\.0\.wieght'; did you mean 'weight'"):
        configuration.load("quickstart", ('rl.reward_functions=[{function: "m:f", wieght: 2}]',))
