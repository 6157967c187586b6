"""BFCL's category format_sensitivity: the same 200 questions in 26 formats of prompt, each here a category of its own.

Source: `format_sensitivity_runner` in `bfcl_eval/eval_checker/eval_runner.py` (bfcl-eval 2026.3.23). The leaderboard
shows by how much the formats differ; their mean is no part of any average.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rest_core.evaluation.benchmark import Row
from rest_core.evaluation.bfcl.formats import FORMATS
from rest_core.evaluation.statistics import Accuracy, Mean

FILE = "format_sensitivity"
_NAMES = {official: name for name, official in FORMATS.items()}


def category_of(id_: str) -> str | None:
    """Our name of the format in an id such as "format_sensitivity_7:ret_fmt=…:simple_python_58"; None of other ids."""
    return _NAMES[id_.split(":")[1]] if id_.startswith(f"{FILE}_") else None


def question_of(id_: str) -> str:
    """The id of the question that is put in a format, "simple_python_58"."""
    return id_.split(":")[2]


def mean(rows: Sequence[Row]) -> dict[str, Mean]:
    """The share of the formats in which a question is answered right, over the questions."""
    valid: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["category"] in FORMATS:
            valid[question_of(row["id"])].append(row["valid"])
    shares = Counter(statistics.fmean(formats) for formats in valid.values())
    return {f"{FILE}_mean": Mean(shares)} if valid else {}


def spread(scores: Mapping[str, Accuracy]) -> dict[str, float]:
    """How much the formats' accuracies differ, in percentage points, officially rounded: the leaderboard's figures."""
    values = [score.value for name, score in scores.items() if name in FORMATS]
    if not values:
        return {}
    several = len(values) > 1
    return {
        f"{FILE}_max_delta": round((max(values) - min(values)) * 100, 2),
        f"{FILE}_std": round(statistics.stdev(values) * 100, 2) if several else 0.0,
    }


def header(scores: Mapping[str, Accuracy]) -> dict[str, Any]:
    """What the official score file's first line has besides."""
    formats = {FORMATS[name]: score for name, score in scores.items() if name in FORMATS}
    values = [score.value for score in formats.values()]
    return {
        **{name.replace(FILE, "accuracy"): value for name, value in spread(scores).items()},
        "accuracy_variance": round(statistics.variance(values) * 100**2, 2) if len(values) > 1 else 0.0,
        **{
            name: {"accuracy": score.value, "correct_count": score.correct, "total_count": score.total}
            for name, score in formats.items()
        },
    }
