"""Attention of decoding rows over one copy of each prompt's keys and values, and over their own responses.

The rows of a group have the same prompt, so its keys and values are stored once a prompt, not once a row. A decode
step computes the scores against the prompt for all rows of a group in one product, those against the response row by
row, and takes one softmax over both: the same numbers as with copies, for a fraction of the memory traffic.

It is hooked in by transformers' own interfaces: a `Cache`, whose layers write new keys and values into a buffer, and
an attention function of the name `IMPLEMENTATION`. Every tensor of a step keeps its shape and place until rows leave or
join or the buffer grows, so that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "rest_shared_prefix"
HARMLESS = frozenset({"dropout", "scaling", "is_causal", "position_ids", "use_cache", "shared_prefix"})
"""Arguments of an attention function that change nothing here; any other that is set is refused."""


class Unsupported(ValueError):
    """The model does something that this attention does not; the message says what."""


class Size(NamedTuple):
    """Of the buffers: prompts of `width` tokens, and rows with responses of `columns` tokens."""

    prompts: int
    width: int
    rows: int
    columns: int


class SharedPrefixLayer(CacheLayerMixin):
    """Keys and values of one layer: the prompts' (P, KVH, W, D), aligned right, and the responses' (B, KVH, S, D).

    They are views of buffers, as far as these are in use.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Args: keys and values of any prompts, for their heads, sizes and type."""
        super().__init__()
        self.prompt_keys, self.prompt_values = keys[:0, :, :0], values[:0, :, :0]
        self.keys: Tensor = self.prompt_keys
        self.values: Tensor = self.prompt_values
        self.column: Tensor  # (B,): where each row's next key goes; shared by all layers
        self.every_row: Tensor  # (B,): 0, 1, …
        self._buffers: dict[str, Tensor] = {}
        self.is_initialized = True

    def allocate(self, size: Size, lengths: Sequence[int]) -> None:
        """Buffers of another size; prompts of these lengths stay, and all responses.

        Nothing is touched but what prompts and rows fill: on a CPU the rest takes no memory.
        """
        for name in ("prompt_keys", "prompt_values"):
            old = getattr(self, name)
            shape = (size.prompts, old.shape[1], size.width, old.shape[3])
            if name in self._buffers and self._buffers[name].shape == shape:
                continue
            self._buffers[name] = new = old.new_empty(shape)
            for prompt, length in enumerate(lengths):
                new[prompt, :, size.width - length :] = old[prompt, :, old.shape[2] - length :]
        for name in ("keys", "values"):
            old = getattr(self, name)
            self._buffers[name] = new = old.new_empty(size.rows, old.shape[1], size.columns, old.shape[3])
            new[: len(old), :, : old.shape[2]] = old
            new[: len(old), :, old.shape[2] :] = 0

    def use(self, size: Size) -> None:
        """The views have this size."""
        for name, buffer in self._buffers.items():
            if name.startswith("prompt"):
                setattr(self, name, buffer[: size.prompts, :, buffer.shape[2] - size.width :])
            else:
                setattr(self, name, buffer[: size.rows, :, : size.columns])

    def put_prompt(self, prompt: int, keys: Tensor, values: Tensor) -> None:
        """Take over the keys and values (KVH, w, D) of a prompt."""
        for name, new in (("prompt_keys", keys), ("prompt_values", values)):
            place = self._buffers[name][prompt]
            place[:, place.shape[1] - new.shape[1] :] = new

    def clear_before(self, prompt: int, length: int, width: int) -> None:
        """Zeros before a prompt of `length` tokens, as far as the last `width` places go."""
        for name in ("prompt_keys", "prompt_values"):
            place = self._buffers[name][prompt]
            place[:, place.shape[1] - width : place.shape[1] - length] = 0

    def clear_rows(self, first: int, end: int) -> None:
        """Zeros in further rows, not anything: a probability of 0 times what lies there must be 0."""
        for name in ("keys", "values"):
            self._buffers[name][first:end] = 0

    def move_prompt(self, out_of: int, into: int, length: int) -> None:
        """Copy a prompt of `length` tokens to another place."""
        for name in ("prompt_keys", "prompt_values"):
            buffer = self._buffers[name]
            start = buffer.shape[2] - length
            buffer[into, :, start:] = buffer[out_of, :, start:]

    def move_rows(self, out_of: Tensor, into: Tensor) -> None:
        """Copy responses to other rows."""
        if len(into):
            for name in ("keys", "values"):
                buffer = self._buffers[name]
                buffer.index_copy_(0, into, buffer[out_of])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values (B, KVH, 1, D) of one step in place; returns the whole buffers."""
        self.keys[self.every_row, :, self.column] = key_states[:, :, 0]
        self.values[self.every_row, :, self.column] = value_states[:, :, 0]
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("`allocate` makes the buffers")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.prompt_keys.shape[2] + self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        return int(self.prompt_keys.shape[2])

    def get_max_length(self) -> int:
        return -1


class SharedPrefixCache(Cache):
    """The layers of one batch, and which row belongs to which place of the prompts' grid (P', G').

    Attributes:
        bias: (B, 1, 1, W + S), float32, added to the scores of each row: 0 for a key that is there, -inf elsewhere.
        tokens: (B,), response tokens of each row so far.
        column: (B,), the response column that each row's step writes; the last one for rows beyond the buffer.
        prompt, place: (B,), the row's place in the grid.
        row: (P', G'), the row in each place; where a group has fewer rows than G', any row.
        runs: (first prompt, end, width) of neighbours of like length, which are multiplied at once.
        one_each: whether row n is the only one of prompt n, for all of them.
        lengths: tokens of each prompt.
        clear: of each prompt, how many of the last places of its buffers are its own or zeros.
        prompt_of_row: the prompt of each row.
        size: of the buffers.
        width, columns: W and S, how much of the buffers is in use.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Args: like: keys and values of any prompts, of every layer."""
        self.own_layers = [SharedPrefixLayer(keys, values) for keys, values in like]
        super().__init__(layers=[*self.own_layers])
        self.device = like[0][0].device
        self.size = Size(0, 0, 0, 0)
        self.width = self.columns = 0
        self.lengths: list[int] = []
        self.clear: list[int] = []
        self.one_each = False
        self.prompt_of_row: list[int] = []
        self.tokens = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.column = self.tokens
        self.bias: Tensor
        self.prompt: Tensor
        self.place: Tensor
        self.row: Tensor
        self.runs: list[tuple[int, int, int]] = []

    def allocate(self, size: Size) -> None:
        """Buffers of another size, not smaller than what is in use; transient memory is that of one layer."""
        self.columns = self.columns or size.columns
        for layer in self.own_layers:
            layer.allocate(size, self.lengths)
        if (size.prompts, size.width) != (self.size.prompts, self.size.width):
            self.clear = list(self.lengths)
        self.size = size
        self._arrange()

    def join(self, lengths: Sequence[int], samples: int, keys_of: Callable[[int, int], tuple[Tensor, Tensor]]) -> None:
        """Further prompts, and `samples` rows for each.

        Args:
            lengths: tokens of each new prompt; the buffers must be large enough for them.
            keys_of: (number of the new prompt, number of the layer) → its keys and values (KVH, w, D).
        """
        prompts, rows = len(self.lengths), len(self.prompt_of_row)
        self.lengths += lengths
        self.clear += lengths
        new = [prompts + n for n in range(len(lengths)) for _ in range(samples)]
        self.prompt_of_row += new
        for number, layer in enumerate(self.own_layers):
            for n in range(len(lengths)):
                layer.put_prompt(prompts + n, *keys_of(n, number))
            layer.clear_rows(rows, rows + len(new))
        self.tokens = torch.cat([self.tokens, self.tokens.new_zeros(len(new))])
        self._arrange()

    def see(self, columns: int) -> None:
        """Use so many columns of the responses' buffers: all that the rows have, and room for further tokens."""
        self.columns = columns
        if columns > self.size.columns:
            self.allocate(self.size._replace(columns=columns))
        else:
            self._arrange()

    def keep(self, rows: int, vacated: list[int], movers: list[int], columns: int) -> None:
        """Cut the batch to its first `rows` rows, after those at `movers` have taken the places at `vacated`.

        Args:
            columns: to use from now on, as far as the buffers go; see `see`.
        """
        self.columns = min(columns, self.size.columns)
        for there, here in zip(vacated, movers, strict=True):
            self.prompt_of_row[there] = self.prompt_of_row[here]
        del self.prompt_of_row[rows:]
        self.tokens = _moved(self.tokens, vacated, movers)[:rows]
        moved = self._drop_prompts()
        for layer in self.own_layers:
            for out_of, into in moved.items():
                layer.move_prompt(out_of, into, self.lengths[into])
            layer.move_rows(self._tensor(movers), self._tensor(vacated))
        self._arrange()

    def between(self, row: int, first: int, end: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (KVH, n, D) in every layer of a row's tokens `first` to `end`, its prompt's included."""
        prompt = self.prompt_of_row[row]
        length = self.lengths[prompt]

        def cut(of_prompt: Tensor, of_response: Tensor) -> Tensor:
            start = of_prompt.shape[2] - length
            parts = [of_prompt[prompt, :, start + first : start + min(end, length)]] if first < length else []
            if end > length:
                parts.append(of_response[row, :, max(0, first - length) : end - length])
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

        return [
            (cut(layer.prompt_keys, layer.keys), cut(layer.prompt_values, layer.values)) for layer in self.own_layers
        ]

    def begin_step(self) -> None:
        """The column that this step writes can be seen."""
        torch.clamp(self.tokens, max=self.columns - 1, out=self.column)
        self.bias.scatter_(3, (self.column + self.width)[:, None, None, None], 0.0)

    def end_step(self) -> None:
        """The next step writes the next column."""
        self.tokens.add_(1)

    def _drop_prompts(self) -> dict[int, int]:
        """Forget prompts without rows; the last prompts take their places. Returns these places by the old ones."""
        alive = set(self.prompt_of_row)
        free = [prompt for prompt in range(len(alive)) if prompt not in alive]
        moved = [prompt for prompt in range(len(alive), len(self.lengths)) if prompt in alive]
        places = dict(zip(moved, free, strict=True))
        for here, there in places.items():
            self.lengths[there] = self.clear[there] = self.lengths[here]
        del self.lengths[len(alive) :], self.clear[len(alive) :]
        self.prompt_of_row = [places.get(prompt, prompt) for prompt in self.prompt_of_row]
        return places

    def _arrange(self) -> None:
        """The views, the bias and the grid, for the prompts and rows that there are."""
        rows, device = len(self.prompt_of_row), self.device
        self.width = max(self.lengths, default=0)
        self.column, every_row = torch.empty_like(self.tokens), torch.arange(rows, device=device)
        for layer in self.own_layers:
            layer.use(Size(len(self.lengths), self.width, rows, self.columns))
            layer.column, layer.every_row = self.column, every_row
        self.prompt = self._tensor(self.prompt_of_row)
        padding = self.width - self._tensor(self.lengths)[self.prompt]  # (B,)
        hidden = torch.cat(
            [
                torch.arange(self.width, device=device) < padding[:, None],
                torch.arange(self.columns, device=device) >= self.tokens[:, None],
            ],
            dim=1,
        )
        self.bias = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -torch.inf)[:, None, None]
        groups: list[list[int]] = [[] for _ in self.lengths]
        places = []
        for row, prompt in enumerate(self.prompt_of_row):
            places.append(len(groups[prompt]))
            groups[prompt].append(row)
        widest = max(map(len, groups), default=0)
        self.row = self._tensor([group + group[:1] * (widest - len(group)) for group in groups])
        self.place = self._tensor(places)
        self.runs = [(0, len(self.lengths), self.width)] if self.device.type == "cuda" else _runs(self.lengths)
        self.one_each = self.prompt_of_row == list(range(len(self.lengths)))
        for first, end, longest in self.runs:
            for prompt in range(first, end):
                if self.clear[prompt] < longest:
                    for layer in self.own_layers:
                        layer.clear_before(prompt, self.clear[prompt], longest)
                    self.clear[prompt] = longest

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first, end, longest) of neighbours, at most a quarter of whose padded tokens are padding."""
    runs: list[tuple[int, int, int]] = []
    total = 0
    for n, length in enumerate(lengths):
        first, _, longest = runs[-1] if runs else (0, 0, 0)
        if runs and 3 * max(longest, length) * (n + 1 - first) <= 4 * (total + length):
            total += length
            runs[-1] = (first, n + 1, max(longest, length))
        else:
            total = length
            runs.append((n, n + 1, length))
    return runs


def _moved(values: Tensor, into: list[int], out_of: list[int]) -> Tensor:
    """A copy in which the entries at `out_of` stand at `into` as well."""
    moved = values.clone()
    if into:
        moved[into] = values[out_of]
    return moved


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
    if cache.one_each:
        return _one_each(query, layer, key, value, cache).view(rows, 1, heads, -1), None

    grid = query[cache.row].transpose(1, 2).reshape(prompts, kv_heads, widest * repeats, size)
    on_prompt = torch.cat(
        [
            _wider(grid[first:end] @ layer.prompt_keys[first:end, :, width - longest :].transpose(2, 3), width)
            for first, end, longest in cache.runs
        ]
    ).view(prompts, kv_heads, widest, repeats, width)
    on_prompt = on_prompt[cache.prompt, :, cache.place]  # (B, KVH, R, W)
    on_response = query @ key.transpose(2, 3)  # (B, KVH, R, S)
    scores = torch.cat([on_prompt, on_response], dim=3) + cache.bias  # float32
    shares = scores.softmax(dim=3).to(value.dtype)

    grid = shares[..., :width][cache.row].transpose(1, 2).reshape(prompts, kv_heads, widest * repeats, width)
    of_prompt = torch.cat(
        [
            grid[first:end, ..., width - longest :] @ layer.prompt_values[first:end, :, width - longest :]
            for first, end, longest in cache.runs
        ]
    ).view(prompts, kv_heads, widest, repeats, -1)
    output = of_prompt[cache.prompt, :, cache.place] + shares[..., width:] @ value  # (B, KVH, R, D)
    return output.reshape(rows, 1, heads, -1), None


def _one_each(query: Tensor, layer: SharedPrefixLayer, key: Tensor, value: Tensor, cache: SharedPrefixCache) -> Tensor:
    """The same for prompts of one row each, run by run, without bringing rows into a grid: (B, KVH, R, D)."""
    width = cache.width
    parts = []
    for first, end, longest in cache.runs:
        start, asked = width - longest, query[first:end]
        on_prompt = asked @ layer.prompt_keys[first:end, :, start:].transpose(2, 3)
        on_response = asked @ key[first:end].transpose(2, 3)
        scores = torch.cat([on_prompt, on_response], dim=3) + cache.bias[first:end, ..., start:]  # float32
        shares = scores.softmax(dim=3).to(value.dtype)
        of_prompt = shares[..., :longest] @ layer.prompt_values[first:end, :, start:]
        parts.append(of_prompt.add_(shares[..., longest:] @ value[first:end]))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _wider(scores: Tensor, width: int) -> Tensor:
    """Zeros before the scores of shorter prompts; the bias hides them."""
    return nn.functional.pad(scores, (width - scores.shape[-1], 0)) if scores.shape[-1] < width else scores


def _is_set(given: Any) -> bool:
    return given is not None and given is not False


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
