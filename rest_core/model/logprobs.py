"""Log-probs and entropies of given tokens under a policy, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rest_core.model.batch import Batch

CHUNK_TOKENS = 512  # tokens whose logits exist at the same time


class Policy(nn.Module):
    """A causal language model whose forward gives log-probs and entropies of the sampled tokens.

    A module of its own, so that wrappers for several processes (DDP, FSDP) see one forward a backward. The language
    head runs on sampled positions only, chunk by chunk, and is computed again in the backward pass. Models whose
    logits are more than `lm_head(hidden)` (scaled or capped logits) are recognised by a trial on one input and take
    the plain path: all logits of the response positions from the model itself.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.plain_head = not _head_is_linear(model)

    def forward(self, batch: Batch, *, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """
        Returns:
            logp (B, T), with gradient, and entropy in nats (B, T), with gradient only if asked; 0 outside the mask.
        """
        width = batch.response_ids.shape[1]
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "position_ids": batch.position_ids,
            "use_cache": False,
        }
        # Position p predicts token p + 1; the last `width` tokens are the response.
        if self.plain_head:
            logits = self.model(**inputs, logits_to_keep=width + 1).logits[:, :-1]
            chosen, head = logits[batch.mask], None
        else:
            hidden = _decoder(self.model)(**inputs).last_hidden_state[:, -width - 1 : -1]  # (B, T, D)
            chosen, head = hidden[batch.mask], self.model.get_output_embeddings()  # (N, D)
        targets = batch.response_ids[batch.mask]  # (N,)

        logps, entropies = [], []
        for part, target in zip(chosen.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
            if torch.is_grad_enabled():
                logp, entropy = checkpoint(_score, head, part, target, entropy_gradient, use_reentrant=False)
            else:
                logp, entropy = _score(head, part, target, False)
            logps.append(logp)
            entropies.append(entropy)
        return _scatter(logps, batch.mask), _scatter(entropies, batch.mask)


def _score(head: nn.Module | None, part: Tensor, target: Tensor, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
    """logp and entropy (N,) of `target` (N,), from hidden states (N, D), or logits (N, V) where `head` is None."""
    logits = (part if head is None else head(part)).float()  # (N, V)
    normaliser = logits.logsumexp(dim=-1)
    logp = logits.gather(1, target[:, None])[:, 0] - normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = normaliser - ((logits - normaliser[:, None]).exp() * logits).sum(dim=-1)
    return logp, entropy


def _scatter(parts: list[Tensor], mask: Tensor) -> Tensor:
    """Values of the tokens inside the mask (N,), back in their places: (B, T) float32."""
    out = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return out.masked_scatter(mask, torch.cat(parts)) if parts else out


def _decoder(model: Any) -> Any:
    """The transformer below the language head, also under peft's wrappers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder()


@torch.no_grad()
def _head_is_linear(model: Any) -> bool:
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

    training = model.training
    model.eval()
    ids = torch.arange(1, 4, device=next(model.parameters()).device)[None]  # (1, 3)
    with head.register_forward_hook(give_ramp):
        logits = model(input_ids=ids, use_cache=False).logits
    hidden = _decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
    model.train(training)
    if not seen or seen[0][0].shape != hidden.shape or seen[0][1].shape != logits.shape:
        return False
    return torch.allclose(seen[0][0], hidden, rtol=1e-4, atol=1e-4) and torch.allclose(seen[0][1], logits)
