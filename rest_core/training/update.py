"""One policy update: from judged rollouts to an optimizer step. It executes weights and losses and knows no tag."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rest_core.algorithm.entropy import region_sums
from rest_core.algorithm.loss import (
    Denominators,
    TokenTerms,
    loss_metrics,
    policy_loss,
    sequence_log_ratios,
    token_scales,
)
from rest_core.algorithm.regions import Region
from rest_core.config import RlConfig
from rest_core.errors import UserError
from rest_core.memory import out_of_memory_names
from rest_core.model.attention import FLEX_BLOCK
from rest_core.model.batch import (
    Batch,
    Group,
    empty_batch,
    pad_rows,
    padded_batch,
    padded_passes,
    shared_batch,
    shared_passes,
)
from rest_core.model.parameters import whole
from rest_core.records import Rollout

ROW_MULTIPLE_CUDA = 8 * FLEX_BLOCK  # few different row lengths, so that compiled kernels are used again


@dataclass
class Experience:
    """The judged rollouts of one step of this process; tensors are padded to the longest response, T."""

    rollouts: list[Rollout]  # B, the samples of a group next to each other
    advantages: Tensor  # (B,)
    regions: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool
    weights: Tensor  # (B, T)
    old_logps: Tensor | None = None  # (B, T); None: one update a rollout, the policy itself is the old one
    sequence_log_ratios: Tensor | None = None  # (B,) of GSPO, before the update that is being made; None: 0
    # (B,) bool: rows without a usable reward or cut off at the length limit, in no forward and in no denominator
    untrained: Tensor | None = None

    def kept(self, rows: Sequence[int]) -> list[int]:
        """Those of `rows` that are trained on."""
        return [n for n in rows if self.untrained is None or not bool(self.untrained[n])]

    def trained_mask(self) -> Tensor:
        """(B, T) bool: the mask without the rows that are not trained on."""
        return self.mask if self.untrained is None else self.mask & ~self.untrained[:, None]

    @cached_property
    def sampled_logps(self) -> Tensor:
        """(B, T) log-probs as the engine gave them."""
        return pad_rows([rollout.logps for rollout in self.rollouts], self.mask.shape[1], self.weights.dtype)


@dataclass
class UpdateStatistics:
    """Sums over the micro-batches of a step, so that means are over tokens and not over batches."""

    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    maxima: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: int = 0  # trained
    computed: int = 0  # in the forward, prompts included
    divided_groups: int = 0  # larger than the token budget, so that their prompts are computed more than once
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
            self.computed += other.computed
            self.divided_groups += other.divided_groups
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
        whole |= {"tokens/trained": float(self.tokens), "tokens/computed": float(self.computed)}
        whole["update/divided_groups"] = float(self.divided_groups)
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
        reference_policy: Any = None,
    ) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.config = config
        self.pad_id = pad_id
        self.reference_policy = reference_policy  # frozen, for the KL penalty; None without one
        self.shared: bool = accelerator.unwrap_model(policy).shared
        self.version = 0  # optimizer updates so far

    @property
    def learning_rate(self) -> float:
        """That of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def resume(self, version: int, learning_rate: float | None) -> None:
        """Continue after `version` updates, the last of them at `learning_rate`."""
        self.version = version
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate

    def run(self, experience: Experience) -> UpdateStatistics:
        """One pass over the experience."""
        for rollout in experience.rollouts:
            if rollout.policy_version != self.version:
                raise RuntimeError(
                    f"a rollout of policy version {rollout.policy_version} reached the update of version {self.version}"
                )
        statistics = UpdateStatistics()
        parts = self._mini_batches(len(experience.rollouts))
        if len(parts) > 1:
            experience.old_logps, _ = self.values(experience)
        for part in parts:
            self._step(experience, part, statistics)
        return statistics

    @torch.no_grad()
    def values(self, experience: Experience, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (B, T) of all rollouts under the policy as it is, in the type of the weights.

        With `rows` of these alone, 0 elsewhere.
        """
        logps, entropies = torch.zeros(2, *experience.mask.shape, dtype=experience.weights.dtype).unbind()
        self.policy.eval()  # the sampling policy has no dropout
        kept = experience.kept(range(len(experience.rollouts)) if rows is None else rows)
        for groups in self._equal_passes(experience.rollouts, kept):
            batch = self._batch(experience.rollouts, groups)
            with self.accelerator.autocast():
                _, logp, entropy = self.policy(batch)
            place = (batch.rows.cpu(), batch.columns.cpu())
            logps[place], entropies[place] = logp.to(logps).cpu(), entropy.to(logps).cpu()
        self.policy.train()
        return logps, entropies

    def entropies(self, rollouts: list[Rollout]) -> list[list[float]]:
        """Entropy (nats) at every sampled token under the policy as it is, for an engine that does not give it."""
        lengths = [len(rollout.response_ids) for rollout in rollouts]
        mask = pad_rows([[1] * length for length in lengths], max(lengths, default=0), torch.bool)
        alike = torch.zeros(mask.shape)  # nothing but the ids is read
        _, values = self.values(Experience(rollouts, torch.zeros(len(rollouts)), alike.long(), mask, alike))
        return [row[:length].tolist() for row, length in zip(values, lengths, strict=True)]

    def _mini_batches(self, count: int) -> list[list[int]]:
        """This process's rows of each optimizer update: whole groups; the same updates on any number of processes."""
        prompts, group = self.config.mini_batch_prompts or self.config.prompts_per_step, self.config.group_size
        processes = self.accelerator.num_processes
        parts: list[list[int]] = [[] for _ in range(self.config.prompts_per_step // prompts)]
        for row in range(count):  # the step's prompts are dealt out to the processes in turn
            parts[(self.accelerator.process_index + row // group * processes) // prompts].append(row)
        return parts

    def _step(self, experience: Experience, rows: list[int], statistics: UpdateStatistics) -> None:
        denominators = self._denominators(experience, rows)
        # A group without signal has advantage 0 throughout: it adds nothing to the policy gradient and is skipped in
        # the forward, but stays in the denominators. A KL penalty or entropy bonus needs every row.
        every = bool(self.config.loss.kl_coefficient or self.config.loss.entropy_coefficient)
        signal = [n for n in experience.kept(rows) if every or float(experience.advantages[n]) != 0.0]
        passes = self._equal_passes(experience.rollouts, signal)
        if not passes:
            return
        statistics.divided_groups += _divided_groups(experience.rollouts, passes) if self.shared else 0
        loss, limit = self.config.loss, self.config.max_response_tokens
        scales = token_scales(experience.mask, experience.weights, loss, denominators, limit)
        if loss.surrogate == "gspo" and experience.old_logps is not None:
            # A token's loss needs the whole sequence's ratio, and the head is visited in chunks: one more pass.
            logps, _ = self.values(experience, signal)
            experience.sequence_log_ratios = sequence_log_ratios(logps, experience.old_logps, experience.mask)
        for n, groups in enumerate(passes):
            # DDP adds up gradients over the processes once, in the last pass. FSDP2 does in every pass: each process
            # would have to hold the gradients of the whole model otherwise.
            alone = n < len(passes) - 1 and not self.accelerator.is_fsdp2
            with self.accelerator.no_sync(self.policy) if alone else nullcontext():
                self._backward(experience, groups, scales, statistics)
        norm = float(whole(self.accelerator.clip_grad_norm_(self._trained(), self.config.max_grad_norm)))
        if not math.isfinite(norm):
            raise UserError(f"the gradient norm is {norm}: lower rl.learning_rate")
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, (self.version + 1) / max(1, self.config.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        statistics.grad_norms.append(norm)

    def _equal_passes(self, rollouts: Sequence[Rollout], rows: Sequence[int]) -> list[list[Group]]:
        """Forward passes over `rows`, as many on every process: collectives inside the model must meet.

        A process that has fewer than another makes up for it with passes without a row.
        """
        budget = self.config.micro_batch_tokens
        passes = shared_passes(rollouts, rows, budget) if self.shared else padded_passes(rollouts, rows, budget)
        most = int(self._reduce(torch.tensor(float(len(passes))), "max"))
        return passes + [[]] * (most - len(passes))

    def _batch(self, rollouts: Sequence[Rollout], groups: Sequence[Group]) -> Batch:
        device = self.accelerator.device
        if not groups:
            return empty_batch(self.pad_id, shared=self.shared).to(device)
        if not self.shared:
            return padded_batch(rollouts, groups, pad_id=self.pad_id).to(device)
        multiple = ROW_MULTIPLE_CUDA if device.type == "cuda" else 1
        return shared_batch(rollouts, groups, pad_id=self.pad_id, multiple=multiple).to(device)

    def _backward(
        self,
        experience: Experience,
        groups: Sequence[Group],
        scales: tuple[Tensor, Tensor],
        statistics: UpdateStatistics,
    ) -> None:
        device = self.accelerator.device
        batch = self._batch(experience.rollouts, groups)
        place = (batch.rows.cpu(), batch.columns.cpu())

        def of_tokens(values: Tensor) -> Tensor:
            """(B, T) or (B,) → (N,) of this batch's tokens."""
            return (values[place] if values.dim() == 2 else values[place[0]]).to(device)

        terms = TokenTerms(
            advantages=of_tokens(experience.advantages),
            scale=of_tokens(scales[0]),
            penalty_scale=of_tokens(scales[1]),
            old_logp=None if experience.old_logps is None else of_tokens(experience.old_logps),
            sampled_logp=of_tokens(experience.sampled_logps),
            sequence_log_ratio=(
                None if experience.sequence_log_ratios is None else of_tokens(experience.sequence_log_ratios)
            ),
        )
        with out_of_memory_names(
            "rl.micro_batch_tokens",
            self.config.micro_batch_tokens,
            batch.input_ids.numel(),
            otherwise="set rl.gradient_checkpointing=true",
        ):
            with self.accelerator.autocast():
                if self.reference_policy is not None:
                    with torch.no_grad():
                        terms = terms._replace(ref_logp=self.reference_policy(batch)[1])
                loss, logp, entropy = self.policy(
                    batch,
                    lambda tokens, logp, entropy: policy_loss(logp, entropy, terms.part(tokens), self.config.loss),
                    entropy_gradient=self.config.loss.entropy_coefficient > 0,
                )
            value = float(loss.detach())
            if not math.isfinite(value) or abs(value) > self.config.max_loss:
                raise UserError(f"the loss is {value}: lower rl.learning_rate or rl.max_grad_norm")
            # DDP and FSDP average gradients over processes, the denominators are global: the product is the sum.
            self.accelerator.backward(loss * self.accelerator.num_processes)
        statistics.loss += value
        statistics.computed += int(batch.attention_mask.sum()) if groups else 0
        statistics.add(loss_metrics(logp, terms, self.config.loss), len(logp))
        # Of the rows that the policy gradient is made of, whether or not a penalty brings others into the forward.
        sums, counts = region_sums(entropy, of_tokens(experience.regions), terms.advantages != 0)
        statistics.entropy_sums += sums
        statistics.entropy_counts += counts

    def _denominators(self, experience: Experience, rows: list[int]) -> Denominators:
        """Of the whole update: over all its micro-batches and all processes; untrained rows are not in them."""
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


def _divided_groups(rollouts: Sequence[Rollout], passes: Sequence[Sequence[Group]]) -> int:
    """Prompts whose responses are in more than one place."""
    places = Counter(tuple(rollouts[group.rows[0]].prompt_ids) for groups in passes for group in groups)
    return sum(count > 1 for count in places.values())
