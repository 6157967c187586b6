"""Log-probs, entropies and the loss of sampled tokens under a policy, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rest_core.errors import NotFiniteLogits
from rest_core.model import attention
from rest_core.model.attention import sum_dtype
from rest_core.model.batch import Batch
from rest_core.model.capabilities import decoder, head_is_linear, why_not_shared

log = logging.getLogger(__name__)

# Logits that exist at the same time, as tokens x vocabulary: 64 MiB in float32, and 1 GiB where memory is fast.
CHUNK_LOGITS = 2**24
CHUNK_LOGITS_CUDA = 2**28

# The summed loss of one chunk of tokens, from their log-probs and entropies (n,); it must be separable by token.
TokenLoss = Callable[[slice, Tensor, Tensor], Tensor]


class Policy(nn.Module):
    """A causal language model whose forward gives the loss over sampled tokens.

    A module of its own, so that wrappers for several processes (DDP, FSDP) see one forward a backward. The language
    head runs on sampled positions only. Each chunk's logits give log-probs, entropies, loss and gradients in one visit:
    a loss that is a sum over tokens needs nothing of other chunks, so nothing is computed again in the backward pass.

    Models whose logits are more than `lm_head(hidden)` (scaled or capped logits) are recognised by a trial on one input
    and give their logits themselves; models whose attention is not exact over trees keep one row a response
    (`self.shared` is false, and the log says why).
    """

    def __init__(self, model: Any, *, shared: bool = True) -> None:
        super().__init__()
        self.model = model
        self.plain_head = not head_is_linear(model)
        reason = why_not_shared(model) if shared else "switched off"
        self.shared = reason is None
        if self.shared:
            # For good: activation checkpointing runs layers again when this forward is long over.
            model.set_attn_implementation(attention.NAME)
        elif shared:
            log.warning("every response is trained in a row of its own, with its prompt: %s", reason)

    def forward(
        self, batch: Batch, token_loss: TokenLoss | None = None, *, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            batch: shared rows only where `self.shared`.
            token_loss: None for values only, without any gradient.
            entropy_gradient: whether the loss depends on the entropies.

        Returns:
            loss, a scalar with gradient; logp (N,) and entropy (N,) in nats, float32 and without gradient.

        Raises:
            NotFiniteLogits: a log-prob is not a finite number.
        """
        chosen, head = self.inputs_of_head(batch)
        if token_loss is None or not torch.is_grad_enabled():
            loss = chosen.new_zeros(())
            logp, entropy = _values(chosen.detach(), head, batch.targets)
        else:
            parameters = [] if head is None else [p for p in head.parameters() if p.requires_grad]
            values = (chosen, head, batch.targets, token_loss, entropy_gradient)
            loss, logp, entropy = _HeadLoss.apply(*values, *parameters)
        # One NaN or +inf among a token's logits makes its log-prob NaN: no need to look at [tokens, vocabulary].
        if not bool(logp.isfinite().all()):
            raise NotFiniteLogits
        return loss, logp, entropy

    def inputs_of_head(self, batch: Batch) -> tuple[Tensor, nn.Module | None]:
        """Hidden states (N, D) of the predicting places and the head, or their logits (N, V) and None."""
        inputs = batch.inputs()
        if not self.plain_head:
            hidden = decoder(self.model)(**inputs).last_hidden_state  # (R, L, D)
            return hidden.flatten(0, 1)[batch.predict_at], self.model.get_output_embeddings()
        length = batch.input_ids.shape[1]
        columns, place = (batch.predict_at % length).unique(return_inverse=True)
        logits = self.model(**inputs, logits_to_keep=columns).logits  # (R, C, V)
        return logits.flatten(0, 1)[batch.predict_at // length * len(columns) + place], None


class _HeadLoss(torch.autograd.Function):
    """(loss, logp, entropy) from hidden states (N, D), with the gradients computed on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: nn.Module | None,
        targets: Tensor,
        token_loss: TokenLoss,
        entropy_gradient: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss = torch.zeros((), device=hidden.device, dtype=sum_dtype(hidden))
        d_hidden = torch.empty_like(hidden)
        # Summed over chunks in float32, also where FSDP holds the head in the compute type.
        d_parameters = [torch.zeros_like(p, dtype=sum_dtype(p)) for p in parameters]
        logps, entropies = torch.empty(2, len(targets), device=hidden.device, dtype=sum_dtype(hidden)).unbind()
        for part in _chunks(hidden, head):
            with torch.enable_grad():
                inputs = hidden[part].detach().requires_grad_()
                logits = inputs if head is None else head(inputs)  # (n, V)
            probabilities, logp, entropy = _statistics(logits.detach(), targets[part])
            logps[part], entropies[part] = logp, entropy
            with torch.enable_grad():
                values = (logp.requires_grad_(), entropy.requires_grad_(entropy_gradient))
                value = token_loss(part, *values)
                wanted = values if entropy_gradient else values[:1]
                by_logp, *by_entropy = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
            loss += value.detach()
            d_logits = _d_logits(probabilities, targets[part], by_logp, *by_entropy, entropy=entropy.detach())
            if head is None:
                d_hidden[part] = d_logits
                continue
            first, *rest = torch.autograd.grad(logits, (inputs, *parameters), d_logits.to(logits.dtype))
            d_hidden[part] = first
            for total, gradient in zip(d_parameters, rest, strict=True):
                total += gradient
        ctx.save_for_backward(d_hidden, *d_parameters)
        ctx.mark_non_differentiable(logps, entropies)
        return loss, logps, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, *d_parameters = ctx.saved_tensors
        scale = gradients[0]
        return (d_hidden * scale.to(d_hidden.dtype), None, None, None, None, *(d.mul_(scale) for d in d_parameters))


def _values(hidden: Tensor, head: nn.Module | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    logps, entropies = torch.empty(2, len(targets), device=hidden.device, dtype=sum_dtype(hidden)).unbind()
    with torch.no_grad():
        for part in _chunks(hidden, head):
            logits = hidden[part] if head is None else head(hidden[part])
            _, logps[part], entropies[part] = _statistics(logits, targets[part])
    return logps, entropies


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (n, V), and the targets' log-probs and the entropies (n,), at least in float32."""
    every = logits.log_softmax(dim=-1, dtype=sum_dtype(logits))
    logp = every.gather(1, targets[:, None])[:, 0]
    probabilities = every.exp()
    # A capped or masked logit of -inf has probability 0 and adds nothing.
    entropy = -torch.linalg.vecdot(probabilities, every.clamp_min_(torch.finfo(every.dtype).min))
    return probabilities, logp, entropy


def _d_logits(
    probabilities: Tensor, targets: Tensor, by_logp: Tensor, by_entropy: Tensor | None = None, *, entropy: Tensor
) -> Tensor:
    """Gradient (n, V) of a loss whose gradients by logp and by entropy (n,) are given; `probabilities` is used up.

    d logp_y / d z_j = [j = y] - p_j and d H / d z_j = -p_j (log p_j + H).
    """
    factor = by_logp[:, None]
    if by_entropy is not None:
        logs = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
        factor = factor + by_entropy[:, None] * (logs + entropy[:, None])
    gradient = probabilities.mul_(-factor)
    return gradient.scatter_add_(1, targets[:, None], by_logp[:, None])


def _chunks(hidden: Tensor, head: nn.Module | None) -> list[slice]:
    vocabulary = hidden.shape[1] if head is None else int(head.weight.shape[0])  # type: ignore[index, arg-type]
    size = max(1, (CHUNK_LOGITS_CUDA if hidden.is_cuda else CHUNK_LOGITS) // vocabulary)
    return [slice(start, min(start + size, len(hidden))) for start in range(0, len(hidden), size)]
