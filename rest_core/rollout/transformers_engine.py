"""Rollouts by a transformers model in this process.

Each prompt is prefilled once, and its keys and values are shared by the samples of its group; tokens are drawn by
inverting the cumulative distribution (one uniform number a token); rows that have ended leave the batch. The model
that generates is a copy in the compute type, refreshed from the float32 master after each update and stamped with its
version. Models whose attention cannot be shared (sliding windows, recurrent layers …) are decoded with transformers'
own cache.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from rest_core.errors import NotFiniteLogits
from rest_core.model.parameters import merged_parameters, without_adapters
from rest_core.records import Rollout
from rest_core.rollout import decoding, packed, unshared
from rest_core.rollout.engine import seed_of_each
from rest_core.rollout.prefix_tree import PrefixTree
from rest_core.rollout.sampling import uniforms
from rest_core.rollout.trial import why_not_shared_prefix

log = logging.getLogger(__name__)


class TransformersEngine:
    """`rest_core.rollout.engine.Engine` on a causal language model of transformers.

    Args:
        model: the model that generates, in evaluation mode; it is never changed but by `synchronise`.
        stop_ids: ids that end a response.
        pad_id: filler for padded positions.
        prefix_bytes: memory for keys and values of earlier prompts and responses, so that prompts which begin alike
            are not computed anew.
    """

    def __init__(self, model: Any, *, stop_ids: frozenset[int], pad_id: int, prefix_bytes: int = 0) -> None:
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.version = 0
        self.pace = decoding.Pace.on(self.device)
        self._stop = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=self.device)
        self._pad = pad_id
        self.prefixes = PrefixTree(prefix_bytes) if prefix_bytes else None
        reason = why_not_shared_prefix(self.model)
        self.shares_prefix = reason is None
        if reason is not None:
            log.warning("responses are decoded with transformers' own cache, which is slower and larger: %s", reason)

    @property
    def kept_tokens(self) -> int | None:
        """The prompt tokens whose keys and values are kept between calls; None where that is no reason to wait.

        On a CPU a prompt that is computed anew costs more than a small batch; on a GPU the small batch costs more.
        """
        if self.prefixes is None or not self.shares_prefix or self.device.type != "cpu":
            return None
        return self.prefixes.limit // self._token_bytes

    @cached_property
    def _token_bytes(self) -> int:
        """Of a token's keys and values, measured: configurations say it in too many ways."""
        with torch.inference_mode():
            one = torch.tensor([[self._pad]], device=self.device)
            cache = self.model(one, use_cache=True).past_key_values
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    @classmethod
    def copy_of(cls, master: Any, *, dtype: torch.dtype, stop_ids: frozenset[int], pad_id: int) -> TransformersEngine:
        """An engine on a copy of `master` in `dtype`, adapters merged; the master itself is never cast."""
        return cls.taking_over(copy.deepcopy(master), dtype=dtype, stop_ids=stop_ids, pad_id=pad_id)

    @classmethod
    def taking_over(
        cls, model: Any, *, dtype: torch.dtype, stop_ids: frozenset[int], pad_id: int, prefix_bytes: int = 0
    ) -> TransformersEngine:
        """An engine that makes `model` its own: in `dtype`, adapters merged, linear layers packed for decoding."""
        # Made before the cast: whether a model fits is seen best in the type that it came in.
        engine = cls(without_adapters(model), stop_ids=stop_ids, pad_id=pad_id, prefix_bytes=prefix_bytes)
        engine.model.to(dtype)
        if packed.can_pack(engine.model):
            packed.pack(engine.model)
        return engine

    @torch.no_grad()
    def synchronise(self, master: Any, version: int) -> None:
        """Take over the weights of `master` (same architecture), which are those after `version` updates."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        modules = dict(self.model.named_modules(remove_duplicate=False))
        done: set[int] = set()
        for name, value in merged_parameters(master):
            module = modules[name.rpartition(".")[0]]
            if isinstance(module, packed.PackedLinear) and name.endswith(".weight"):
                module.pack(value)
            elif id(own[name]) not in done:
                own[name].copy_(value)
                done.add(id(own[name]))
        self.version = version
        if self.prefixes is not None:
            self.prefixes.clear()

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
        continued: bool = False,
    ) -> list[list[Rollout]]:
        """See `rest_core.rollout.engine.Engine`."""
        drawn = seed_of_each(prompts, seeds, temperature)
        results: list[list[Rollout]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda n: (-len(prompts[n]), n))
        if self.prefixes is not None:
            self.prefixes.begin()
        parts = (
            [order] if self.shares_prefix else self._batches(prompts, order, (samples, max_new_tokens), batch_tokens)
        )
        for part in parts if prompts else ():
            numbers = [uniforms(seed, samples, max_new_tokens) for n in part if (seed := drawn[n]) is not None]
            chosen = [prompts[n] for n in part]
            task = decoding.Task(
                chosen,
                samples=samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                draws=torch.cat(numbers).to(self.device) if numbers else None,
                stop=self._stop,
                pad_id=self._pad,
                budget=batch_tokens,
                on_ended=on_progress or (lambda count: None),
                continued=continued,
            )
            if self.shares_prefix:
                decoded = decoding.decode(self.model, task, self.pace, self.prefixes)
            else:
                decoded = unshared.decode(self.model, task)
            rollouts = self._rollouts(chosen, samples, decoded)
            for place, n in enumerate(part):
                results[n] = rollouts[place * samples : (place + 1) * samples]
        return results

    def _rollouts(self, prompts: Sequence[Sequence[int]], samples: int, decoded: decoding.Decoded) -> list[Rollout]:
        width = decoded.tokens.shape[1]
        stops = (decoded.tokens[..., None] == self._stop).any(dim=2)  # (B, T)
        finished = stops.any(dim=1).tolist()
        first = stops.int().argmax(dim=1).tolist()
        lengths = [end + 1 if ended else width for end, ended in zip(first, finished, strict=True)]
        inside = torch.arange(width, device=self.device) < torch.tensor(lengths, device=self.device)[:, None]  # (B, T)
        if bool((decoded.logps.isnan() & inside).any()):
            raise NotFiniteLogits
        tokens, logps, entropies = (x.tolist() for x in (decoded.tokens, decoded.logps, decoded.entropies))
        return [
            Rollout(
                prompt_ids=list(prompts[row // samples]),
                response_ids=tokens[row][:length],
                logps=logps[row][:length],
                entropies=entropies[row][:length],
                finished=finished[row],
                policy_version=self.version,
            )
            for row, length in enumerate(lengths)
        ]

    @staticmethod
    def _batches(
        prompts: Sequence[Sequence[int]], order: Sequence[int], responses: tuple[int, int], batch_tokens: int
    ) -> Iterator[Sequence[int]]:
        """Parts of `order`, in which like lengths stand together, as large as the budget allows.

        Args:
            responses: how many a prompt, and their length; each has a copy of its prompt.
        """
        samples, max_new_tokens = responses
        start = 0
        while start < len(order):
            count = max(1, batch_tokens // ((len(prompts[order[start]]) + max_new_tokens) * samples))
            yield order[start : start + count]
            start += count
