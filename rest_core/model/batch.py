"""Rollouts as the tensors of one forward pass, and their split into passes by a token budget.

Two layouts. Shared: the one row [prompt, r1 … rG, next prompt, …], each prompt once for all its responses, for models
whose attention is exact over trees (`rest_core.model.attention`). Padded: one row a response, for all others. Both name
the places whose hidden state predicts a sampled token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rest_core.model.attention import Tree, Trees
from rest_core.records import Rollout


@dataclass
class Batch:
    """One forward pass over R rows of L tokens, of which N predict a sampled token."""

    input_ids: Tensor  # (R, L)
    attention_mask: Tensor  # (R, L) int64
    position_ids: Tensor  # (R, L)
    predict_at: Tensor  # (N,) places in the flattened R · L whose next token was sampled
    targets: Tensor  # (N,) the sampled ids
    rows: Tensor  # (N,) which rollout, as an index into the rollouts of the whole experience
    columns: Tensor  # (N,) which token of its response
    trees: Trees | None = None  # of the shared layout

    def inputs(self) -> dict[str, Any]:
        """Arguments of a model's forward."""
        arguments: dict[str, Any] = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            "use_cache": False,
        }
        if self.trees is not None:
            # A mask of four dimensions is taken as it is: none of [tokens, tokens] is made, and none is read.
            arguments |= {"attention_mask": self.attention_mask[:, None, None], "trees": self.trees}
        return arguments

    def to(self, device: torch.device | str) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()}
        return Batch(**moved)


@dataclass(frozen=True)
class Group:
    """Responses to the same prompt, as indices into the rollouts of the whole experience."""

    rows: tuple[int, ...]


def shared_batch(rollouts: Sequence[Rollout], groups: Sequence[Group], *, pad_id: int, multiple: int = 1) -> Batch:
    """All groups in one row, each prompt once. `multiple`: the row's length is padded to a multiple of it.

    The last token of a response predicts nothing and is left out, so that a response of one token takes no place.
    """
    ids: list[int] = []
    positions: list[int] = []
    predict_at: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    trees = []
    for group in groups:
        prompt = rollouts[group.rows[0]].prompt_ids
        last = len(ids) + len(prompt) - 1  # every first token is predicted here
        ids += prompt
        positions += range(len(prompt))
        branches = []
        for row in group.rows:
            response = rollouts[row].response_ids
            start = len(ids)
            inside = response[:-1]
            ids += inside
            positions += range(len(prompt), len(prompt) + len(inside))
            branches.append(len(inside))
            predict_at += ([last] if response else []) + list(range(start, start + len(inside)))
            targets += response
            rows += [row] * len(response)
            columns += range(len(response))
        trees.append(Tree(len(prompt), tuple(branches)))
    filler = -len(ids) % multiple
    attended = [1] * len(ids) + [0] * filler
    return Batch(
        input_ids=torch.tensor([ids + [pad_id] * filler]),
        attention_mask=torch.tensor([attended]),
        position_ids=torch.tensor([positions + [0] * filler]),
        predict_at=torch.tensor(predict_at, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        rows=torch.tensor(rows, dtype=torch.int64),
        columns=torch.tensor(columns, dtype=torch.int64),
        trees=Trees(tuple(trees)),
    )


def padded_batch(rollouts: Sequence[Rollout], groups: Sequence[Group], *, pad_id: int) -> Batch:
    """One row a response: prompts padded on the left, responses on the right."""
    every = [row for group in groups for row in group.rows]
    prompt_width = max(len(rollouts[row].prompt_ids) for row in every)
    width = prompt_width + max(1, *(len(rollouts[row].response_ids) for row in every))
    input_ids = torch.full((len(every), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    predict_at: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    columns: list[int] = []
    for place, row in enumerate(every):
        prompt, response = rollouts[row].prompt_ids, rollouts[row].response_ids
        start, end = prompt_width - len(prompt), prompt_width + len(response)
        input_ids[place, start:end] = torch.tensor([*prompt, *response])
        attention_mask[place, start:end] = 1
        predict_at += range(place * width + prompt_width - 1, place * width + end - 1)
        targets += response
        rows += [row] * len(response)
        columns += range(len(response))
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp_min(0),
        predict_at=torch.tensor(predict_at, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        rows=torch.tensor(rows, dtype=torch.int64),
        columns=torch.tensor(columns, dtype=torch.int64),
    )


def empty_batch(pad_id: int, *, shared: bool) -> Batch:
    """One token that predicts nothing: a pass of a process that has no rows left while others have."""
    one, none = torch.ones(1, 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return Batch(one * pad_id, one, one * 0, none, none, none, none, Trees((Tree(1, ()),)) if shared else None)


def shared_passes(rollouts: Sequence[Rollout], rows: Sequence[int], budget: int) -> list[list[Group]]:
    """Split `rows` into passes of at most `budget` tokens, each prompt counted once for its group.

    A group that is larger than the budget is divided, and its prompt repeated; largest groups first, so that a budget
    that is too large for the memory fails at once.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row in sorted(rows):  # the split does not depend on their order
        by_prompt.setdefault(tuple(rollouts[row].prompt_ids), []).append(row)
    pieces: list[tuple[int, Group]] = []  # (tokens, rows)
    for ids, members in by_prompt.items():
        prompt = len(ids)
        piece: list[int] = []
        size = prompt
        for row in members:
            tokens = max(0, len(rollouts[row].response_ids) - 1)
            if piece and size + tokens > budget:
                pieces.append((size, Group(tuple(piece))))
                piece, size = [], prompt
            piece.append(row)
            size += tokens
        pieces.append((size, Group(tuple(piece))))
    passes: list[tuple[int, list[Group]]] = []
    for size, group in sorted(pieces, key=lambda piece: (-piece[0], piece[1].rows)):
        place = next((n for n, (filled, _) in enumerate(passes) if filled + size <= budget), None)
        if place is None:
            passes.append((size, [group]))
        else:
            passes[place] = (passes[place][0] + size, [*passes[place][1], group])
    return [groups for _, groups in passes]


def padded_passes(rollouts: Sequence[Rollout], rows: Sequence[int], budget: int) -> list[list[Group]]:
    """Split `rows` so that rows times padded length stays within `budget`; at least one row each.

    Rows of like length go together, longest first, so that a budget that is too large fails at once.
    """
    order = sorted(rows, key=lambda n: (-len(rollouts[n].prompt_ids) - len(rollouts[n].response_ids), n))
    parts: list[list[int]] = []
    prompt_width = width = 0
    for n in order:
        wider = max(prompt_width, len(rollouts[n].prompt_ids)), max(width, len(rollouts[n].response_ids))
        if not parts or (len(parts[-1]) + 1) * sum(wider) > budget:
            parts.append([])
            wider = len(rollouts[n].prompt_ids), len(rollouts[n].response_ids)
        parts[-1].append(n)
        prompt_width, width = wider
    return [[Group((row,)) for row in part] for part in parts]


def pad_rows(rows: Sequence[Tensor | Sequence[float]], width: int, dtype: torch.dtype, fill: float = 0) -> Tensor:
    """Rows of different lengths as one (B, width) tensor."""
    out = torch.full((len(rows), width), fill, dtype=dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return out
