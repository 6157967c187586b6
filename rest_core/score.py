"""One response, taken apart: how it is parsed, which region each token belongs to, what it earns and weighs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from rest_core.algorithm.regions import Region, read_response
from rest_core.algorithm.rewards import SCHEMES, Reward, reward_ranges, tool_reward
from rest_core.algorithm.weights import relative_frequency, token_weights
from rest_core.chat import continuation, opening
from rest_core.config import WeightsConfig
from rest_core.response import Response
from rest_core.styles.formats import Tagged
from rest_core.styles.formats.parts import Format
from rest_core.token_bytes import token_bytes

# Mean policy entropy by region in nats, for a text that comes without the policy that sampled it: means over the steps
# of the quickstart profile's training (RESPONSE does not occur there; it is taken as THINK).
ASSUMED_ENTROPY: Mapping[Region, float] = {
    Region.NAME: 0.04,
    Region.ARGUMENTS: 0.16,
    Region.FORMAT: 0.04,
    Region.THINK: 0.12,
    Region.RESPONSE: 0.12,
    Region.OTHER: 0.13,
}


@dataclass(frozen=True)
class Piece:
    """A token, or neighbouring tokens of one region and weight."""

    text: str
    region: Region
    weight: float
    tokens: int = 1


@dataclass(frozen=True)
class ScoredResponse:
    response: Response
    reference: Response
    rewards: dict[str, Reward]  # by reward scheme
    tokens: tuple[Piece, ...]  # in order, one a token, end of sequence included

    @property
    def format_problem(self) -> str | None:
        """Why a format reward is not the highest; None where all schemes give it."""
        given, wanted = self.response, self.reference
        if given.tags != wanted.tags:
            return f"the response has the tags {_listed(given.tags)}, the reference {_listed(wanted.tags)}"
        if given.problems:
            return given.problems[0]
        if self.rewards["toolrl"].format < reward_ranges("toolrl", 0)[0].high:
            return "toolrl wants a line break between the parts and around the calls, and nothing else"
        return None

    def segments(self) -> Iterator[Piece]:
        """Neighbouring tokens of one region and weight as one piece."""
        for (region, weight), group in groupby(self.tokens, key=lambda token: (token.region, token.weight)):
            pieces = list(group)
            yield Piece("".join(piece.text for piece in pieces), region, weight, len(pieces))

    def region_means(self) -> dict[Region, tuple[int, float]]:
        """(tokens, mean weight) of each region that occurs."""
        weights = {region: [token.weight for token in self.tokens if token.region is region] for region in Region}
        return {region: (len(found), sum(found) / len(found)) for region, found in weights.items() if found}


def score_response(
    text: str,
    reference: str,
    tokenizer: Any,
    *,
    weights: WeightsConfig,
    step: int,
    total_steps: int,
    region_entropy: Mapping[Region, float] = ASSUMED_ENTROPY,
    read_by: Format | None = None,
) -> ScoredResponse:
    """Take a response apart, as training does with a sampled one; `text` is encoded, as there are no sampled ids.

    Args:
        text: the response, with or without the tag that the tokenizer's chat template opens in the prompt.
        reference: the wanted response, in the same format.
        tokenizer: of the model whose tokens are meant.
        weights: settings of any scheme but `high_entropy` and `token_entropy`, which need the policy's own entropies.
        step, total_steps: place in the training, for the curriculum and the reward schedule.
        region_entropy: mean policy entropy of each region in nats, read by the scheme `paper`.
        read_by: the format of both texts; None = the project's own.
    """
    read = (read_by or Tagged()).parse
    opened = opening(tokenizer).text
    said = continuation(tokenizer, text) if opened and text.lstrip().startswith(opened.rstrip()) else text
    ids = [*tokenizer(said, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    response, regions = read_response(ids, tokenizer, read=read)
    row = torch.tensor([ids])  # (1, T)
    mask = torch.ones_like(row)
    values = token_weights(
        regions[None],
        mask,
        scheme=weights,
        step=step,
        total_steps=total_steps,
        region_entropy=torch.tensor([region_entropy[region] for region in Region]),
        token_frequency=relative_frequency(row, mask),
    )[0]  # (T,)
    wanted = read(reference)
    return ScoredResponse(
        response=response,
        reference=wanted,
        rewards={scheme: tool_reward(response, wanted, scheme=scheme, step=step) for scheme in SCHEMES},
        tokens=tuple(_pieces(ids, regions, values, tokenizer)),
    )


def _listed(tags: Sequence[str]) -> str:
    return " ".join(tags) or "none"


def _pieces(ids: list[int], regions: Tensor, weights: Tensor, tokenizer: Any) -> Iterator[Piece]:
    text, ends = token_bytes(tokenizer).text(ids)
    content, start = text.encode("utf-8", errors="surrogateescape"), 0
    for end, region, weight in zip(ends.tolist(), regions.tolist(), weights.tolist(), strict=True):
        yield Piece(content[start:end].decode("utf-8", errors="replace"), Region(region), weight)
        start = end
