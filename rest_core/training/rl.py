"""The RL loop: rollouts → rewards → weights → update, step by step, resumable at every checkpoint.

All randomness of a step is derived from the seed and the step's number (`rest_core.seeds`), so that a training which
is taken up again continues exactly as it would have gone on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from rest_core.algorithm.advantages import zero_variance
from rest_core.algorithm.entropy import region_sums
from rest_core.algorithm.regions import Region
from rest_core.algorithm.rest import Judgement, ResT
from rest_core.config import ModelConfig, RlConfig
from rest_core.errors import UserError
from rest_core.memory import keep_freed_memory, peak_memory_gib
from rest_core.model.batch import pad_rows
from rest_core.model.loading import with_lora
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout, Sample
from rest_core.response import Response
from rest_core.rollout.create import create_engine
from rest_core.seeds import derive
from rest_core.training.checkpoint import Checkpoints
from rest_core.training.reward_functions import GroupScore, RewardFunctions
from rest_core.training.update import Experience, PolicyUpdate

log = logging.getLogger(__name__)

# What a user changes to get a stopped training going again: a checkpoint is taken up all the same.
_REMEDIES = {
    "engine",
    "learning_rate",
    "max_grad_norm",
    "max_loss",
    "micro_batch_tokens",
    "rollout_batch_tokens",
    "gradient_checkpointing",
    "checkpoint_every",
    "keep_checkpoints",
    "table_every",
}


@dataclass(frozen=True)
class Task:
    """One training prompt as ids, with its parsed reference; `sample` is what reward functions are shown."""

    id: str
    prompt_ids: list[int]
    reference: Response
    sample: Sample | None = None


@dataclass(frozen=True)
class Judged:
    """This process's responses of a step with their rewards; P prompts of G responses."""

    judgements: list[list[Judgement]]
    scores: list[GroupScore]  # P, of the reward functions
    rewards: Tensor  # (P, G) totals, 0 in a dropped group
    dropped: Tensor  # (P,) bool: groups that a reward function could not score

    def kept(self) -> list[list[Judgement]]:
        return [group for group, gone in zip(self.judgements, self.dropped.tolist(), strict=True) if not gone]


@dataclass(frozen=True)
class Observer:
    """Where the trainer reports to: scalars of a step, and tables of completions."""

    metrics: Callable[[dict[str, float], int], None]
    table: Callable[[list[dict[str, Any]], str], None]


class RlTrainer:
    """Trains `model` (float32, in place) on `tasks`.

    Args:
        model: causal language model in float32, the master weights.
        tasks: the training prompts, in a fixed order.
        folder: where checkpoints go.
        fingerprint: what else decides the result (hash of the data, the model's source …).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tasks: Sequence[Task],
        config: RlConfig,
        model_config: ModelConfig,
        *,
        folder: Path,
        fingerprint: str,
        observer: Observer,
    ) -> None:
        self.config, self.tokenizer, self.tasks, self.observer = config, tokenizer, tasks, observer
        keep_freed_memory()
        half = model_config.dtype == "bfloat16"
        self.accelerator = Accelerator(mixed_precision="bf16" if half else "no")
        _check(config, [len(task.prompt_ids) for task in tasks], self.accelerator.num_processes)
        torch.manual_seed(derive(config.seed, "init"))
        reference = None
        if config.loss.kl_coefficient:
            reference = Policy(copy.deepcopy(model).requires_grad_(False).eval()).to(self.accelerator.device)
        if config.lora is not None:
            model = with_lora(model, config.lora)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.to(self.accelerator.device).train()
        self.model = model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.engine = create_engine(
            config.engine,
            model,
            tokenizer,
            dtype=torch.bfloat16 if half else torch.float32,
            max_tokens=max(len(task.prompt_ids) for task in tasks) + config.max_response_tokens,
        )
        policy, self.optimizer = self.accelerator.prepare(Policy(model), optimizer)
        self.update = PolicyUpdate(
            policy, self.optimizer, self.accelerator, config, pad_id=tokenizer.pad_token_id, reference=reference
        )
        self.algorithm = ResT(config, tokenizer)
        self.functions = RewardFunctions(config)
        described = json.dumps(
            [fingerprint, model_config.model_dump(), config.model_dump(exclude=_REMEDIES)],
            sort_keys=True,
        )
        self.checkpoints = Checkpoints(
            folder, fingerprint=hashlib.sha256(described.encode()).hexdigest(), keep=config.keep_checkpoints
        )
        self._last: Path | None = None

    def train(self) -> dict[str, float]:
        """Run all steps that are left; returns reward before and after, and totals."""
        start, before = self._resume()
        if self._last is None:
            before = self.probe()
            self._save(0, before)
        main = self.accelerator.is_main_process
        totals = {"tokens": 0.0, "seconds": 0.0}
        with tqdm(
            total=self.config.steps, initial=start, desc="rest-rl", unit="step", disable=None if main else True
        ) as bar:
            for step in range(start + 1, self.config.steps + 1):
                metrics = self.train_step(step)
                totals["tokens"] += metrics["tokens/generated"]
                totals["seconds"] += metrics["seconds/step"]
                if main:
                    self.observer.metrics(metrics, step)
                bar.set_postfix(reward=f"{metrics['reward/total']:.2f}", len=f"{metrics['response/tokens']:.0f}")
                bar.update()
                if step % self.config.checkpoint_every == 0 or step == self.config.steps:
                    self._save(step, before)
        after = self.probe()
        result = {"rl/steps": float(self.config.steps), "rl/updates": float(self.update.version)}
        if before is not None and after is not None:
            result |= {"reward/before": before, "reward/after": after}
        if totals["seconds"]:
            result["rl/tokens_per_second"] = totals["tokens"] / totals["seconds"]
        return result

    def probe(self) -> float | None:
        """Mean reward of sampled responses to the prompts that are trained first, on the ranges of the last step.

        The same prompts, the same random numbers and the same reward before and after, so that the two can be
        compared.
        """
        count = min(self.config.reward_probe_prompts, len(self.tasks))
        if not count:
            return None
        mine = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        tasks = [self.tasks[n] for n in self._visited(mine)]
        rollouts = self._rollouts(tasks, [derive(self.config.seed, "probe", n) for n in mine], "reward probe")
        judged = self._judge(tasks, rollouts, self.config.steps, "reward probe")
        gathered = self._gather(judged.rewards[~judged.dropped].reshape(-1).tolist())
        return sum(gathered) / len(gathered)

    def train_step(self, step: int) -> dict[str, float]:
        seconds: dict[str, float] = {}
        torch.manual_seed(derive(self.config.seed, "update", step))  # dropout, where a model or adapter has any
        positions = self._positions(step)
        tasks = [self.tasks[n] for n in positions]
        seeds = [derive(self.config.seed, "rollout", step, place) for place in self._places()]
        with _timed(seconds, "seconds/rollout"):
            groups = self._rollouts(tasks, seeds, f"step {step}: rollout")
        with _timed(seconds, "seconds/reward"):
            judged = self._judge(tasks, groups, step, f"step {step}")
            experience = self._experience(groups, judged, step)
        with _timed(seconds, "seconds/update"):
            statistics = self.update.run(experience, self._last_good())
            self.engine.synchronise(self.model, self.update.version)
        if self.accelerator.num_processes > 1:
            everyone = gather_object([statistics])
            statistics.merge([other for n, other in enumerate(everyone) if n != self.accelerator.process_index])
        step_entropy = self.algorithm.observe(statistics.entropy_sums, statistics.entropy_counts)
        if self.accelerator.is_main_process and (step % self.config.table_every == 0 or step == 1):
            self.observer.table(_completions(tasks, groups, judged, step), f"completions_step_{step:06d}")
        return self._metrics(groups, judged, experience, step_entropy, seconds) | statistics.metrics()

    def _judge(self, tasks: Sequence[Task], groups: list[list[Rollout]], step: int, where: str) -> Judged:
        """Rewards and regions of this process's responses. A group that cannot be scored is dropped, loudly."""
        judgements = [
            [self.algorithm.judge(rollout.response_ids, task.reference, step) for rollout in group]
            for task, group in zip(tasks, groups, strict=True)
        ]
        scores = [
            self.functions.score(task.sample, [_text(j) for j in judged], [r.response_ids for r in group], step)
            for task, group, judged in zip(tasks, groups, judgements, strict=True)
        ]
        own = torch.tensor([[judgement.reward.total for judgement in group] for group in judgements])  # (P, G)
        rewards = self.config.reward_weight * own + torch.tensor([score.totals for score in scores])
        dropped = torch.tensor([score.failure is not None for score in scores])
        rewards[dropped] = 0.0
        if not bool(rewards.isfinite().all()):
            raise UserError(f"{where}: a reward is not a finite number; {self._last_good()}")
        reasons = [score.failure for score in scores if score.failure is not None]
        if reasons:
            log.warning("%s: %d of %d groups dropped: %s", where, len(reasons), len(scores), reasons[0])
        if all(self._gather(dropped.tolist())):
            raise UserError(f"{where}: no group could be scored: {reasons[0]}; {self._last_good()}")
        return Judged(judgements, scores, rewards, dropped)

    def _experience(self, groups: list[list[Rollout]], judged: Judged, step: int) -> Experience:
        """This process's rollouts with their weights.

        Weights are made of the rollouts of all processes at once, before any split: schemes that compare tokens with
        the rest of the rollout give the same on any number of processes.
        """
        rollouts = [rollout for group in groups for rollout in group]
        dropped = judged.dropped.repeat_interleave(self.config.group_size)  # (B,)
        if self.algorithm.wants_entropies and any(rollout.entropies is None for rollout in rollouts):
            for rollout, values in zip(rollouts, self.update.entropies(rollouts), strict=True):
                rollout.entropies = values
        own = [
            (rollout.response_ids, judgement.regions.tolist(), rollout.entropies or [], gone)
            for rollout, judgement, gone in zip(
                rollouts, chain.from_iterable(judged.judgements), dropped.tolist(), strict=True
            )
        ]
        every = self._gather(own)  # in the order of the processes, each with as many rows
        width = max(len(row[0]) for row in every)
        mask = pad_rows([[1] * len(row[0]) for row in every], width, torch.bool)
        ids = pad_rows([row[0] for row in every], width, torch.int64)
        regions = pad_rows([row[1] for row in every], width, torch.int64, Region.OTHER)
        entropies = pad_rows([row[2] for row in every], width, torch.float32)
        compared = mask & ~torch.tensor([row[3] for row in every])[:, None]  # dropped rows are compared with nothing
        weights = self.algorithm.weights(ids, regions, compared, entropies, step)
        mine = slice(self.accelerator.process_index * len(own), (self.accelerator.process_index + 1) * len(own))
        return Experience(
            rollouts=rollouts,
            advantages=self.algorithm.advantages(judged.rewards).reshape(-1).float(),  # 0 in a dropped group
            regions=regions[mine],
            mask=mask[mine],
            weights=weights[mine],
            dropped=dropped,
        )

    def _rollouts(self, tasks: Sequence[Task], seeds: Sequence[int], what: str) -> list[list[Rollout]]:
        config = self.config
        main = self.accelerator.is_main_process
        with tqdm(
            total=len(tasks) * config.group_size,
            desc=what,
            unit="response",
            leave=False,
            disable=None if main else True,
        ) as bar:
            return self.engine.generate(
                [task.prompt_ids for task in tasks],
                samples=config.group_size,
                max_new_tokens=config.max_response_tokens,
                temperature=config.temperature,
                batch_tokens=config.rollout_batch_tokens,
                seeds=seeds,
                on_progress=bar.update,
            )

    def _places(self) -> range:
        """Places in the step's list of prompts that belong to this process."""
        return range(self.accelerator.process_index, self.config.prompts_per_step, self.accelerator.num_processes)

    def _positions(self, step: int) -> list[int]:
        """Indices of this process's tasks of a step."""
        first = (step - 1) * self.config.prompts_per_step
        return self._visited(first + place for place in self._places())

    def _visited(self, numbers: Iterable[int]) -> list[int]:
        """Indices of the tasks that are visited as number n, counted from 0: seeded permutations without end."""
        orders: dict[int, list[int]] = {}
        visited = []
        for number in numbers:
            epoch, place = divmod(number, len(self.tasks))
            if epoch not in orders:
                generator = torch.Generator().manual_seed(derive(self.config.seed, "order", epoch))
                orders[epoch] = torch.randperm(len(self.tasks), generator=generator).tolist()
            visited.append(orders[epoch][place])
        return visited

    def _metrics(
        self,
        groups: list[list[Rollout]],
        judged: Judged,
        experience: Experience,
        step_entropy: Tensor,
        seconds: dict[str, float],
    ) -> dict[str, float]:
        """Everything that is logged each step, over all processes."""
        rollouts, kept, rewards = experience.rollouts, judged.kept(), judged.rewards[~judged.dropped]
        local = {
            "total": rewards.reshape(-1).tolist(),
            "format": [judgement.reward.format for group in kept for judgement in group],
            "correctness": [judgement.reward.correctness for group in kept for judgement in group],
            "well_formed": [float(judgement.response.well_formed) for group in kept for judgement in group],
            "tokens": [len(rollout.response_ids) for rollout in rollouts],
            "truncated": [float(not rollout.finished) for rollout in rollouts],
            "flat": zero_variance(rewards).float().tolist(),
        }
        everything = {name: self._gather(values) for name, values in local.items()}
        mean = {name: sum(values) / len(values) for name, values in everything.items()}
        generated = sum(everything["tokens"])
        deviation = torch.tensor(everything["total"]).std().item() if len(everything["total"]) > 1 else 0.0
        metrics = {
            "reward/total": mean["total"],
            "reward/std": deviation,
            "reward/format": mean["format"],
            "reward/correctness": mean["correctness"],
            "reward/well_formed": mean["well_formed"],
            "reward/zero_variance_share": mean["flat"],
            "response/tokens": mean["tokens"],
            "response/truncated_share": mean["truncated"],
            "tokens/generated": float(generated),
            "tokens_per_second/rollout": generated / max(1e-9, seconds["seconds/rollout"]),
            "tokens_per_second/update": generated / max(1e-9, seconds["seconds/update"]),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "memory/peak_gib": peak_memory_gib(),
            "seconds/step": sum(seconds.values()),
        }
        weight_sums, weight_counts = (
            torch.tensor(self._gather([values.tolist()])).sum(dim=0)
            for values in region_sums(experience.weights, experience.regions, experience.trained_mask())
        )
        for region in Region:
            name = region.name.lower()
            if not math.isnan(float(step_entropy[region])):
                metrics[f"entropy/{name}"] = float(step_entropy[region])
            if weight_counts[region]:
                metrics[f"weight/{name}"] = float(weight_sums[region] / weight_counts[region])
                metrics[f"tokens/{name}"] = float(weight_counts[region])
        return metrics | seconds | self._function_metrics(judged)

    def _function_metrics(self, judged: Judged) -> dict[str, float]:
        """What reward functions gave and logged; nothing where there are none."""
        if not self.functions.names:
            return {}
        parts = [
            (f"reward/function/{name}", x) for score in judged.scores for name in score.parts for x in score.parts[name]
        ]
        logged = [pair for score in judged.scores for pair in score.metrics]
        values: dict[str, list[float]] = {}
        for name, value in self._gather(parts + logged):
            values.setdefault(name, []).append(value)
        dropped = float(sum(self._gather(judged.dropped.tolist())))
        return {name: sum(each) / len(each) for name, each in values.items()} | {"reward/dropped_groups": dropped}

    def _gather(self, values: list[Any]) -> list[Any]:
        return gather_object(values) if self.accelerator.num_processes > 1 else values

    def _named(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _save(self, step: int, before: float | None) -> None:
        if self.accelerator.is_main_process:
            state = {
                "version": self.update.version,
                "reward_before": before,
                "algorithm": self.algorithm.state(),
            }
            self._last = self.checkpoints.save(step, self._named(), self.optimizer, state)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> tuple[int, float | None]:
        """Take up the newest checkpoint; returns its step and the reward before training, (0, None) without one."""
        path = self._last = self.checkpoints.latest()
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        if path is None:
            return 0, None
        state = self.checkpoints.restore(path, self._named(), self.optimizer)
        self.update.version = int(state["version"])
        self.algorithm.load_state(state["algorithm"])
        self.engine.synchronise(self.model, self.update.version)
        log.info("going on after step %d (%s)", state["step"], path)
        before = state["reward_before"]
        return int(state["step"]), None if before is None else float(before)

    def _last_good(self) -> str:
        return f"the last good checkpoint is {self._last}" if self._last else "no checkpoint has been written yet"


def _check(config: RlConfig, lengths: Sequence[int], processes: int) -> None:
    """Settings that would change the objective without a word, or leave a process waiting, are refused.

    Args:
        lengths: tokens of each training prompt.
    """
    if config.temperature != 1.0:
        raise UserError(
            f"rl.temperature is {config.temperature}: training samples at 1.0, anything else biases the ratio"
        )
    if config.mini_batch_prompts is not None and config.prompts_per_step % config.mini_batch_prompts:
        raise UserError(
            f"rl.mini_batch_prompts ({config.mini_batch_prompts}) does not divide rl.prompts_per_step "
            f"({config.prompts_per_step}): an update takes whole groups of rl.group_size responses; choose a divisor, "
            "or null for one update a rollout"
        )
    for name in ("prompts_per_step", "mini_batch_prompts"):
        prompts = getattr(config, name)
        if prompts is not None and prompts % processes:
            raise UserError(
                f"rl.{name} ({prompts}) must be a multiple of the number of processes ({processes}), whole groups for "
                f"each: choose {-(-prompts // processes) * processes}"
            )
    if not config.reward_weight and not config.reward_functions:
        raise UserError("rl.reward_weight is 0 and rl.reward_functions is empty: there is nothing to train for")
    if not lengths:
        raise UserError("there are no training prompts: the dataset's split 'rl' is empty")
    longest, response = max(lengths), config.max_response_tokens
    budgets = {  # the least that each budget has to hold at once
        "micro_batch_tokens": ("response", longest + response),
        "rollout_batch_tokens": (f"group of {config.group_size}", longest + config.group_size * response),
    }
    for name, (what, needed) in budgets.items():
        if getattr(config, name) < needed:
            raise UserError(
                f"rl.{name} ({getattr(config, name)}) does not hold one {what}: the longest prompt has {longest} "
                f"tokens, a response up to {response} (rl.max_response_tokens); set rl.{name}={needed} or more"
            )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _text(judgement: Judgement) -> str:
    """The response as plain UTF-8; what is none becomes U+FFFD."""
    return judgement.response.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _completions(tasks: Sequence[Task], groups: list[list[Rollout]], judged: Judged, step: int) -> list[dict[str, Any]]:
    rows = []
    for task, group, judgements, score, rewards in zip(
        tasks, groups, judged.judgements, judged.scores, judged.rewards.tolist(), strict=True
    ):
        for n, (rollout, judgement) in enumerate(zip(group, judgements, strict=True)):
            row = {
                "step": step,
                "sample": task.id,
                "response": _text(judgement),
                "reference": task.reference.text,
                "reward": rewards[n] if score.failure is None else None,
                "format": judgement.reward.format,
                "correctness": judgement.reward.correctness,
                "tokens": len(rollout.response_ids),
                "finished": rollout.finished,
                "problems": "; ".join(judgement.response.problems),
            }
            row |= {f"function/{name}": values[n] for name, values in score.parts.items()}
            row |= {f"extra/{name}": values[n] for name, values in score.extra.items()}
            rows.append(row if score.failure is None else {**row, "dropped": score.failure})
    return rows
