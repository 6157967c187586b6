"""What a model's architecture allows, found by trials on a few tokens and by what its layers ask of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rest_core.model import attention
from rest_core.model.batch import Batch, Group, padded_batch, shared_batch
from rest_core.model.parameters import without_wrapper
from rest_core.records import Rollout

# Arguments of an attention call that change nothing, whatever their value.
_HARMLESS = {"trees", "scaling", "position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


def decoder(model: Any) -> Any:
    """The transformer below the language head, also under peft's wrappers."""
    return without_wrapper(model).get_decoder()


@torch.no_grad()
def head_is_linear(model: Any) -> bool:
    """Whether logits = lm_head(decoder's hidden states), tried on three tokens.

    For the trial the head gives a wide ramp instead of its own output: a cap is next to invisible on small logits.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    seen: list[tuple[Tensor, Tensor]] = []  # what the head was given, and what it gave

    def give_ramp(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ramp = torch.linspace(-100, 100, output.numel(), device=output.device).to(output.dtype).view_as(output)
        seen.append((inputs[0], ramp))
        return ramp

    ids = torch.arange(1, 4, device=_device(model))[None]  # (1, 3)
    with _evaluating(model):
        with head.register_forward_hook(give_ramp):
            logits = model(input_ids=ids, use_cache=False).logits
        hidden = decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
    if not seen or seen[0][0].shape != hidden.shape or seen[0][1].shape != logits.shape:
        return False
    return torch.allclose(seen[0][0], hidden, rtol=1e-4, atol=1e-4) and torch.allclose(seen[0][1], logits)


@torch.no_grad()
def obstacle(model: Any, attempt: Callable[[], str | None]) -> str | None:
    """What keeps attention of our own from giving a model's values; None where nothing does.

    Args:
        attempt: runs the model, in evaluation mode, with the other attention; returns what is wrong, or raises it.
    """
    plain = without_wrapper(model)
    name = type(plain).__name__
    rope = getattr(plain.config.get_text_config(), "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
        return f"{name} has rotary positions ({rope['rope_type']}) that depend on the longest row of a batch"
    if not plain._can_set_attn_implementation():
        return f"{name} does not take its attention from transformers' attention interface"
    with _evaluating(model):
        try:
            problem = attempt()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # any other failure of a foreign model means the same: not for this model
            problem = f"does not run on shared rows ({type(error).__name__}: {' '.join(str(error).split())[:400]})"
    return None if problem is None else f"{name} {problem}"


def why_not_shared(model: Any) -> str | None:
    """None where rows with a shared prefix give what rows of their own give; else why not.

    Two checks. What the layers ask of attention (a window, sinks, a cap …) must be nothing that trees lack: a window is
    not seen on a few tokens. And both layouts must agree on a small input: a layer that mixes tokens by other means
    (recurrence, convolution), or positions that are not taken from `position_ids`, show at once.
    """
    asked: list[dict[str, Any]] = []

    def record(module: Any, *tensors: Any, **arguments: Any) -> Any:
        asked.append(arguments)
        return attention.attention(module, *tensors, **arguments)

    attention.ALL_ATTENTION_FUNCTIONS.register(_TRIAL, record)
    attention.ALL_MASK_ATTENTION_FUNCTIONS.register(_TRIAL, attention.sdpa_mask)

    def attempt() -> str | None:
        rollouts = _examples(min(32, int(without_wrapper(model).config.get_text_config().vocab_size)))
        group, device = Group(tuple(range(len(rollouts)))), _device(model)
        own = _hidden(model, padded_batch(rollouts, [group], pad_id=0).to(device))
        multiple = attention.FLEX_BLOCK if device.type == "cuda" else 1
        tried = shared_batch(rollouts, [group], pad_id=0, multiple=multiple).to(device)
        with attention.implementation(model, _TRIAL):
            shared = _hidden(model, tried)
            with torch.random.fork_rng():
                _hidden(model.train(), tried)  # for its arguments alone: dropout is asked for in training only
        precise = next(model.parameters()).dtype in (torch.float32, torch.float64)
        tolerance = (1e-3 if precise else 5e-2) * float(own.float().abs().max())
        gap = float((own - shared).float().abs().max())
        return _unsupported(asked) or (
            None if gap <= tolerance else f"gives other values on shared rows (by {gap:.1e})"
        )

    return obstacle(model, attempt)


def _unsupported(asked: Sequence[dict[str, Any]]) -> str | None:
    """What the arguments of attention calls ask for that trees lack."""
    if not asked:
        return "has no attention that takes trees"
    for arguments in asked:
        if arguments.get("trees") is None:
            return "does not pass arguments on to its attention layers"
        for key, value in arguments.items():
            absent = value is None or (isinstance(value, int | float) and not value)
            if not absent and key not in _HARMLESS:
                return f"asks for {key} in its attention layers"
    return None


_TRIAL = f"{attention.NAME}_trial"


def _examples(vocabulary: int) -> list[Rollout]:
    """Three responses to one prompt, of different lengths; different tokens throughout."""
    prompt = [n % vocabulary for n in (3, 1, 4, 15, 9, 26)]
    responses = [[5, 3, 5, 8, 9], [7, 9, 3], [2, 3, 8, 4, 6, 2, 6]]
    return [Rollout(prompt, [n % vocabulary for n in r], [0.0] * len(r), True, 0) for r in responses]


def _hidden(model: Any, batch: Batch) -> Tensor:
    hidden: Tensor = decoder(model)(**batch.inputs()).last_hidden_state
    return hidden.flatten(0, 1)[batch.predict_at]  # (N, D): both layouts have the same order


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
