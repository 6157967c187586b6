"""Attention of decoding rows over one copy of each prompt's keys and values, and over their own responses.

The rows of a group have the same prompt, so its keys and values are stored once a prompt, not once a row. A decode
step computes the scores against the prompt for all rows of a group in one product, those against the response row by
row, and takes one softmax over both: the same numbers as with copies, for a fraction of the memory traffic.

It is hooked in by transformers' own interfaces: a `Cache`, whose layers write new keys and values into a buffer, and
an attention function of the name `IMPLEMENTATION`. Every tensor of a step keeps its shape and place until rows are
dropped or the buffer grows, so that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "rest_shared_prefix"
HARMLESS = frozenset({"dropout", "scaling", "is_causal", "position_ids", "use_cache", "shared_prefix"})
"""Arguments of an attention function that change nothing here; any other that is set is refused."""


class Unsupported(ValueError):
    """The model does something that this attention does not; the message says what."""


class SharedPrefixLayer(CacheLayerMixin):
    """Keys and values of one layer: the prompts' (P, KVH, W, D), the responses' (B, KVH, S, D)."""

    def __init__(self, prompts: int, width: int) -> None:
        super().__init__()
        self.prompts, self.width = prompts, width
        self.prompt_keys: Tensor
        self.prompt_values: Tensor
        self.keys: Tensor
        self.values: Tensor
        self.column: Tensor  # (1,): where the next key goes; shared by all layers

    def fill(self, first: int, keys: Tensor, values: Tensor) -> None:
        """Take over the keys and values (p, KVH, w, D) of the prompts from `first` on, aligned right."""
        count, heads, width, size = keys.shape
        if (count, width) == (self.prompts, self.width):
            self.prompt_keys, self.prompt_values = keys, values
            return
        if first == 0:
            self.prompt_keys = keys.new_zeros(self.prompts, heads, self.width, size)
            self.prompt_values = values.new_zeros(self.prompts, heads, self.width, values.shape[3])
        self.prompt_keys[first : first + count, :, self.width - width :] = keys
        self.prompt_values[first : first + count, :, self.width - width :] = values

    def reserve(self, rows: int, columns: int) -> None:
        """Buffers for responses of `columns` tokens; what they hold so far stays."""
        self.keys = _grown(self.keys if self.is_initialized else None, self.prompt_keys, rows, columns)
        self.values = _grown(self.values if self.is_initialized else None, self.prompt_values, rows, columns)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values (B, KVH, 1, D) of one step in place; returns the whole buffers."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("`fill` and `reserve` make the buffers")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.width + self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return self.width

    def get_max_length(self) -> int:
        return -1


class SharedPrefixCache(Cache):
    """The layers of one batch, and which row belongs to which place of the prompts' grid (P', G').

    Attributes:
        bias: (B, 1, 1, W + S), float32, added to the scores of each row: 0 for a key that is there, -inf elsewhere.
        column: (1,), the response column that the next step writes.
        prompt, place: (B,), the row's place in the grid.
        row: (P', G'), the row in each place; where a group has fewer rows than G', any row.
    """

    def __init__(self, layers: int, prompts: int, width: int, device: torch.device) -> None:
        self.own_layers = [SharedPrefixLayer(prompts, width) for _ in range(layers)]
        super().__init__(layers=[*self.own_layers])
        self.width = width
        self.capacity = 0
        self.column = torch.zeros(1, dtype=torch.int64, device=device)
        for layer in self.own_layers:
            layer.column = self.column
        self.bias: Tensor
        self.prompt: Tensor
        self.place: Tensor
        self.row: Tensor
        self._prompt_of_row: list[int] = []

    def start(self, lengths: Sequence[int], samples: int, columns: int) -> None:
        """Rows for `samples` responses a prompt, prompt by prompt; `lengths` are the prompts' in tokens."""
        device = self.column.device
        self._prompt_of_row = [prompt for prompt in range(len(lengths)) for _ in range(samples)]
        rows = len(self._prompt_of_row)
        padding = self.width - torch.tensor(lengths, device=device)  # (P,)
        hidden = torch.arange(self.width, device=device) < padding[:, None]  # (P, W)
        bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)
        self.bias = bias.repeat_interleave(samples, dim=0)[:, None, None]
        self._place_rows()
        self.reserve(rows, columns)

    def reserve(self, rows: int, columns: int) -> None:
        """Room for `columns` response tokens a row; transient memory is that of one layer."""
        for layer in self.own_layers:
            layer.reserve(rows, columns)
        more = columns - self.capacity
        self.bias = torch.cat([self.bias, self.bias.new_full((rows, 1, 1, more), -torch.inf)], dim=3)
        self.capacity = columns

    def begin_step(self) -> None:
        """The column that this step writes can be seen."""
        self.bias.index_fill_(3, self.column + self.width, 0.0)

    def end_step(self) -> None:
        """The next step writes the next column."""
        self.column.add_(1)

    def keep(self, rows: int, vacated: list[int], movers: list[int], order: Tensor) -> None:
        """Cut the batch to its first `rows` rows, after those at `movers` have taken the places at `vacated`.

        Args:
            order: (rows,), the old row of each new one: what the two lists do, for small tensors.
        """
        device = self.column.device
        into, out_of = torch.tensor(vacated, device=device), torch.tensor(movers, device=device)
        for layer in self.own_layers:
            for name in ("keys", "values"):
                setattr(layer, name, _moved(getattr(layer, name), into, out_of, rows))
        self.bias = self.bias[order]
        for there, here in zip(vacated, movers, strict=True):
            self._prompt_of_row[there] = self._prompt_of_row[here]
        del self._prompt_of_row[rows:]
        alive = sorted(set(self._prompt_of_row))
        if len(alive) < self.own_layers[0].prompts:
            chosen = torch.tensor(alive, device=device)
            for layer in self.own_layers:
                layer.prompts = len(alive)
                layer.prompt_keys, layer.prompt_values = layer.prompt_keys[chosen], layer.prompt_values[chosen]
            self._prompt_of_row = [alive.index(prompt) for prompt in self._prompt_of_row]
        self._place_rows()

    def _place_rows(self) -> None:
        groups: list[list[int]] = [[] for _ in range(self.own_layers[0].prompts)]
        places = []
        for row, prompt in enumerate(self._prompt_of_row):
            places.append(len(groups[prompt]))
            groups[prompt].append(row)
        widest = max(map(len, groups))
        device = self.column.device
        self.row = torch.tensor([group + group[:1] * (widest - len(group)) for group in groups], device=device)
        self.prompt = torch.tensor(self._prompt_of_row, device=device)
        self.place = torch.tensor(places, device=device)


def _grown(old: Tensor | None, like: Tensor, rows: int, columns: int) -> Tensor:
    # Zeros, not anything: a probability of 0 times what lies there must be 0.
    grown = like.new_zeros(rows, like.shape[1], columns, like.shape[3])
    if old is not None:
        grown[:, :, : old.shape[2]] = old
    return grown


def _moved(buffer: Tensor, into: Tensor, out_of: Tensor, rows: int) -> Tensor:
    if len(into):
        buffer.index_copy_(0, into, buffer[out_of])
    return buffer[:rows]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: SharedPrefixCache | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: one step over prompt and response; without `shared_prefix`, SDPA.

    Args:
        query: (B, H, 1, D).
        key, value: the response buffers (B, KVH, S, D) that the cache layer's `update` returned.

    Returns:
        (B, 1, H, D).

    Raises:
        Unsupported: the model passes a setting that this function does not know.
    """
    if shared_prefix is None:
        usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return usual(module, query, key, value, attention_mask, scaling=scaling, **settings)
    unknown = sorted(name for name, given in settings.items() if name not in HARMLESS and _is_set(given))
    if unknown:
        raise Unsupported(f"its attention takes {', '.join(unknown)}")
    cache = shared_prefix
    layer = cache.own_layers[module.layer_idx]  # type: ignore[index]
    rows, heads, _, size = query.shape
    kv_heads = key.shape[1]
    repeats = heads // kv_heads
    prompts, widest = cache.row.shape
    width = cache.width
    scale = size**-0.5 if scaling is None else scaling
    query = (query * scale).view(rows, kv_heads, repeats, size)

    grid = query[cache.row].transpose(1, 2).reshape(prompts, kv_heads, widest * repeats, size)
    on_prompt = (grid @ layer.prompt_keys.transpose(2, 3)).view(prompts, kv_heads, widest, repeats, width)
    on_prompt = on_prompt[cache.prompt, :, cache.place]  # (B, KVH, R, W)
    on_response = query @ key.transpose(2, 3)  # (B, KVH, R, S)
    scores = torch.cat([on_prompt, on_response], dim=3) + cache.bias  # float32
    shares = scores.softmax(dim=3).to(value.dtype)

    grid = shares[..., :width][cache.row].transpose(1, 2).reshape(prompts, kv_heads, widest * repeats, width)
    of_prompt = (grid @ layer.prompt_values).view(prompts, kv_heads, widest, repeats, -1)
    output = of_prompt[cache.prompt, :, cache.place] + shares[..., width:] @ value  # (B, KVH, R, D)
    return output.reshape(rows, 1, heads, -1), None


def _is_set(given: Any) -> bool:
    return given is not None and given is not False


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def prefill(
    model: Any, prompts: Sequence[Sequence[int]], *, pad_id: int, tokens_at_once: int
) -> tuple[SharedPrefixCache, Tensor]:
    """Keys and values of the prompts, computed in runs of at most `tokens_at_once` padded tokens (or one prompt).

    Returns:
        the cache, and the logits (P, V) after each prompt.

    Raises:
        Unsupported: a layer's cache is not that of full attention.
    """
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    cache: SharedPrefixCache | None = None
    logits = []
    first = 0
    while first < len(prompts):
        count = 1
        while first + count < len(prompts):
            widest = max(map(len, prompts[first : first + count + 1]))
            if widest * (count + 1) > tokens_at_once:
                break
            count += 1
        part = prompts[first : first + count]
        ids, mask, positions = left_padded(part, pad_id, device)
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        computed = output.past_key_values
        layers: list[Any] = computed.layers if isinstance(computed, DynamicCache) else []
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            kinds = sorted({type(layer).__name__ for layer in layers})
            raise Unsupported(f"its cache is not of full attention alone ({', '.join(kinds) or type(computed)})")
        if cache is None:
            cache = SharedPrefixCache(len(layers), len(prompts), width, device)
        for layer, source in zip(cache.own_layers, layers, strict=True):
            layer.fill(first, source.keys, source.values)
            source.keys = source.values = None  # as soon as it is copied
        logits.append(output.logits[:, -1])
        first += count
    assert cache is not None
    return cache, torch.cat(logits)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids (P, W), attention mask (P, W) or None where nothing is padded, and positions (P, W)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    return ids, None if bool(mask.all()) else mask, positions
