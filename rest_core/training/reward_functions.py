"""Reward functions in TRL's plain-function contract, called by our trainer as TRL calls them.

    function(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns)
        -> list[float | None]

One call scores one group, G responses to one prompt. What a call cannot score, by raising or by None, takes its group
out of the training step: the group is dropped and counted. Anything else but finite numbers stops the training.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, NoReturn

from rest_core.config import RewardFunction, RlConfig
from rest_core.errors import UserError, described, nearest
from rest_core.records import Sample

COLUMNS = ("id", "source", "tools", "reference")  # of a sample, as a function sees them
_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


@dataclass
class FunctionRewards:
    """What the reward functions give one group of G responses."""

    totals: list[float]  # G: weighted sums over the functions
    parts: dict[str, list[float]] = field(default_factory=dict)  # function's name → G unweighted rewards
    failure: str | None = None  # why the group cannot be scored, None: it could
    extra: dict[str, list[Any]] = field(default_factory=dict)  # columns from log_extra, G values each
    metrics: list[tuple[str, float]] = field(default_factory=list)  # from log_metric


class RewardFunctions:
    """The functions of `rl.reward_functions`, imported and checked.

    Raises:
        UserError: one cannot be imported, cannot be called as TRL calls it, or is asynchronous.
    """

    def __init__(self, config: RlConfig) -> None:
        self._settings = config.reward_functions
        self._steps = config.steps
        self._functions = [_load(settings) for settings in self._settings]
        self.names = [function.__name__ for function in self._functions]
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise UserError(f"rl.reward_functions: {min(twice)!r} is given twice; metrics go by the function's name")

    def score(
        self, sample: Sample | None, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], step: int
    ) -> FunctionRewards:
        """Rewards of the G responses to one sample, `step` counted from 1.

        Raises:
            UserError: a function returns another number of rewards than G, or what is no finite number, or ends the
                process.
        """
        size = len(completions)
        score = FunctionRewards([0.0] * size)
        for settings, name, function in zip(self._settings, self.names, self._functions, strict=True):
            if sample is None:
                raise ValueError("reward functions need the tasks' samples")
            try:
                with _exit_raised():
                    given = function(**self._arguments(settings, sample, completions, completion_ids, step, score))
                # One more than there may be shows that there are too many; some iterators have no end.
                values = [None] if given is None else list(islice(given, size + 1))
            except Exception as error:  # whatever a user's code raises costs its group and is reported
                return FunctionRewards([0.0] * size, failure=f"{name}: {described(error)}")
            except SystemExit as error:  # would end the training as if it were done
                raise UserError(
                    f"reward function {name}: it ends the process (exit code {error.code!r:.80})"
                ) from error
            if any(value is None for value in values):
                return FunctionRewards([0.0] * size, failure=f"{name}: it returned None")
            score.parts[name] = rewards = _numbers(name, values, size, sample)
            score.totals = [total + settings.weight * x for total, x in zip(score.totals, rewards, strict=True)]
        return score

    def _arguments(
        self,
        settings: RewardFunction,
        sample: Sample,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        step: int,
        score: FunctionRewards,
    ) -> dict[str, Any]:
        """What TRL gives a function for a dataset of conversations, made anew for each call: it may be changed."""
        from transformers import TrainerState

        size = len(completions)

        def log_extra(column: str, values: list[Any]) -> None:
            if len(values) != size:
                raise ValueError(f"log_extra({column!r}): {len(values)} values for {size} completions")
            score.extra[column] = list(values)

        fields = {"id": sample.id, "source": sample.source, "reference": sample.reference}
        columns: dict[str, list[Any]] = {name: [value] * size for name, value in fields.items()}
        columns["tools"] = [[asdict(tool) for tool in sample.tools] for _ in range(size)]
        return {
            **columns,
            **{name: columns[field] for name, field in settings.columns.items()},
            "prompts": [[asdict(message) for message in sample.prompt] for _ in range(size)],
            "completions": [[{"role": "assistant", "content": text}] for text in completions],
            "completion_ids": [list(ids) for ids in completion_ids],
            "trainer_state": TrainerState(global_step=step - 1, max_steps=self._steps),
            "log_extra": log_extra,
            "log_metric": lambda name, value: score.metrics.append((name, float(value))),
        }


@contextmanager
def _exit_raised() -> Iterator[None]:
    """Within the block `os._exit` raises `SystemExit`, as `sys.exit` does; in other threads and processes it exits."""
    leave, here = os._exit, (os.getpid(), threading.get_ident())

    def refuse(status: int) -> NoReturn:
        if (os.getpid(), threading.get_ident()) != here:
            leave(status)
        raise SystemExit(status)

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = leave


def _numbers(name: str, values: Sequence[Any], size: int, sample: Sample) -> list[float]:
    if len(values) != size:
        count = f"more than {size}" if len(values) > size else len(values)
        raise UserError(f"reward function {name}: it returned {count} rewards for {size} completions")
    try:
        rewards = [float(value) for value in values]
    except Exception:  # the values may be objects of any class
        raise UserError(f"reward function {name}: it returned {values!r:.80}, not a list of numbers") from None
    for reward in rewards:
        if not math.isfinite(reward):
            raise UserError(f"reward function {name}: a reward of {reward} for sample {sample.id}")
    return rewards


def _load(settings: RewardFunction) -> Callable[..., Any]:
    """The function of "module:function", ready to be called with the arguments above."""
    where = f"rl.reward_functions: {settings.function!r}"
    module_name, separator, name = settings.function.partition(":")
    if not (module_name and separator and name):
        raise UserError(f"{where}: write it as module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{where}: there is no module {error.name!r}; install it, or put its folder on PYTHONPATH"
        ) from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: {module_name} cannot be imported: {described(error)}") from error
    function = getattr(module, name, None)
    public = sorted(key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_")
    if function is None:
        raise UserError(
            f"{where}: {module_name} has no {name!r}{nearest(name, public)} "
            f"(its functions: {', '.join(public) or 'none'})"
        )
    if not inspect.isfunction(function):
        raise UserError(f"{where}: this is of type {type(function).__name__}; only plain functions are supported")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{where}: asynchronous functions are not supported; wrap it in a plain one")
    for column in settings.columns.values():
        if column not in COLUMNS:
            raise UserError(
                f"{where}: samples have no {column!r}{nearest(column, COLUMNS)} (they have {', '.join(COLUMNS)})"
            )
    given = {*_ARGUMENTS, *COLUMNS, *settings.columns}
    try:
        inspect.signature(function).bind(**dict.fromkeys(given))
    except TypeError as error:
        raise UserError(
            f"{where}: it cannot be called as TRL does: {error} (it is given {', '.join(sorted(given))}; "
            "let it take **kwargs, or name its column in `columns`)"
        ) from None
    return function
