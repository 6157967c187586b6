"""Rollouts by a transformers model in this process.

Each prompt is prefilled once and its cache shared by the samples of its group; tokens are drawn by inverting the
cumulative distribution (one uniform number a token); rows that have ended leave the batch. The model that generates
is a copy in the compute type, refreshed from the float32 master after each update and stamped with its version.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rest_core.records import Rollout

COMPACT_SHARE = 0.75  # rows are dropped once at most this share of the batch is still going


class TransformersEngine:
    """`rest_core.rollout.engine.Engine` on a causal language model of transformers.

    Args:
        model: the model that generates, in evaluation mode; it is never changed but by `synchronise`.
        stop_ids: ids that end a response.
        pad_id: filler for padded positions.
    """

    def __init__(self, model: Any, *, stop_ids: frozenset[int], pad_id: int) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.version = 0
        self._stop = torch.tensor(sorted(stop_ids), device=self.device)
        self._pad = pad_id

    @classmethod
    def copy_of(cls, master: Any, *, dtype: torch.dtype, stop_ids: frozenset[int], pad_id: int) -> TransformersEngine:
        """An engine on a copy of `master` in `dtype`; the master itself is never cast."""
        return cls(copy.deepcopy(master).to(dtype), stop_ids=stop_ids, pad_id=pad_id)

    @torch.no_grad()
    def synchronise(self, master: Any, version: int) -> None:
        """Take over the weights of `master` (same architecture), which are those after `version` updates."""
        source = dict(master.named_parameters())
        for name, parameter in self.model.named_parameters():
            parameter.copy_(source[name])
        self.version = version

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        batch_tokens: int = 65536,
        seeds: Sequence[int] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Rollout]]:
        """See `rest_core.rollout.engine.Engine`."""
        if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
            raise ValueError("sampling needs one seed a prompt")
        results: list[list[Rollout]] = [[] for _ in prompts]
        for part in _batches(prompts, samples, max_new_tokens, batch_tokens):
            drawn = None
            if temperature > 0 and seeds is not None:
                drawn = torch.cat([_uniforms(seeds[n], samples, max_new_tokens) for n in part]).to(self.device)
            rollouts = self._generate_batch([prompts[n] for n in part], samples, max_new_tokens, temperature, drawn)
            for place, n in enumerate(part):
                results[n] = rollouts[place * samples : (place + 1) * samples]
            if on_progress is not None:
                on_progress(len(rollouts))
        return results

    def _generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        max_new_tokens: int,
        temperature: float,
        uniforms: Tensor | None,
    ) -> list[Rollout]:
        """Responses of one batch, prompt by prompt; `uniforms` is (P·G, max_new_tokens), None for greedy."""
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad, device=self.device)  # (P, W)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=self.device)
            attention[row, width - len(prompt) :] = 1
        positions = (attention.cumsum(dim=1) - 1).clamp_min(0)
        output = self.model(
            input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(samples)
        logits = output.logits[:, -1].repeat_interleave(samples, dim=0)  # (B, V), B = P·G
        attention = attention.repeat_interleave(samples, dim=0)
        next_position = positions[:, -1:].repeat_interleave(samples, dim=0) + 1  # (B, 1)

        rows = torch.arange(len(logits), device=self.device)  # rows of the batch that are still computed
        total = len(rows)
        tokens = torch.full((total, max_new_tokens), self._pad, device=self.device)
        logps = torch.zeros(total, max_new_tokens, device=self.device)
        entropies = torch.zeros(total, max_new_tokens, device=self.device)
        lengths = torch.full((total,), max_new_tokens, device=self.device)
        done = torch.zeros(total, dtype=torch.bool, device=self.device)  # of all rows, computed or not

        for step in range(max_new_tokens):
            draws = uniforms[rows, step] if uniforms is not None else None
            token, logp, entropy = sample(logits, temperature, draws)
            tokens[rows, step], logps[rows, step], entropies[rows, step] = token, logp, entropy
            ended = torch.isin(token, self._stop) & ~done[rows]
            lengths[rows[ended]] = step + 1
            done[rows[ended]] = True
            going = ~done[rows]
            left = int(going.sum())
            if left == 0 or step + 1 == max_new_tokens:
                break
            if left <= COMPACT_SHARE * len(rows):
                keep = going.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                rows, token, attention, next_position = rows[keep], token[keep], attention[keep], next_position[keep]
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
            output = self.model(
                input_ids=token[:, None],
                attention_mask=attention,
                position_ids=next_position,
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
            next_position = next_position + 1

        return [
            Rollout(
                prompt_ids=list(prompts[row // samples]),
                response_ids=tokens[row, :length].tolist(),
                logps=logps[row, :length].tolist(),
                entropies=entropies[row, :length].tolist(),
                finished=bool(done[row]),
                policy_version=self.version,
            )
            for row, length in enumerate(lengths.tolist())
        ]


def _uniforms(seed: int, samples: int, count: int) -> Tensor:
    """(samples, count) uniform numbers in [0, 1)."""
    return torch.rand(samples, count, generator=torch.Generator().manual_seed(seed))


def sample(logits: Tensor, temperature: float, uniforms: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: (B, V).
        temperature: 0 for the most likely token.
        uniforms: (B,) in [0, 1), one draw a row; None for temperature 0.

    Returns:
        ids (B,), their log-probs (B,) and the entropy (B,), both of the untempered policy (nats).
    """
    logps = logits.float().log_softmax(dim=-1)  # (B, V)
    probabilities = logps.exp()
    entropy = -(probabilities * logps.clamp_min(torch.finfo(torch.float32).min)).sum(dim=-1)
    if uniforms is None:
        token = logps.argmax(dim=-1)
    else:
        tempered = probabilities if temperature == 1.0 else (logps / temperature).softmax(dim=-1)
        cumulative = tempered.cumsum(dim=-1)
        target = uniforms[:, None] * cumulative[:, -1:]
        # The first token whose cumulative probability is above the target has a probability above 0.
        token = torch.searchsorted(cumulative, target, right=True)[:, 0]
        token = torch.where(token < logits.shape[1], token, tempered.argmax(dim=-1))
    return token, logps.gather(1, token[:, None])[:, 0], entropy


def _batches(
    prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts of like length, so many that their groups' padded tokens stay within the budget."""
    order = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n))
    start = 0
    while start < len(order):
        row_tokens = len(prompts[order[start]]) + max_new_tokens
        count = max(1, batch_tokens // (row_tokens * samples))
        yield order[start : start + count]
        start += count
