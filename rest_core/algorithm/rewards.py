"""Rewards of one response against its reference: format and correctness (docs/method.md, "Reward").

Three schemes:
    toolrl  ToolRL's published reward (arXiv 2504.13958, its default without a schedule): format 0..1, correctness -3..3
    rest    the ResT authors': a format rule of its own, on ranges that move with the training step
    strict  ours: the same ranges as toolrl, without the ways to cheat that the other two leave open

All read a parsed `Response`. `toolrl` and `rest` compare values as Python does (True == 1, 2.0 == 2);
`strict` compares them as JSON values, types included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from rest_core.errors import UserError, nearest
from rest_core.records import ToolCall
from rest_core.response import TAGGED, Kind, Response, Span, parse, read_calls

RewardScheme = Literal["toolrl", "rest", "strict"]
SCHEMES: tuple[RewardScheme, ...] = ("toolrl", "rest", "strict")
# How ToolRL lays a response out, the blocks in their order; * is any text.
_LAYOUT = {Kind.TOOL_CALL: "<tool_call>\n*\n</tool_call>", Kind.RESPONSE: "<response>*</response>"}


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


def tool_reward(
    response: str | Response,
    reference: str | Response,
    *,
    scheme: RewardScheme,
    step: int = 0,
    one_call_a_line: bool = False,
) -> Reward:
    """Reward of a response against the reference answer; both in the project's response format.

    Never raises on any `response`. `step` matters to the scheme `rest` alone.

    Args:
        one_call_a_line: for `toolrl` and `rest`, read calls as their authors' code does: one JSON object a line, with
            "parameters"; a call of another layout costs the whole correctness, as one that cannot be read.
    """
    format_range, correctness_range = reward_ranges(scheme, step)
    given = parse(response) if isinstance(response, str) else response
    wanted = parse(reference) if isinstance(reference, str) else reference
    if scheme == "strict":
        return Reward(
            format=format_range.at(float(given.well_formed and given.tags == wanted.tags)),
            correctness=correctness_range.at(_strict_share(given, wanted)),
        )
    in_format = _toolrl_format(given, wanted) if scheme == "toolrl" else given.tags == wanted.tags
    unreadable = bool(given.rejected) or (one_call_a_line and not _is_one_call_a_line(given, wanted))
    share = 0.0 if unreadable else _toolrl_share(given.calls, wanted.calls)
    return Reward(
        format=format_range.at(float(in_format)),
        correctness=correctness_range.at(share) if wanted.calls else 0.0,
    )


def _toolrl_format(given: Response, wanted: Response) -> bool:
    """ToolRL's format rule: think, then the reference's blocks once each, line breaks between, nothing around them.

    In other dialects than its own: well formed, with the parts of the reference.
    """
    if given.dialect is not TAGGED:
        return given.well_formed and given.tags == wanted.tags
    blocks = [kind for kind in _LAYOUT if any(block.kind is kind for block in wanted.blocks)]
    if any(given.tags.count(tag) != 1 for kind in blocks for tag in (f"<{kind.value}>", f"</{kind.value}>")):
        return False
    pieces = "\n".join(["<think>*</think>", *(_LAYOUT[kind] for kind in blocks)]).split("*")
    text = given.text.strip()
    if not (text.startswith(pieces[0]) and text.endswith(pieces[-1])):
        return False
    position = len(pieces[0])
    for piece in pieces[1:-1]:
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return position <= len(text) - len(pieces[-1])


def _is_one_call_a_line(given: Response, wanted: Response) -> bool:
    """Whether calls stand one a line, nothing between, and those of a gold name spell their arguments "parameters"."""
    text = given.text
    starts = [spans.whole.start for spans in given.call_spans]
    for block in given.blocks:
        first, last = (bisect_left(starts, edge) for edge in (block.content.start, block.content.end))
        inside = given.call_spans[first:last]
        lines = text[block.content.start : block.content.end].strip().split("\n")
        alone = all("\n" in text[one.whole.end : other.whole.start] for one, other in pairwise(inside))
        if block.kind is Kind.TOOL_CALL and not (len(lines) == len(inside) and alone):
            return False
    names = {call.name for call in wanted.calls}
    spelled = zip(given.calls, given.call_spans, strict=True)
    return all(spans.key == "parameters" for call, spans in spelled if call.name in names)


def _toolrl_share(given: Sequence[ToolCall], wanted: Sequence[ToolCall]) -> float:
    """S = (r_name + Σ_j (r_keys,j + r_values,j)) / (1 + |G| + Σ_j |params_j|), in [0, 1].

    r_name is the multiset Jaccard of the names. In their order, each gold call j takes the best unused prediction of
    its name, the first of equals; r_keys,j is the Jaccard of the parameter keys and r_values,j the number of gold
    values that are matched. A prediction of which nothing matches stays unused.
    """
    if list(given) == list(wanted):
        return 1.0
    score = _name_jaccard(given, wanted)
    unused: dict[str, list[ToolCall]] = {}
    for call in given:
        unused.setdefault(call.name, []).append(call)
    for gold in wanted:
        candidates = unused.get(gold.name, [])
        scores = [sum(_argument_scores(call.arguments, gold.arguments, _equal)) for call in candidates]
        best = max(scores, default=0.0)
        if best > 0:
            candidates.pop(scores.index(best))
            score += best
    return score / (1 + len(wanted) + sum(len(call.arguments) for call in wanted))


def _strict_share(given: Response, wanted: Response) -> float:
    """Correctness in [0, 1] that cannot be bought.

    With gold calls: the mean over them of (1 + r_keys + r_values) / (2 + |params|), 0 for one without a prediction,
    for the best assignment of predictions to gold calls of their name. More attempts than gold calls score 0, so
    neither candidates nor duplicates pay. Without gold calls: 1 for a response block with text and no attempt.
    """
    if not wanted.calls:
        return float(bool(given.response) and _attempts(given) == 0)
    if not given.calls or _attempts(given) > len(wanted.calls):
        return 0.0
    return sum(
        _best_assignment(
            [
                [_call_share(call.arguments, gold.arguments) for call in given.calls if call.name == name]
                for gold in wanted.calls
                if gold.name == name
            ]
        )
        for name in {call.name for call in wanted.calls}
    ) / len(wanted.calls)


def _attempts(given: Response) -> int:
    """Calls, and lines with a brace that are no part of one, wherever a call can be made or hidden.

    That is in tool_call blocks; in what stands outside of all blocks, so that a tag which ends a block early, or is no
    longer one, hides nothing; and inside other blocks that hold a tag of a tool_call block.
    """
    if given.dialect is not TAGGED:
        return _attempts_in_dialect(given)
    text = given.text
    attempts = len(given.calls) + _lines_with_braces(text[piece.start : piece.end] for piece in given.rejected)
    if given.well_formed:
        return attempts
    mark = given.dialect.call_mark
    swallowed = [span for span in _without_calls(given) if mark.search(text, span.start, span.end)]
    for span in (*given.outside, *swallowed):
        calls, rejected = read_calls(mark.sub("\n", text[span.start : span.end]))
        attempts += len(calls) + _lines_with_braces(rejected)
    return attempts


def _attempts_in_dialect(given: Response) -> int:
    """The same where calls need no braces: calls, pieces that are none, and marks of calls anywhere else."""
    text, mark = given.text, given.dialect.call_mark
    pieces = sum(max(1, _lines_with_braces([text[piece.start : piece.end]])) for piece in given.rejected)
    elsewhere = () if given.well_formed else (*given.outside, *_without_calls(given))
    return len(given.calls) + pieces + sum(len(mark.findall(text, span.start, span.end)) for span in elsewhere)


def _without_calls(given: Response) -> list[Span]:
    """The contents of blocks in which no call can stand."""
    return [block.content for block in given.blocks if block.kind is not Kind.TOOL_CALL]


def _lines_with_braces(pieces: Iterable[str]) -> int:
    return sum("{" in line for piece in pieces for line in piece.split("\n"))


def _call_share(given: dict[str, Any], wanted: dict[str, Any]) -> float:
    return (1 + sum(_argument_scores(given, wanted, same_json))) / (2 + len(wanted))


def _best_assignment(shares: list[list[float]]) -> float:
    """The greatest sum of shares (gold calls × predictions) with each row and each column used once at most."""
    if not shares[0]:
        return 0.0
    if len(shares) == 1 or len(shares[0]) == 1:
        return max(share for row in shares for share in row)
    from scipy.optimize import linear_sum_assignment  # 0.2 s to import, for parallel calls of one name alone

    rows, columns = linear_sum_assignment(shares, maximize=True)
    return float(sum(shares[row][column] for row, column in zip(rows, columns, strict=True)))


def _name_jaccard(given: Sequence[ToolCall], wanted: Sequence[ToolCall]) -> float:
    ours, theirs = Counter(call.name for call in given), Counter(call.name for call in wanted)
    union = (ours | theirs).total()
    return (ours & theirs).total() / union if union else 1.0


def _argument_scores(
    given: dict[str, Any], wanted: dict[str, Any], same: Callable[[Any, Any], bool]
) -> tuple[float, int]:
    """r_keys = Jaccard of the keys (1 where both are empty), r_values = gold values that are matched."""
    union = len(given.keys() | wanted.keys())
    keys = len(given.keys() & wanted.keys()) / union if union else 1.0
    return keys, sum(key in given and same(given[key], value) for key, value in wanted.items())


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)


def same_json(a: Any, b: Any) -> bool:
    """Equality of JSON values with their types: true is not 1, 2.0 is not 2; the order of keys does not matter."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_json(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(same_json(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
