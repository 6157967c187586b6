"""BFCL's categories, how each is scored, and the averages that the leaderboard makes of them.

Source: `bfcl_eval/constants/category_mapping.py` and `generate_leaderboard_csv` in
`bfcl_eval/eval_checker/eval_runner_helper.py` of bfcl-eval 2026.3.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rest_core.errors import UserError, nearest
from rest_core.evaluation.statistics import Accuracy


@dataclass(frozen=True)
class Category:
    """One of BFCL's question files."""

    name: str
    group: Literal["non_live", "live", "multi_turn"]  # also the directory in BFCL's result layout
    scorer: Literal["ast", "relevance", "multi_turn"]
    """The rule in checker_process.py ("relevance" serves irrelevance as well), or the dialogues of multi_turn.py."""


CATEGORIES: dict[str, Category] = {
    category.name: category
    for category in (
        Category("simple_python", "non_live", "ast"),
        Category("simple_java", "non_live", "ast"),
        Category("simple_javascript", "non_live", "ast"),
        Category("multiple", "non_live", "ast"),
        Category("parallel", "non_live", "ast"),
        Category("parallel_multiple", "non_live", "ast"),
        Category("irrelevance", "non_live", "relevance"),
        Category("live_simple", "live", "ast"),
        Category("live_multiple", "live", "ast"),
        Category("live_parallel", "live", "ast"),
        Category("live_parallel_multiple", "live", "ast"),
        Category("live_irrelevance", "live", "relevance"),
        Category("live_relevance", "live", "relevance"),
        Category("multi_turn_base", "multi_turn", "multi_turn"),
        Category("multi_turn_miss_func", "multi_turn", "multi_turn"),
        Category("multi_turn_miss_param", "multi_turn", "multi_turn"),
        Category("multi_turn_long_context", "multi_turn", "multi_turn"),
    )
}

_SIMPLE = ("simple_python", "simple_java", "simple_javascript")
_LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")


def select(names: Iterable[str]) -> tuple[Category, ...]:
    """The categories that names of categories and groups mean, each once, in BFCL's order."""
    groups = sorted({category.group for category in CATEGORIES.values()})
    chosen: set[str] = set()
    for name in names:
        if name in CATEGORIES:
            chosen.add(name)
        elif name in groups:
            chosen.update(category.name for category in CATEGORIES.values() if category.group == name)
        else:
            known = [*groups, *CATEGORIES]
            raise UserError(
                f"bfcl.categories: unknown category {name!r}{nearest(name, known)} (known: {', '.join(known)})"
            )
    if not chosen:
        raise UserError("bfcl.categories: no category is named; name at least one, or set bfcl.enabled=false")
    return tuple(category for category in CATEGORIES.values() if category.name in chosen)


def averages(scores: Mapping[str, Accuracy]) -> dict[str, float]:
    """The leaderboard's averages, as fractions; one whose members were not all evaluated is left out.

    - `simple`: unweighted mean of the three languages.
    - `non_live`: unweighted mean of simple, multiple, parallel and parallel_multiple (irrelevance is no part of it).
    - `live`: mean of the four live AST categories weighted by the number of questions that were evaluated.
    - `irrelevance_detection`: unweighted mean of irrelevance and live_irrelevance.
    - `overall`: unweighted mean of non_live, live and irrelevance_detection. That is the leaderboard's total (weights
      10, 10, 10 for these, 30 for multi-turn, 40 for agentic) restricted to the single-turn parts; live_relevance is
      no part of it there either.
    """
    accuracy = {name: score.value for name, score in scores.items()}

    def add_mean(name: str, members: tuple[str, ...]) -> None:
        if all(member in accuracy for member in members):
            accuracy[name] = sum(accuracy[member] for member in members) / len(members)

    add_mean("simple", _SIMPLE)
    add_mean("non_live", ("simple", "multiple", "parallel", "parallel_multiple"))
    if all(member in scores for member in _LIVE_AST):
        live = [scores[member] for member in _LIVE_AST]
        accuracy["live"] = sum(score.correct for score in live) / sum(score.total for score in live)
    add_mean("irrelevance_detection", ("irrelevance", "live_irrelevance"))
    add_mean("overall", ("non_live", "live", "irrelevance_detection"))
    return {name: value for name, value in accuracy.items() if name not in scores}
