"""Decoding over shared prefixes: rows that have ended leave, waiting prompts join, buffers grow by blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rest_core.model.attention import implementation
from rest_core.rollout.prefill import Prefilled, prefill
from rest_core.rollout.prefix_tree import PrefixTree, shared_beginnings
from rest_core.rollout.sampling import sample
from rest_core.rollout.shared_prefix import IMPLEMENTATION, SharedPrefixCache, Size

_MOST_PADDING = 2  # times as many prompts as would fit if padding were counted, where it is free


@dataclass(frozen=True)
class Pace:
    """How often the host waits for the device, and in which sizes memory and rows change.

    Attributes:
        look_every: steps between two checks for rows that have ended; each check waits for the device.
        block: response tokens by which the buffers grow.
        parts: waiting prompts join once one of so many parts of the batch is free.
        fillers: once no prompt waits, a batch shrinks by whole parts, so that some rows stay that have ended; else
            each leaves at once.
        capture: replay the step as a CUDA graph.
        prefill_tokens: prompts are prefilled in runs of so many padded tokens.
        padding_is_free: what pads prompts to the longest takes no memory, so that the budget is of their own tokens.
    """

    look_every: int
    block: int
    parts: int
    fillers: bool
    capture: bool
    prefill_tokens: int
    padding_is_free: bool

    @classmethod
    def on(cls, device: torch.device) -> Pace:
        """On a GPU looks and new shapes are expensive; on a CPU each row that is computed for nothing is."""
        if device.type == "cuda":
            return cls(
                look_every=16,
                block=256,
                parts=4,
                fillers=True,
                capture=True,
                prefill_tokens=8192,
                padding_is_free=False,
            )
        return cls(
            look_every=1, block=64, parts=8, fillers=False, capture=False, prefill_tokens=512, padding_is_free=True
        )


@dataclass(frozen=True)
class Task:
    """What is to be decoded.

    Attributes:
        prompts: the longest first.
        samples: responses a prompt.
        draws: (P·G, T) uniform numbers, prompt by prompt; None for temperature 0.
        stop: ids that end a response, on the model's device.
        budget: tokens of prompts and responses that are in flight at once, padded where that takes memory.
        on_ended: called with the number of responses that have just ended.
        continued: later prompts may begin with these and their responses.
    """

    prompts: Sequence[Sequence[int]]
    samples: int
    max_new_tokens: int
    temperature: float
    draws: Tensor | None
    stop: Tensor
    pad_id: int
    budget: int
    on_ended: Callable[[int], None] = lambda count: None
    continued: bool = False


@dataclass(frozen=True)
class Decoded:
    """Of all rows (B, T), prompt by prompt; what stands after a row's first stop id, or first log-prob that is NaN,
    means nothing."""

    tokens: Tensor
    logps: Tensor
    entropies: Tensor


class Batch:
    """The rows that are in flight. `step` reads and writes tensors that stay where they are until rows leave or join or
    buffers grow; so it can be captured once and replayed."""

    STATE = ("token", "positions", "drawn", "ended", "draws", "tokens", "logps", "entropies")

    def __init__(self, model: Any, task: Task) -> None:
        device = task.stop.device
        self.model, self.task = model, task
        self.cache: SharedPrefixCache | None = None
        self.responses: list[int] = []  # of each row: its place among all responses
        self.token = torch.zeros(0, 1, dtype=torch.int64, device=device)
        self.positions = self.token.clone()  # (B, 1), of `token`
        self.drawn = torch.zeros(0, 1, dtype=torch.int64, device=device)  # (B, 1), tokens so far
        self.ended = torch.zeros(0, dtype=torch.bool, device=device)  # (B,)
        # What a row draws beyond its last token goes into one more column.
        width = task.max_new_tokens + 1
        self.draws = torch.zeros(0, width, device=device)  # (B, T + 1)
        self.tokens = torch.zeros(0, width, dtype=torch.int64, device=device)
        self.logps = torch.zeros(0, width, device=device)
        self.entropies = torch.zeros(0, width, device=device)
        self.workspace = torch.zeros(2, 0, 0, device=device)
        self.steps = 0
        self.born: list[int] = []  # of each row: the number of steps before it joined

    def step(self) -> None:
        """One forward pass over the last tokens, and the tokens that follow from it."""
        assert self.cache is not None
        logits = forward(self.model, self.cache, self.token, self.positions)
        self.positions.add_(1)
        self._draw(logits, 0)

    def columns(self, block: int) -> int:
        """Room for the response tokens of the oldest row and of the next step, in whole blocks."""
        needed = self.steps - min(self.born, default=self.steps) + 1
        return min(-(-needed // block) * block, self.task.max_new_tokens)

    def is_over(self) -> bool:
        """Whether the youngest row has all its tokens."""
        return self.steps - max(self.born, default=0) + 1 >= self.task.max_new_tokens

    def join(self, numbers: Sequence[int], prefilled: Prefilled, size: Size) -> None:
        """Rows for further prompts, which have these places among all; their first tokens are drawn.

        Args:
            size: that the buffers need.
        """
        samples, rows = self.task.samples, len(self.responses)
        if self.cache is None:
            self.cache = SharedPrefixCache(prefilled.layers)
        if size != self.cache.size:
            self.cache.allocate(size)
        self.cache.join(prefilled.lengths, samples, prefilled.of)
        new = [number * samples + n for number in numbers for n in range(samples)]
        self.responses += new
        self.born += [self.steps] * len(new)
        for name in self.STATE:
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, old.new_zeros(len(new), *old.shape[1:])]))
        device = self.token.device
        self.positions[rows:] = torch.tensor(prefilled.lengths, device=device).repeat_interleave(samples)[:, None]
        if self.task.draws is not None:
            self.draws[rows:, :-1] = self.task.draws[torch.tensor(new, device=device)]
        if self.workspace.shape[1] < len(self.responses):
            self.workspace = torch.empty(2, len(self.responses), prefilled.logits.shape[1], device=device)
        self._draw(prefilled.logits.repeat_interleave(samples, dim=0), rows)

    def _draw(self, logits: Tensor, first: int) -> None:
        """The next tokens of the rows from `first` on, by their logits (B - first, V)."""
        drawn = self.drawn[first:]
        draws = None if self.task.draws is None else self.draws[first:].gather(1, drawn)[:, 0]
        token, logp, entropy = sample(logits, self.task.temperature, draws, self.workspace[:, : len(logits)])
        for record, new in ((self.tokens, token), (self.logps, logp), (self.entropies, entropy)):
            record[first:].scatter_(1, drawn, new[:, None])
        drawn.add_(1).clamp_max_(self.task.max_new_tokens)
        over = (token[:, None] == self.task.stop).any(dim=1) | logp.isnan()  # nothing follows from NaN
        self.ended[first:].logical_or_(over | (drawn[:, 0] == self.task.max_new_tokens))
        self.token[first:] = token[:, None]

    def keep(self, rows: int, vacated: list[int], movers: list[int], block: int) -> None:
        """Continue with the first `rows` rows, after those at `movers` have taken the places at `vacated`.

        Args:
            block: the responses' buffers are used by so many columns.
        """
        indices = list(range(rows))
        for there, here in zip(vacated, movers, strict=True):
            indices[there] = here
        self.responses = [self.responses[row] for row in indices]
        self.born = [self.born[row] for row in indices]
        assert self.cache is not None
        self.cache.keep(rows, vacated, movers, self.columns(block))
        order = torch.tensor(indices, dtype=torch.int64, device=self.token.device)
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[order])


class Decoding:
    """One run over all prompts of a task."""

    def __init__(self, model: Any, task: Task, pace: Pace, tree: PrefixTree | None) -> None:
        self.model, self.task, self.pace, self.tree = model, task, pace, tree
        total, device = len(task.prompts) * task.samples, task.stop.device
        self.result = Decoded(
            torch.zeros(total, task.max_new_tokens, dtype=torch.int64, device=device),
            torch.zeros(total, task.max_new_tokens, device=device),
            torch.zeros(total, task.max_new_tokens, device=device),
        )
        self.batch = Batch(model, task)
        self.next = 0  # of the prompts that wait
        self.shared = [] if tree is None else shared_beginnings(task.prompts)

    def run(self) -> Decoded:
        """All responses."""
        batch, step = self.batch, self.batch.step
        while True:
            if batch.steps % self.pace.look_every == 0 or batch.is_over():
                if self._look():
                    step = self._stepper()
                if not batch.responses:
                    return self.result
                if batch.is_over():  # one token was all
                    continue
            if self._grow():
                step = self._stepper()
            step()
            batch.steps += 1

    def _look(self) -> bool:
        """Rows that have ended leave, and prompts that wait join; whether anything changed."""
        batch = self.batch
        ended = batch.ended.tolist()
        left = ended.count(False)
        joining = self._joining(ended)
        if joining:
            if left < len(ended):
                self._keep(left, ended)
            self._join(joining)
            return True
        if self.next == len(self.task.prompts) or not self.pace.fillers:
            size = self._rows_for(left, len(ended))
            if size < len(ended):
                self._keep(size, ended)
                return True
        return False

    def _joining(self, ended: Sequence[bool]) -> int:
        """How many prompts join now."""
        waiting = len(self.task.prompts) - self.next
        if not waiting:
            return 0
        cache = self.batch.cache
        rows = [] if cache is None else cache.prompt_of_row
        lengths = [] if cache is None else cache.lengths
        alive = {prompt for prompt, over in zip(rows, ended, strict=True) if not over}
        groups = self._groups([lengths[prompt] for prompt in alive])
        allocated = 0 if cache is None or self.pace.padding_is_free else cache.size.prompts
        if allocated < groups < 1.25 * allocated:
            groups = allocated  # new buffers, into which all is copied, must be worth it
        room = min(waiting, groups - len(alive))
        enough = 1 if not alive else min(waiting, max(1, groups // self.pace.parts))
        return room if room >= enough else 0

    def _groups(self, alive: Sequence[int]) -> int:
        """How many prompts may be in flight, when those of these lengths are and the next ones join."""
        waiting = self.task.prompts[self.next :]
        responses = self.task.samples * self.task.max_new_tokens
        if not self.pace.padding_is_free:
            width = max([*alive, *map(len, waiting[:1])])
            return max(1, self.task.budget // (width + responses))
        left = self.task.budget - sum(alive) - len(alive) * responses
        joining = 0
        for prompt in waiting:
            left -= len(prompt) + responses
            if left < 0:
                break
            joining += 1
        return max(1, len(alive) + joining)

    def _join(self, count: int) -> None:
        numbers = range(self.next, self.next + count)
        self.next += count
        prompts = [self.task.prompts[number] for number in numbers]
        size = self._size(max(map(len, prompts)), count)
        shared = [self.shared[number] for number in numbers] if self.tree is not None else ()
        runs = prefill(
            self.model,
            prompts,
            pad_id=self.task.pad_id,
            tokens_at_once=self.pace.prefill_tokens,
            tree=self.tree,
            shared=shared,
        )
        for part, prefilled in runs:
            self.batch.join([numbers[n] for n in part], prefilled, size)

    def _size(self, width: int, more: int) -> Size:
        """Buffers for `more` prompts of at most `width` tokens beside those in flight; the old ones where they fit."""
        task, cache = self.task, self.batch.cache
        old = Size(0, 0, 0, min(self.pace.block, task.max_new_tokens)) if cache is None else cache.size
        lengths = [] if cache is None else cache.lengths
        prompts, widest = len(lengths) + more, max([width, *lengths])
        rows = (0 if cache is None else len(cache.prompt_of_row)) + more * task.samples
        if prompts <= old.prompts and rows <= old.rows and widest <= old.width:
            return old
        if self.pace.padding_is_free:
            # Room for shorter prompts, of which more fit. It takes addresses alone at first, but what is freed is kept,
            # so that in time it may take memory.
            padded = task.budget // (widest + task.samples * task.max_new_tokens)
            groups = min(len(task.prompts), max(prompts + prompts // 4, _MOST_PADDING * padded))
        else:
            groups = prompts if cache is None else max(prompts, min(self._groups(lengths), len(task.prompts)))
        return Size(groups, widest, max(rows, groups * task.samples), old.columns)

    def _grow(self) -> bool:
        """Room for the keys and values of further response tokens, if the oldest row needs it."""
        cache, columns = self.batch.cache, self.batch.columns(self.pace.block)
        assert cache is not None
        if columns <= cache.columns:
            return False
        cache.see(columns)
        return True

    def _rows_for(self, left: int, rows: int) -> int:
        """How many rows a batch shrinks to that has `left` rows which have not ended."""
        if not self.pace.fillers:
            return left
        assert self.batch.cache is not None
        part = max(1, self.batch.cache.size.rows // self.pace.parts)
        return min(rows, -(-left // part) * part)

    def _keep(self, rows: int, ended: Sequence[bool]) -> None:
        """Cut the batch to `rows` rows, among them all that have not ended; others that leave have their results."""
        # Rows behind the cut that continue take the places of ended rows before it; all others stay where they are.
        movers = [row for row in range(rows, len(ended)) if not ended[row]]
        vacated = [row for row in range(rows) if ended[row]][: len(movers)]
        leaving = [*vacated, *(row for row in range(rows, len(ended)) if ended[row])]
        batch, result = self.batch, self.result
        places = [batch.responses[row] for row in leaving]
        for name in ("tokens", "logps", "entropies"):
            getattr(result, name)[places] = getattr(batch, name)[leaving, :-1]
        if self.tree is not None and self.task.continued:
            for row in leaving:
                self._remember(row, self.tree)
        batch.keep(rows, vacated, movers, self.pace.block)
        self.task.on_ended(len(leaving))

    def _remember(self, row: int, tree: PrefixTree) -> None:
        """Give the tree a row that has ended: its prompt, and its response up to the last token but one."""
        cache, task = self.batch.cache, self.task
        assert cache is not None
        response = self.batch.tokens[row, :-1].tolist()
        stops = set(task.stop.tolist())
        end = next((n for n, token in enumerate(response) if token in stops), len(response) - 1)
        ids = [*task.prompts[self.batch.responses[row] // task.samples], *response[:end]]
        tree.insert(ids, lambda first, last: cache.between(row, first, last))

    def _stepper(self) -> Callable[[], None]:
        if not self.pace.capture:
            return self.batch.step
        from rest_core.rollout.cuda_graph import Captured

        return Captured(self.batch.step)


def decode(model: Any, task: Task, pace: Pace, tree: PrefixTree | None = None) -> Decoded:
    """Responses to the prompts of a task.

    Args:
        tree: what is known of earlier prompts and responses; beginnings that may come again are added.

    Raises:
        Unsupported: the model cannot be decoded over a shared prefix.
    """
    with implementation(model, IMPLEMENTATION):
        return Decoding(model, task, pace, tree).run()


def forward(model: Any, cache: SharedPrefixCache, token: Tensor, positions: Tensor) -> Tensor:
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
