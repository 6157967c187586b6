"""One policy update: from judged rollouts to an optimizer step. It executes weights and losses and knows no tag."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rest_core.algorithm.entropy import region_sums
from rest_core.algorithm.loss import Denominators, policy_loss
from rest_core.algorithm.regions import Region
from rest_core.config import RlConfig
from rest_core.errors import UserError
from rest_core.model.batch import make_batch, micro_batches
from rest_core.records import Rollout


@dataclass
class Experience:
    """The judged rollouts of one step of this process; tensors are padded to the longest response, T."""

    rollouts: list[Rollout]  # B, the samples of a group next to each other
    advantages: Tensor  # (B,)
    regions: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool
    weights: Tensor  # (B, T)
    old_logps: Tensor | None = None  # (B, T); None: one update a rollout, the policy itself is the old one
    dropped: Tensor | None = None  # (B,) bool: rows without a usable reward, in no forward and in no denominator

    def kept(self, rows: Sequence[int]) -> list[int]:
        """Those of `rows` that are not dropped."""
        return [n for n in rows if self.dropped is None or not bool(self.dropped[n])]

    def trained_mask(self) -> Tensor:
        """(B, T) bool: the mask without the rows that are dropped."""
        return self.mask if self.dropped is None else self.mask & ~self.dropped[:, None]


@dataclass
class UpdateStatistics:
    """Sums over the micro-batches of a step, so that means are over tokens and not over batches."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    maxima: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: int = 0
    loss: float = 0.0
    grad_norms: list[float] = field(default_factory=list)  # one an optimizer update, before clipping
    entropy_sums: Tensor = field(default_factory=lambda: torch.zeros(len(Region), dtype=torch.float64))
    entropy_counts: Tensor = field(default_factory=lambda: torch.zeros(len(Region), dtype=torch.float64))

    def add(self, metrics: dict[str, float], tokens: int) -> None:
        self.tokens += tokens
        for name, value in metrics.items():
            if name.endswith("/max"):
                self.maxima[name] = max(self.maxima[name], value)
            else:
                self.sums[name] += value * tokens

    def merge(self, others: Sequence[UpdateStatistics]) -> None:
        """Take in the statistics of other processes; their optimizer updates are the same as ours."""
        for other in others:
            self.tokens += other.tokens
            self.loss += other.loss
            self.entropy_sums += other.entropy_sums
            self.entropy_counts += other.entropy_counts
            for name, value in other.sums.items():
                self.sums[name] += value
            for name, value in other.maxima.items():
                self.maxima[name] = max(self.maxima[name], value)

    def metrics(self) -> dict[str, float]:
        """Means over trained tokens, maxima, and what belongs to the step as a whole."""
        means = {name: value / max(1, self.tokens) for name, value in self.sums.items()}
        whole = {"loss": self.loss / max(1, len(self.grad_norms)), "updates": float(len(self.grad_norms))}
        if self.grad_norms:
            whole["grad_norm"] = sum(self.grad_norms) / len(self.grad_norms)
        return means | dict(self.maxima) | whole


class PolicyUpdate:
    """Runs the optimizer over experience, on any number of processes."""

    def __init__(
        self,
        policy: Any,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        config: RlConfig,
        *,
        pad_id: int,
        reference: Any = None,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.config = config
        self.pad_id = pad_id
        self.reference = reference  # frozen policy for the KL penalty, or None
        self.version = 0  # optimizer updates so far

    def run(self, experience: Experience, last_good: str) -> UpdateStatistics:
        """One pass over the experience; `last_good` names the checkpoint to go back to in an error."""
        for rollout in experience.rollouts:
            if rollout.policy_version != self.version:
                raise RuntimeError(
                    f"a rollout of policy version {rollout.policy_version} reached the update of version {self.version}"
                )
        statistics = UpdateStatistics()
        parts = self._mini_batches(len(experience.rollouts))
        if len(parts) > 1:
            experience.old_logps = self._log_probs(self.policy, experience)
        for part in parts:
            self._step(experience, part, statistics, last_good)
        return statistics

    def _mini_batches(self, count: int) -> list[list[int]]:
        """Row indices of each optimizer update: whole groups, in the order of the rollout."""
        prompts = self.config.mini_batch_prompts or self.config.prompts_per_step
        size = max(1, prompts // self.accelerator.num_processes) * self.config.group_size
        return [list(range(start, min(start + size, count))) for start in range(0, count, size)]

    def _step(self, experience: Experience, rows: list[int], statistics: UpdateStatistics, last_good: str) -> None:
        denominators = self._denominators(experience, rows)
        # A group without signal has advantage 0 throughout: it adds nothing to the policy gradient and is skipped in
        # the forward, but stays in the denominators. A KL penalty or entropy bonus needs every row.
        every = bool(self.config.loss.kl_coefficient or self.config.loss.entropy_coefficient)
        signal = [n for n in experience.kept(rows) if every or float(experience.advantages[n]) != 0.0]
        parts = list(micro_batches(experience.rollouts, signal, self.config.micro_batch_tokens))
        rounds = int(self._reduce(torch.tensor(float(len(parts))), "max"))
        if rounds == 0:
            return
        for index in range(rounds):
            # Every process makes the same number of passes: collectives inside the model must meet.
            live = index < len(parts)
            self._backward(experience, parts[index] if live else rows[:1], denominators, statistics, live, last_good)
        norm = self.accelerator.clip_grad_norm_(self._trained(), self.config.max_grad_norm)
        if not math.isfinite(float(norm)):
            raise UserError(f"the gradient norm is {float(norm)}: lower rl.learning_rate; {last_good}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, (self.version + 1) / max(1, self.config.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        statistics.grad_norms.append(float(norm))

    def _backward(
        self,
        experience: Experience,
        rows: Sequence[int],
        denominators: Denominators,
        statistics: UpdateStatistics,
        live: bool,
        last_good: str,
    ) -> None:
        config, device = self.config.loss, self.accelerator.device
        batch = make_batch([experience.rollouts[n] for n in rows], self.pad_id).to(device)
        width = batch.response_ids.shape[1]
        with self.accelerator.autocast():
            logp, entropy = self.policy(batch, entropy_gradient=config.entropy_coefficient > 0)  # (b, t)
            ref_logp = None
            if self.reference is not None:
                with torch.no_grad():
                    ref_logp, _ = self.reference(batch)
        old = logp.detach() if experience.old_logps is None else experience.old_logps[rows, :width].to(device)
        output = policy_loss(
            logp,
            old,
            experience.advantages[rows].to(device),
            batch.mask,
            experience.weights[rows, :width].to(device),
            clip=(config.clip_low, config.clip_high),
            dual_clip=config.dual_clip,
            aggregation=config.aggregation,
            denominators=denominators,
            ref_logp=ref_logp,
            kl_coefficient=config.kl_coefficient,
            entropy=entropy,
            entropy_coefficient=config.entropy_coefficient,
        )
        value = float(output.loss.detach())
        if not math.isfinite(value) or abs(value) > self.config.max_loss:
            raise UserError(f"the loss is {value}: lower rl.learning_rate or rl.max_grad_norm; {last_good}")
        # DDP averages gradients over processes, the denominators are global: the product is the sum.
        self.accelerator.backward(output.loss * (self.accelerator.num_processes if live else 0.0))
        if not live:
            return
        statistics.loss += value
        tokens = int(batch.mask.sum())
        sampled = torch.zeros(batch.mask.shape, device=device)
        for index, n in enumerate(rows):
            values = experience.rollouts[n].logps
            sampled[index, : len(values)] = torch.tensor(values, device=device)
        gap = (logp.detach() - sampled)[batch.mask]
        mismatch = {
            "mismatch/ratio_mean": float(gap.exp().mean()),
            "mismatch/ratio/max": float(gap.exp().max()),
            "mismatch/kl": float((gap.exp() - gap - 1).mean()),
        }
        statistics.add(output.metrics | mismatch, tokens)
        sums, counts = region_sums(entropy, experience.regions[rows, :width].to(device), batch.mask)
        statistics.entropy_sums += sums
        statistics.entropy_counts += counts

    @torch.no_grad()
    def _log_probs(self, policy: Any, experience: Experience) -> Tensor:
        """(B, T) log-probs of all rollouts under `policy`, before the first of several updates."""
        out = torch.zeros(experience.mask.shape)
        policy.eval()  # the sampling policy has no dropout
        kept = experience.kept(range(len(experience.rollouts)))
        for rows in micro_batches(experience.rollouts, kept, self.config.micro_batch_tokens):
            batch = make_batch([experience.rollouts[n] for n in rows], self.pad_id).to(self.accelerator.device)
            with self.accelerator.autocast():
                logp, _ = policy(batch)
            out[rows, : logp.shape[1]] = logp.float().cpu()
        policy.train()
        return out

    def _denominators(self, experience: Experience, rows: list[int]) -> Denominators:
        """Of the whole update: over all its micro-batches and all processes."""
        kept = experience.kept(rows)
        own = Denominators.of(experience.mask[kept], experience.weights[kept])
        total = self._reduce(torch.tensor(own, dtype=torch.float64), "sum")
        return Denominators(*total.tolist())

    def _reduce(self, value: Tensor, how: str) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        gathered: Tensor = self.accelerator.gather(value.to(self.accelerator.device)[None]).cpu()
        return gathered.sum(dim=0) if how == "sum" else gathered.amax(dim=0)

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
