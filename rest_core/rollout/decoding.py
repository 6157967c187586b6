"""Decoding a batch in lock-step over a shared prefix: rows that have ended leave, buffers grow by blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rest_core.model.attention import implementation
from rest_core.model.capabilities import obstacle
from rest_core.rollout.sampling import sample
from rest_core.rollout.shared_prefix import IMPLEMENTATION, SharedPrefixCache, prefill

PREFILL_TOKENS = 8192  # prompts are prefilled in runs of so many padded tokens


@dataclass(frozen=True)
class Pace:
    """How often the host waits for the device, and in which sizes memory and rows change.

    Attributes:
        look_every: steps between two checks for rows that have ended; each check waits for the device.
        block: response tokens by which the buffers grow.
        sizes: a batch shrinks to the smallest multiple of 1/`sizes` of its first size that holds the rows that are
            left; None for exactly those.
        capture: replay the step as a CUDA graph.
    """

    look_every: int
    block: int
    sizes: int | None
    capture: bool

    @classmethod
    def on(cls, device: torch.device) -> Pace:
        """On a GPU looks and new shapes are expensive; on a CPU each row that is computed for nothing is."""
        if device.type == "cuda":
            return cls(look_every=16, block=256, sizes=4, capture=True)
        return cls(look_every=1, block=64, sizes=None, capture=False)


@dataclass(frozen=True)
class Decoded:
    """Of all rows (B, T), prompt by prompt; what stands after a row's first stop id, or first log-prob that is NaN,
    means nothing."""

    tokens: Tensor
    logps: Tensor
    entropies: Tensor


class Batch:
    """The state of one batch. `step` reads and writes it in place, in tensors that stay where they are until `shrink`
    or `grow`; so a step can be captured once and replayed."""

    def __init__(
        self,
        model: Any,
        cache: SharedPrefixCache,
        logits: Tensor,
        lengths: Sequence[int],
        draws: Tensor | None,
        stop: Tensor,
        *,
        samples: int,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        device = logits.device
        self.model, self.cache, self.stop, self.temperature = model, cache, stop, temperature
        total = len(lengths) * samples
        self.positions = torch.tensor(lengths, device=device).repeat_interleave(samples)[:, None]  # (B, 1), of `token`
        self.token = torch.zeros(total, 1, dtype=torch.int64, device=device)
        self.draws = draws  # (B, T)
        self.tokens = torch.zeros(total, max_new_tokens, dtype=torch.int64, device=device)
        self.logps = torch.zeros(total, max_new_tokens, device=device)
        self.entropies = torch.zeros(total, max_new_tokens, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)
        self.drawn = torch.zeros(1, dtype=torch.int64, device=device)  # tokens a row so far
        self.workspace = torch.empty(2, total, logits.shape[1], device=device)
        self._draw(logits.repeat_interleave(samples, dim=0))

    def step(self) -> None:
        """One forward pass over the last tokens, and the tokens that follow from it."""
        logits = _forward(self.model, self.cache, self.token, self.positions)
        self.positions.add_(1)
        self._draw(logits)

    def _draw(self, logits: Tensor) -> None:
        draws = None if self.draws is None else self.draws.index_select(1, self.drawn)[:, 0]
        token, logp, entropy = sample(logits, self.temperature, draws, self.workspace[:, : len(logits)])
        for record, new in ((self.tokens, token), (self.logps, logp), (self.entropies, entropy)):
            record.index_copy_(1, self.drawn, new[:, None])
        self.ended.logical_or_((token[:, None] == self.stop).any(dim=1) | logp.isnan())  # nothing follows from NaN
        self.token.copy_(token[:, None])
        self.drawn.add_(1)

    def grow(self, columns: int) -> None:
        """Make room for the keys and values of `columns` response tokens."""
        self.cache.reserve(len(self.token), columns)

    def shrink(self, rows: int) -> Tensor:
        """Continue with `rows` rows, among them all that have not ended; returns (rows,) their old indices."""
        ended = self.ended.tolist()
        # Rows behind the cut that continue take the places of ended rows before it; all others stay where they are.
        movers = [row for row in range(rows, len(ended)) if not ended[row]]
        vacated = [row for row in range(rows) if ended[row]][: len(movers)]
        indices = list(range(rows))
        for there, here in zip(vacated, movers, strict=True):
            indices[there] = here
        order = torch.tensor(indices, device=self.token.device)
        self.cache.keep(rows, vacated, movers, order)
        for name in ("positions", "token", "tokens", "logps", "entropies", "ended"):
            setattr(self, name, getattr(self, name)[order])
        if self.draws is not None:
            self.draws = self.draws[order]
        return order


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    draws: Tensor | None,
    stop: Tensor,
    pad_id: int,
    pace: Pace,
) -> Decoded:
    """Responses to one batch of prompts.

    Args:
        draws: (P·G, T) uniform numbers, prompt by prompt; None for temperature 0.
        stop: ids that end a response, on the model's device.

    Raises:
        Unsupported: the model cannot be decoded over a shared prefix.
    """
    with implementation(model, IMPLEMENTATION):
        cache, logits = prefill(model, prompts, pad_id=pad_id, tokens_at_once=PREFILL_TOKENS)
        lengths = [len(prompt) for prompt in prompts]
        cache.start(lengths, samples, min(pace.block, max_new_tokens))
        batch = Batch(
            model,
            cache,
            logits,
            lengths,
            draws,
            stop,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        del logits
        total = len(prompts) * samples
        rows = torch.arange(total, device=stop.device)  # of the whole batch: those that are still computed
        result = Decoded(batch.tokens.clone(), batch.logps.clone(), batch.entropies.clone())
        step = _stepper(batch, pace)
        for drawn in range(1, max_new_tokens):
            if drawn % pace.look_every == 0:
                left = len(rows) - int(batch.ended.sum())
                if left == 0:
                    break
                size = _size(left, total, pace.sizes)
                if size < len(rows):
                    _write(result, batch, rows)
                    rows = rows[batch.shrink(size)]
                    step = _stepper(batch, pace)
            if drawn > cache.capacity:
                batch.grow(min(cache.capacity + pace.block, max_new_tokens))
                step = _stepper(batch, pace)
            step()
        _write(result, batch, rows)
    return result


def _stepper(batch: Batch, pace: Pace) -> Callable[[], None]:
    if not pace.capture:
        return batch.step
    from rest_core.rollout.cuda_graph import Captured

    return Captured(batch.step)


def _write(result: Decoded, batch: Batch, rows: Tensor) -> None:
    result.tokens[rows] = batch.tokens
    result.logps[rows] = batch.logps
    result.entropies[rows] = batch.entropies


def _size(left: int, total: int, sizes: int | None) -> int:
    if sizes is None:
        return left
    unit = max(1, total // sizes)
    return min(total, -(-left // unit) * unit)


@torch.no_grad()
def why_not_shared_prefix(model: Any) -> str | None:
    """Why `model`, in evaluation mode, cannot be decoded over a shared prefix; None if it can.

    Two prompts of different lengths are decoded for three steps, and the logits compared with those of full forward
    passes without cache and padding, in standard deviations of the logits.
    """

    def attempt() -> str | None:
        allowed = {torch.float64: 1e-4, torch.float32: 1e-3}.get(next(model.parameters()).dtype, 0.15)
        difference = _difference(model, prompt_lengths=(7, 4), samples=2, steps=3)
        if difference <= allowed:
            return None
        return f"gives other logits than a full forward pass (by {difference:.2g} standard deviations)"

    return obstacle(model, attempt)


def _difference(model: Any, *, prompt_lengths: Sequence[int], samples: int, steps: int) -> float:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings

    def tokens(*shape: int) -> Tensor:
        return torch.randint(vocabulary, shape, generator=generator)

    prompts = [tokens(length) for length in prompt_lengths]
    responses = tokens(len(prompts) * samples, steps)
    found, wanted = [], []
    with implementation(model, IMPLEMENTATION):
        cache, logits = prefill(model, [prompt.tolist() for prompt in prompts], pad_id=0, tokens_at_once=1 << 20)
        cache.start(prompt_lengths, samples, steps + 2)
        found.append(logits.repeat_interleave(samples, dim=0))
        positions = torch.tensor(prompt_lengths, device=device).repeat_interleave(samples)[:, None]
        for step in range(steps):
            found.append(_forward(model, cache, responses[:, step : step + 1].to(device), positions + step))
    for row, response in enumerate(responses):
        ids = torch.cat([prompts[row // samples], response])[None].to(device)
        wanted.append(model(input_ids=ids, use_cache=False).logits[0, -steps - 1 :])
    expected = torch.stack(wanted).double()  # (B, steps + 1, V)
    difference = (torch.stack(found, dim=1).double() - expected).abs().amax()
    return float(difference / expected.std(dim=-1).mean())


def _forward(model: Any, cache: SharedPrefixCache, token: Tensor, positions: Tensor) -> Tensor:
    """Logits (B, V) after one more token (B, 1) a row, at `positions` (B, 1)."""
    cache.begin_step()
    output = model(
        input_ids=token,
        attention_mask=cache.bias,  # of four dimensions: transformers makes no mask of its own
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        shared_prefix=cache,
    )
    cache.end_step()
    logits: Tensor = output.logits[:, -1]
    return logits
