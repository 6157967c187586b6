"""Keys and values of prompts, computed from the first token on or from what is known of a prompt's beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from rest_core.rollout.prefix_tree import Layers, PrefixTree, matched
from rest_core.rollout.shared_prefix import Unsupported

SHORTEST_BEGINNING = 16  # tokens: a shared beginning that is shorter is computed anew with each prompt


@dataclass
class Prefilled:
    """Some prompts after their forward pass.

    Attributes:
        logits: (P, V), after each prompt.
        layers: keys and values (P, KVH, M + W, D) of every layer; the first M are of the known beginnings, aligned
            right, the others of the rest of each prompt, aligned right as well.
        known: tokens of each prompt's known beginning.
        lengths: of the prompts.
    """

    logits: Tensor
    layers: list[tuple[Tensor, Tensor]]
    known: list[int]
    lengths: list[int]

    def of(self, prompt: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (KVH, w, D) of one prompt in one layer."""
        known, rest = self.known[prompt], self.lengths[prompt] - self.known[prompt]
        keys, values = (_joined(states[prompt], max(self.known), known, rest) for states in self.layers[layer])
        return keys, values

    def between(self, prompt: int, first: int, end: int) -> Layers:
        """Keys and values of the tokens from `first` to `end` of one prompt."""
        pairs = (self.of(prompt, layer) for layer in range(len(self.layers)))
        return [(keys[:, first:end], values[:, first:end]) for keys, values in pairs]


def prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    tokens_at_once: int,
    tree: PrefixTree | None = None,
    shared: Sequence[int] = (),
) -> Iterator[tuple[range, Prefilled]]:
    """Forward passes over the prompts, in runs of at most `tokens_at_once` padded tokens (or one prompt).

    Args:
        tree: what is known of earlier prompts; beginnings that prompts share are added.
        shared: with a tree, how many tokens of each prompt another one begins with as well.

    Yields:
        the numbers of some prompts, and these prefilled.

    Raises:
        Unsupported: a layer's cache is not that of full attention.
    """
    if tree is not None:
        for prompt, length in zip(prompts, shared, strict=True):
            _keep_beginning(model, prompt[:length], tree)
    known = [_known(prompt, tree) for prompt in prompts]
    rest = [len(prompt) - matched(path) for prompt, path in zip(prompts, known, strict=True)]
    first = 0
    while first < len(prompts):
        end = first + 1
        while end < len(prompts) and max(rest[first : end + 1]) * (end + 1 - first) <= tokens_at_once:
            end += 1
        yield range(first, end), _forward(model, prompts[first:end], known[first:end], pad_id)
        first = end
    if tree is not None:
        tree.computed += sum(rest)
        tree.reused += sum(map(len, prompts)) - sum(rest)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids (P, W), attention mask (P, W) or None where nothing is padded, and positions (P, W)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    return ids, None if bool(mask.all()) else mask, positions


Path = list[tuple[Any, int]]


def _known(prompt: Sequence[int], tree: PrefixTree | None) -> Path:
    """What the tree knows of a prompt, less its last token: logits need one to be computed."""
    return [] if tree is None else tree.match(prompt[:-1])


def _keep_beginning(model: Any, beginning: Sequence[int], tree: PrefixTree) -> None:
    """Compute what several prompts begin with once, if the tree does not know it and can keep it."""
    new = len(beginning) - matched(tree.match(beginning))
    if new < SHORTEST_BEGINNING or not tree.has_room(new):
        return
    done = _forward(model, [beginning], [_known(beginning, tree)], 0)
    tree.computed += len(beginning) - done.known[0]
    tree.insert(beginning, lambda first, end: done.between(0, first, end))


def _forward(model: Any, prompts: Sequence[Sequence[int]], known: Sequence[Path], pad_id: int) -> Prefilled:
    device = next(model.parameters()).device
    lengths = [matched(path) for path in known]
    ids, mask, positions = left_padded(
        [prompt[done:] for prompt, done in zip(prompts, lengths, strict=True)], pad_id, device
    )
    cache = None
    if any(lengths):
        cache = _cache_of(model, known, lengths)
        before = torch.tensor([[0] * (max(lengths) - done) + [1] * done for done in lengths], device=device)
        mask = torch.cat([before, torch.ones_like(ids) if mask is None else mask], dim=1)
        positions = positions + torch.tensor(lengths, device=device)[:, None]
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    computed = output.past_key_values
    layers: list[Any] = computed.layers if isinstance(computed, DynamicCache) else []
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers})
        raise Unsupported(f"its cache is not of full attention alone ({', '.join(kinds) or type(computed)})")
    states = [(layer.keys, layer.values) for layer in layers]
    return Prefilled(output.logits[:, -1], states, lengths, [len(prompt) for prompt in prompts])


def _cache_of(model: Any, known: Sequence[Path], lengths: Sequence[int]) -> DynamicCache:
    """transformers' cache with the known beginnings (P, KVH, M, D), aligned right."""
    cache = DynamicCache(config=model.config.get_text_config())
    like = next(path for path in known if path)[0][0].layers
    width = max(lengths)
    for number, (some_keys, some_values) in enumerate(like):
        pair = []
        for which, some in enumerate((some_keys, some_values)):
            states = some.new_zeros(len(known), some.shape[0], width, some.shape[2])
            for row, path in enumerate(known):
                place = width - lengths[row]
                for node, count in path:
                    states[row, :, place : place + count] = node.layers[number][which][:, :count]
                    place += count
            pair.append(states)
        cache.update(*pair, number)
    return cache


def _joined(states: Tensor, width: int, known: int, rest: int) -> Tensor:
    """Of one prompt (KVH, M + W, D), without what is padding: (KVH, known + rest, D)."""
    end = states[:, states.shape[1] - rest :]
    return end if known == 0 else torch.cat([states[:, width - known : width], end], dim=1)
