"""Whether a model can be decoded over shared prefixes: a trial on a few tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rest_core.model.attention import implementation
from rest_core.model.capabilities import obstacle
from rest_core.rollout.decoding import forward
from rest_core.rollout.prefill import prefill
from rest_core.rollout.shared_prefix import IMPLEMENTATION, SharedPrefixCache, Size

_ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3}
_ALLOWED_ROUNDED = 0.15


@torch.no_grad()
def why_not_shared_prefix(model: Any) -> str | None:
    """Why `model`, in evaluation mode, cannot be decoded over a shared prefix; None if it can.

    Two prompts of different lengths are decoded for three steps, and the logits compared with those of full forward
    passes without cache and padding, in standard deviations of the logits. In half precision rounding alone may move
    logits further than a wrong attention would: there a small model of the same architecture decides, in float32.
    """

    def attempt() -> str | None:
        dtype = next(model.parameters()).dtype
        difference, allowed = _difference(model), _ALLOWED.get(dtype, _ALLOWED_ROUNDED)
        if difference > allowed and dtype not in _ALLOWED:
            difference, allowed = _difference(_small_copy(model)), _ALLOWED[torch.float32]
        if difference <= allowed:
            return None
        return f"gives other logits than a full forward pass (by {difference:.2g} standard deviations)"

    return obstacle(model, attempt)


def _small_copy(model: Any) -> Any:
    """A model of the same architecture with two layers and random weights, in float32."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers = min(2, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    device = next(model.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return type(model)(config).to(device=device, dtype=torch.float32).eval()


def _difference(model: Any, prompt_lengths: Sequence[int] = (7, 4), samples: int = 2, steps: int = 3) -> float:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings

    def tokens(*shape: int) -> Tensor:
        return torch.randint(vocabulary, shape, generator=generator)

    prompts = [tokens(length) for length in prompt_lengths]
    responses = tokens(len(prompts) * samples, steps)
    found, wanted = [], []
    with implementation(model, IMPLEMENTATION):
        ((_, done),) = prefill(model, [prompt.tolist() for prompt in prompts], pad_id=0, tokens_at_once=1 << 20)
        cache = SharedPrefixCache(done.layers)
        cache.allocate(Size(len(prompts), max(prompt_lengths), len(responses), steps + 2))
        cache.join(prompt_lengths, samples, done.of)
        found.append(done.logits.repeat_interleave(samples, dim=0))
        positions = torch.tensor(prompt_lengths, device=device).repeat_interleave(samples)[:, None]
        for step in range(steps):
            found.append(forward(model, cache, responses[:, step : step + 1].to(device), positions + step))
    for row, response in enumerate(responses):
        ids = torch.cat([prompts[row // samples], response])[None].to(device)
        wanted.append(model(input_ids=ids, use_cache=False).logits[0, -steps - 1 :])
    expected = torch.stack(wanted).double()  # (B, steps + 1, V)
    difference = (torch.stack(found, dim=1).double() - expected).abs().amax()
    return float(difference / expected.std(dim=-1).mean())
