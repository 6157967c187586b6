"""BFCL's categories, how each is scored, and the averages that the leaderboard makes of them.

Source: `bfcl_eval/constants/category_mapping.py` and `generate_leaderboard_csv` in
`bfcl_eval/eval_checker/eval_runner_helper.py` of bfcl-eval 2026.3.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rest_core.errors import UserError, nearest
from rest_core.evaluation.bfcl.formats import FORMATS
from rest_core.evaluation.statistics import Accuracy, Average


@dataclass(frozen=True)
class Category:
    """One of BFCL's question files."""

    name: str
    group: Literal["non_live", "live", "multi_turn", "agentic", "format_sensitivity"]
    scorer: Literal["ast", "relevance", "multi_turn", "memory", "format"]
    """The rule in checker_process.py ("relevance" serves irrelevance as well), or the module with its dialogues; of the
    formats "format", which is "ast" for what formats.py reads."""

    @property
    def file(self) -> str:
        """BFCL's own name: all formats are one category there."""
        return self.group if self.scorer == "format" else self.name

    @property
    def directory(self) -> str:
        """In BFCL's result layout."""
        return f"agentic/{self.name.replace('_', '/', 1)}" if self.scorer == "memory" else self.group

    @property
    def has_dialogues(self) -> bool:
        return self.scorer in ("multi_turn", "memory")


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
        Category("memory_kv", "agentic", "memory"),
        Category("memory_rec_sum", "agentic", "memory"),
        *(Category(name, "format_sensitivity", "format") for name in FORMATS),
    )
}

_SIMPLE = ("simple_python", "simple_java", "simple_javascript")
_LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_AST = (*_SIMPLE, "multiple", "parallel", "parallel_multiple", *_LIVE_AST)
HEADLINE = ("call_accuracy", "irrelevance_accuracy", "multi_turn_accuracy", "memory_accuracy")
"""The averages to read first, and never as one: a model that makes no call at all has the best irrelevance."""

_MULTI_TURN = tuple(f"multi_turn_{part}" for part in ("base", "miss_func", "miss_param", "long_context"))
_UNWEIGHTED = {
    "multi_turn": _MULTI_TURN,
    "simple": _SIMPLE,
    "non_live": ("simple", "multiple", "parallel", "parallel_multiple"),
    "irrelevance_detection": ("irrelevance", "live_irrelevance"),
    "web_search": ("web_search_base", "web_search_no_snippet"),
    "memory": ("memory_kv", "memory_vector", "memory_rec_sum"),
    "agentic": ("web_search", "memory"),
    "overall_single_turn": ("non_live", "live", "irrelevance_detection"),
    "non_live_v3": ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    "overall_v3": ("non_live_v3", "live_v3", "multi_turn"),
}
_BY_QUESTIONS = {
    "live": _LIVE_AST,
    "live_v3": (*_LIVE_AST, "live_irrelevance", "live_relevance"),
}
_V4 = {"non_live": 0.1, "live": 0.1, "irrelevance_detection": 0.1, "multi_turn": 0.3, "agentic": 0.4}
_ORDER = (
    *HEADLINE,
    *("simple", "non_live", "live", "irrelevance_detection", "multi_turn", "non_live_v3", "live_v3"),
    *("web_search", "memory", "agentic", "overall_single_turn", "overall_v3", "overall_v4"),
)


_NOT_EVALUATED = {
    "web_search": "it needs a search engine's key and a network",
    "memory_vector": "it needs a sentence-transformers model",
    "memory": "a part of it, memory_vector, needs a sentence-transformers model; name memory_kv and memory_rec_sum",
    "agentic": "parts of it need a network (web_search) and a sentence-transformers model (memory_vector); name "
    "memory_kv and memory_rec_sum",
}
"""Further categories of BFCL, by the beginnings of their names, and why they cannot be chosen."""


def select(names: Iterable[str]) -> tuple[Category, ...]:
    """The categories that names of categories and groups mean, each once, in BFCL's order."""
    groups = ("format_sensitivity", "live", "multi_turn", "non_live")
    chosen: set[str] = set()
    for name in names:
        if name in CATEGORIES:
            chosen.add(name)
        elif name in groups:
            chosen.update(category.name for category in CATEGORIES.values() if category.group == name)
        else:
            for beginning, reason in _NOT_EVALUATED.items():
                if name.startswith(beginning):
                    raise UserError(f"bfcl.categories: {name} cannot be evaluated: {reason}")
            known = [*groups, *(name for name, one in CATEGORIES.items() if one.scorer != "format")]
            raise UserError(
                f"bfcl.categories: unknown category {name!r}{nearest(name, known)} (known: {', '.join(known)})"
            )
    if not chosen:
        raise UserError("bfcl.categories: no category is named; name at least one, or set bfcl.enabled=false")
    return tuple(category for category in CATEGORIES.values() if category.name in chosen)


def averages(scores: Mapping[str, Accuracy]) -> dict[str, Average]:
    """Averages of the categories that were evaluated; one of which a member is missing is left out.

    Ours, over all questions of the categories that were evaluated:

    - `call_accuracy`: of those whose calls are checked in one turn (live_relevance accepts any call, and is not one).
    - `irrelevance_accuracy`: of those that want no call.
    - `multi_turn_accuracy`: of the multi-turn dialogues.
    - `memory_accuracy`: of the questions about memories.

    The leaderboard's, in its version 4:

    - `simple`: unweighted mean of the three languages.
    - `non_live`: unweighted mean of simple, multiple, parallel and parallel_multiple (irrelevance is no part of it).
    - `live`: mean of the four live AST categories weighted by the number of questions that were evaluated.
    - `irrelevance_detection`: unweighted mean of irrelevance and live_irrelevance.
    - `multi_turn`, `web_search`, `memory`: unweighted means; `agentic`: that of the last two.
    - `overall_v4`: 10 % non_live, 10 % live, 10 % irrelevance_detection, 30 % multi_turn, 40 % agentic. (The official
      table counts a part that is missing as 0.)
    - `overall_single_turn`: unweighted mean of non_live, live and irrelevance_detection, so `overall_v4` restricted to
      single-turn parts.

    The leaderboard's in its version 3 of April 2025, which papers of that year report:

    - `non_live_v3`: as non_live, with irrelevance as a fifth member.
    - `live_v3`: as live, with live_irrelevance and live_relevance.
    - `overall_v3`: unweighted mean of non_live_v3, live_v3 and multi_turn.
    """
    weights = {name: {name: 1.0} for name in scores}

    def add(name: str, shares: Mapping[str, float]) -> None:
        """An average of categories and averages, as weights of categories."""
        if shares and all(member in weights for member in shares):
            weights[name] = {}
            for member, share in shares.items():
                for category, weight in weights[member].items():
                    weights[name][category] = weights[name].get(category, 0.0) + share * weight

    def add_by_questions(name: str, members: Sequence[str]) -> None:
        total = sum(scores[member].total for member in members if member in scores)
        add(name, {member: scores[member].total / total if member in scores else 0.0 for member in members})

    parts = (_AST, _UNWEIGHTED["irrelevance_detection"], _MULTI_TURN, _UNWEIGHTED["memory"])
    for name, members in zip(HEADLINE, parts, strict=True):
        add_by_questions(name, [member for member in members if member in scores])
    for name, members in _BY_QUESTIONS.items():
        add_by_questions(name, members)
    for name, members in _UNWEIGHTED.items():
        add(name, {member: 1 / len(members) for member in members})
    add("overall_v4", _V4)
    return {name: Average(scores, weights[name]) for name in _ORDER if name in weights}
