"""Regions: which part of a response each sampled token belongs to.

The weights of ResT go by region (paper, section on token-level reshaping; docs/method.md). Regions are found on the
sampled ids: the ids' own bytes give the text, the parser of the style gives spans, and each token takes the region
that covers most of its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rest_core.chat import Opening, opening
from rest_core.response import Kind, Response, parse
from rest_core.token_bytes import token_bytes


class Region(IntEnum):
    """The parts of a response, in the order in which ties between them are decided."""

    NAME = 0  # the value of a call's "name", without quotes
    ARGUMENTS = 1  # the JSON value of "parameters"/"arguments", braces included; what other formats have in its place
    FORMAT = 2  # the tags of closed blocks
    THINK = 3  # inside a closed think block
    RESPONSE = 4  # inside a closed response block
    OTHER = 5  # JSON scaffolding, white space between blocks, end of sequence, anything malformed or unclosed


_CONTENT = {Kind.THINK: Region.THINK, Kind.RESPONSE: Region.RESPONSE}


def decode_response(ids: Sequence[int], tokenizer: Any) -> str:
    """The response of sampled ids, without the end-of-sequence token; what is no UTF-8 becomes U+FFFD."""
    text, _ = _spelled(ids, tokenizer, None)
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def token_regions(ids: Sequence[int] | Tensor, tokenizer: Any) -> Tensor:
    """Region of every sampled token.

    Args:
        ids: (T,) the sampled ids, end-of-sequence token included.
        tokenizer: the tokenizer of the model that sampled them.

    Returns:
        (T,) int64 codes of `Region`.
    """
    return read_response(ids, tokenizer)[1]


def batch_regions(ids: Tensor, mask: Tensor, tokenizer: Any, opened: Sequence[Opening] | None = None) -> Tensor:
    """Regions (B, T) int64 of responses that are padded on the right, OTHER outside the mask.

    Args:
        ids: (B, T) sampled ids.
        mask: (B, T) true on a response's tokens: the first of its row, as many as it has.
        opened: B, by each response's prompt; None = as the tokenizer's chat template does.
    """
    ids = ids.cpu()
    regions = torch.full(ids.shape, int(Region.OTHER), dtype=torch.int64)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        begun = None if opened is None else opened[row]
        regions[row, :length] = read_response(ids[row, :length], tokenizer, begun)[1]
    return regions


def read_response(
    ids: Sequence[int] | Tensor,
    tokenizer: Any,
    opened: Opening | None = None,
    read: Callable[[str], Response] = parse,
) -> tuple[Response, Tensor]:
    """The parsed response of sampled ids and its token regions (T,): one parse serves reward and weights.

    Args:
        ids: (T,) the sampled ids.
        tokenizer: the tokenizer of the model that sampled them.
        opened: by the prompt, the response's beginning; None = as the tokenizer's chat template does.
        read: the parser, of the project's own format or of another.
    """
    sampled = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    text, edges = _spelled(sampled, tokenizer, opened)
    response = read(text)
    spans, codes = _region_spans(response)
    bounds = np.asarray(spans, dtype=np.int64).reshape(-1)  # (2S,) characters, ascending
    if not text.isascii():
        bounds = _byte_offsets(text)[bounds]
    return response, torch.from_numpy(_majority(bounds, codes, edges))


def _spelled(ids: Sequence[int], tokenizer: Any, opened: Opening | None) -> tuple[str, np.ndarray]:
    """The whole response, begun in the prompt and continued in the sampled ids, and where each token's bytes end.

    Returns:
        The text as `TokenBytes.text` has it, and the (T + 1,) ends in bytes of what the prompt has opened and of every
        token: a token starts where the one before it ends.
    """
    begun = (opening(tokenizer) if opened is None else opened).text
    text, token_ends = token_bytes(tokenizer).text(ids)
    length = len(begun.encode())
    return begun + text, np.concatenate([[length], token_ends + length])


def _region_spans(response: Response) -> tuple[list[tuple[int, int]], list[int]]:
    """Disjoint character spans of every region but the OTHER between them, in ascending order, and their codes."""
    spans: list[tuple[int, int]] = []
    codes: list[int] = []

    def add(start: int, end: int, region: Region) -> None:
        if end > start:
            spans.append((start, end))
            codes.append(region)

    calls = iter(response.call_spans)
    call = next(calls, None)
    for block in response.blocks:
        add(block.open_tag.start, block.open_tag.end, Region.FORMAT)
        if block.kind is Kind.TOOL_CALL:
            while call is not None and call.whole.end <= block.content.end:
                inside = [(call.name, Region.NAME), (call.arguments, Region.ARGUMENTS)]
                for span, region in sorted(inside, key=lambda item: item[0].start):
                    add(span.start, span.end, region)
                call = next(calls, None)
        else:
            add(block.content.start, block.content.end, _CONTENT[block.kind])
        add(block.close_tag.start, block.close_tag.end, Region.FORMAT)
    return spans, codes


def _byte_offsets(text: str) -> np.ndarray:
    """Offset in bytes (UTF-8, surrogateescape) of every character, and the total: (len(text) + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    widths[(points >= 0xDC80) & (points <= 0xDCFF)] = 1  # one escaped byte each
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(widths)])


def _majority(bounds: np.ndarray, codes: Sequence[int], edges: np.ndarray) -> np.ndarray:
    """Region that covers most bytes of each token; ties go to the smaller code, tokens without bytes to OTHER.

    Args:
        bounds: (2S,) starts and ends of disjoint spans in bytes, ascending.
        codes: (S,) region of each span; what no span covers is OTHER.
        edges: (T + 1,) where each token starts in bytes, and where the last one ends.
    """
    # The text as 2S + 1 pieces: each span, and what stands before, between and behind them.
    piece_codes = np.full(len(bounds) + 1, int(Region.OTHER), dtype=np.int64)
    piece_codes[1::2] = codes
    starts, ends = edges[:-1], edges[1:]
    first = np.searchsorted(bounds, starts, side="right")  # (T,) the piece in which a token starts
    last = np.searchsorted(bounds, ends, side="left")  # and the one in which it ends
    regions: np.ndarray = piece_codes[first]
    for token in np.flatnonzero(last > first):
        covered = [0] * len(Region)
        knots = [starts[token], *bounds[first[token] : last[token]], ends[token]]
        for piece, (begin, end) in enumerate(pairwise(knots), start=first[token]):
            covered[piece_codes[piece]] += end - begin
        regions[token] = covered.index(max(covered))  # the first of equals: the smaller code
    regions[ends == starts] = Region.OTHER
    return regions
