"""Rewards of one response against its reference: format and correctness (docs/method.md, "Reward").

Three schemes:
    toolrl  format 0..1, correctness -3..3 (ToolRL, arXiv 2504.13958, its default without a schedule)
    rest    the same measures on ranges that move with the training step (the ResT authors' code)
    strict  ours: the same ranges as toolrl, without the ways to cheat that the other two leave open

All read the result of the one parser. `toolrl` and `rest` compare values as Python does (True == 1, 2.0 == 2);
`strict` compares them as JSON values, types included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rest_core.errors import UserError, nearest
from rest_core.records import ToolCall
from rest_core.response import Response, parse

RewardScheme = Literal["toolrl", "rest", "strict"]
SCHEMES: tuple[RewardScheme, ...] = ("toolrl", "rest", "strict")


@dataclass(frozen=True)
class Reward:
    format: float
    correctness: float

    @property
    def total(self) -> float:
        return self.format + self.correctness


@dataclass(frozen=True)
class Range:
    low: float
    high: float

    def at(self, share: float) -> float:
        """`share` in [0, 1], mapped linearly to [low, high]."""
        return self.low + (self.high - self.low) * share


def reward_ranges(scheme: RewardScheme, step: int) -> tuple[Range, Range]:
    """Ranges of format and correctness at global step `step`, counted from 1 (0: before training).

    `rest`: format max(1, 2 - s/150) down to min(-1, -2 + 2s/150), correctness ± min(3, 2 + s/150), so that format
    counts more early and correctness more late; the best total stays 4 for s ≤ 150.
    """
    if scheme == "rest":
        bound = min(3.0, 2.0 + step / 150)
        return Range(min(-1.0, -2.0 + 2 * step / 150), max(1.0, 2.0 - step / 150)), Range(-bound, bound)
    if scheme in SCHEMES:
        return Range(0.0, 1.0), Range(-3.0, 3.0)
    raise UserError(f"unknown reward scheme {scheme!r}{nearest(scheme, SCHEMES)} (known: {', '.join(SCHEMES)})")


def tool_reward(response: str | Response, reference: str | Response, *, scheme: RewardScheme, step: int = 0) -> Reward:
    """Reward of a response against the reference answer; both in the project's response format.

    Never raises on any `response`. `step` matters to the scheme `rest` alone.
    """
    format_range, correctness_range = reward_ranges(scheme, step)
    given = parse(response) if isinstance(response, str) else response
    wanted = parse(reference) if isinstance(reference, str) else reference
    if scheme == "strict":
        return Reward(
            format=format_range.at(float(given.well_formed and given.tags == wanted.tags)),
            correctness=correctness_range.at(_strict_share(given, wanted)),
        )
    return Reward(
        format=format_range.at(float(given.tags == wanted.tags)),
        correctness=correctness_range.at(_toolrl_share(given.calls, wanted.calls)) if wanted.calls else 0.0,
    )


def _toolrl_share(given: Sequence[ToolCall], wanted: Sequence[ToolCall]) -> float:
    """S = (r_name + Σ_j (r_keys,j + r_values,j)) / (1 + |G| + Σ_j |params_j|), in [0, 1].

    r_name is the multiset Jaccard of the names; each gold call j takes the best unused prediction of its name,
    r_keys is the Jaccard of the parameter keys and r_values the number of gold values that are matched.
    """
    if list(given) == list(wanted):
        return 1.0
    score = _name_jaccard(given, wanted)
    for _, keys, values in _best_matches(given, wanted, lambda a, b: bool(a == b)):
        score += keys + values
    return score / (1 + len(wanted) + sum(len(call.arguments) for call in wanted))


def _strict_share(given: Response, wanted: Response) -> float:
    """Correctness in [0, 1] that cannot be bought.

    With gold calls: the mean over them of (1 + r_keys + r_values) / (2 + |params|) for the best unused prediction of
    the same name, 0 without one. A piece that cannot be read is a call that matches nothing; more calls than wanted
    score 0, so neither candidates nor duplicates pay. Without gold calls: 1 for a response in words and no call.
    """
    attempts = len(given.calls) + given.rejected_calls
    if not wanted.calls:
        return float(attempts == 0 and bool(given.response))
    if attempts > len(wanted.calls):
        return 0.0
    shares = (
        (1 + keys + values) / (2 + len(gold.arguments))
        for gold, keys, values in _best_matches(given.calls, wanted.calls, same_json)
    )
    return sum(shares) / len(wanted.calls)


def _name_jaccard(given: Sequence[ToolCall], wanted: Sequence[ToolCall]) -> float:
    ours, theirs = Counter(call.name for call in given), Counter(call.name for call in wanted)
    union = (ours | theirs).total()
    return (ours & theirs).total() / union if union else 1.0


def _best_matches(
    given: Sequence[ToolCall], wanted: Sequence[ToolCall], same: Callable[[Any, Any], bool]
) -> list[tuple[ToolCall, float, int]]:
    """(gold call, r_keys, r_values) of every gold call for which an unused prediction of its name is left."""
    unused: dict[str, list[ToolCall]] = {}
    for call in given:
        unused.setdefault(call.name, []).append(call)
    matches = []
    for gold in wanted:
        candidates = unused.get(gold.name)
        if not candidates:
            continue
        scores = [_argument_scores(call.arguments, gold.arguments, same) for call in candidates]
        best = max(range(len(scores)), key=lambda n: sum(scores[n]))
        candidates.pop(best)
        matches.append((gold, *scores[best]))
    return matches


def _argument_scores(
    given: dict[str, Any], wanted: dict[str, Any], same: Callable[[Any, Any], bool]
) -> tuple[float, int]:
    """r_keys = Jaccard of the keys (1 where both are empty), r_values = gold values that are matched."""
    union = len(given.keys() | wanted.keys())
    keys = len(given.keys() & wanted.keys()) / union if union else 1.0
    return keys, sum(key in given and same(given[key], value) for key, value in wanted.items())


def same_json(a: Any, b: Any) -> bool:
    """Equality of JSON values with their types: true is not 1, 2.0 is not 2; the order of keys does not matter."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_json(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
