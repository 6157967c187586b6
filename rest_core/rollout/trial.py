"""Whether a model can be decoded over a shared prefix: tried on a few tokens, not looked up in a list."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from rest_core.rollout.shared_prefix import Unsupported, attention_of, prefill

PROMPT_LENGTHS, SAMPLES, STEPS = (7, 4), 2, 3
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
HALF_TOLERANCE = 0.15
"""Largest difference from a full forward pass, in standard deviations of the logits."""


@torch.no_grad()
def reason_against(model: Any) -> str | None:
    """Why `model`, in evaluation mode, cannot be decoded over a shared prefix; None if it can.

    Two prompts of different lengths are decoded for three steps, and the logits compared with those of full forward
    passes without cache and padding.
    """
    rope = getattr(model.config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
        return f"its rotary embedding ({rope['rope_type']}) depends on the longest row of a batch"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    layers = DynamicCache(config=model.config).layers  # empty where all layers are alike
    other = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if other:
        return f"not all of its layers attend to everything ({', '.join(other)})"
    try:
        difference = _difference(model)
    except torch.OutOfMemoryError:
        raise
    except Unsupported as error:
        return str(error)
    except Exception as error:  # whatever a foreign model raises on a call that it does not know
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    allowed = TOLERANCE.get(next(model.parameters()).dtype, HALF_TOLERANCE)
    if not difference <= allowed:
        return f"its logits differ from a full forward pass (by {difference:.2g} standard deviations)"
    return None


def _difference(model: Any) -> float:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings

    def tokens(*shape: int) -> Tensor:
        return torch.randint(vocabulary, shape, generator=generator)

    prompts = [tokens(length) for length in PROMPT_LENGTHS]
    responses = tokens(len(prompts) * SAMPLES, STEPS)
    found = []
    with attention_of(model):
        cache, logits = prefill(model, [prompt.tolist() for prompt in prompts], pad_id=0, tokens_at_once=1 << 20)
        cache.start(PROMPT_LENGTHS, SAMPLES, STEPS + 2)
        found.append(logits.repeat_interleave(SAMPLES, dim=0))
        positions = torch.tensor(PROMPT_LENGTHS, device=device).repeat_interleave(SAMPLES)[:, None]
        for step in range(STEPS):
            cache.begin_step()
            output = model(
                input_ids=responses[:, step : step + 1].to(device),
                attention_mask=cache.bias,
                position_ids=positions + step,
                past_key_values=cache,
                use_cache=True,
                shared_prefix=cache,
            )
            cache.end_step()
            found.append(output.logits[:, -1])
    wanted = []
    for row, response in enumerate(responses):
        ids = torch.cat([prompts[row // SAMPLES], response])[None].to(device)
        wanted.append(model(input_ids=ids, use_cache=False).logits[0, -STEPS - 1 :])
    expected = torch.stack(wanted).double()  # (B, STEPS + 1, V)
    difference = (torch.stack(found, dim=1).double() - expected).abs().amax()
    return float(difference / expected.std(dim=-1).mean())
