"""The tables of docs/evidence.md that say what gradients are like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .tables import BASELINE, table

PRIMARY = "paper, middle"
UNCLEAR = 0.01  # of the bootstrap's draws in which the mean gradient cannot be told from 0


def scheme_table(found: Mapping[str, Any], scale: str) -> list[str]:
    """A row a scheme: variance, signal and what follows, over uniform's.

    Args:
        scale: of the gradients' coordinates, of `gradient_variance.SCALES`.
    """
    names = {
        "variance/uniform": "variance",
        "signal/uniform": "signal",
        "snr/uniform": "signal to noise",
        "snr_uniform/uniform": "towards uniform's",
    }
    body = []
    for scheme, row in found[scale]["schemes"].items():
        unclear = is_unclear(row)
        cells = ["unclear" if unclear and name != "variance/uniform" else _ratio(row[name]) for name in names]
        body.append([scheme, *cells, _ratio(row["cosine"]), "unclear" if unclear else _ratio(row["aligned"])])
    rest = found[scale]["without_largest_group"]
    ratios = f"{rest['variance/uniform'][PRIMARY]:.2f} (variance)"
    if not is_unclear(found[scale]["schemes"][PRIMARY]):
        ratios += f" and {rest['snr/uniform'][PRIMARY]:.2f} (signal to noise)"
    hangs_on = (
        f"The largest group has {rest['share']:.0%} of the groups' summed squared norms under uniform. Without it, "
        f'"{PRIMARY}" over uniform: {ratios}.'
    )
    head = ("scheme", *names.values(), "cosine with the mean", "direction beside uniform's")
    return [*table(head, body), "", hangs_on]


def region_table(found: Mapping[str, Any], scale: str) -> list[str]:
    """A row a region: its share of the tokens, its entropy, and its part of uniform's gradient in a scale."""
    settings = found["settings"]
    unclear = is_unclear(found[scale]["schemes"][BASELINE])
    body = [
        [
            region,
            f"{settings['region_share'][region]:.1%}",
            "–" if (entropy := settings["region_entropy"][region]) is None else f"{entropy:.3f}",
            _share(part["variance"]),
            "unclear" if unclear else _share(part["signal"]),
        ]
        for region, part in found[scale]["regions"].items()
    ]
    return table(("region", "tokens", "entropy, nats", "of the variance", "of the signal"), body)


def token_table(found: Mapping[str, Any], what: str) -> list[str]:
    """A row a region: the bound's stand-ins, and the squared norm that they stand for."""
    tokens = found[what]
    body = [
        [
            region,
            str(one["tokens"]),
            f"{one['entropy']:.3f}",
            f"{one['proxy']:.3f}",
            f"{one['logit_score']:.3f}",
            f"{one['sampled_logit_score']:.2g}",
            f"{one['squared_score']:.2g} ± {one['standard_error'] or math.nan:.2g}",
            f"{one['squared_jacobian']:.2g}",
        ]
        for region, one in tokens["regions"].items()
    ]
    head = ("region", "tokens", "entropy", "1 − e^(−H)", "1 − Σp²", "sampled", "squared score", "squared Jacobian norm")
    ranks = (
        f"Rank correlation with the squared score, over all tokens: {tokens['spearman_proxy']:.2f} of 1 − e^(−H), "
        f"{tokens['spearman_logit_score']:.2f} of 1 − Σp²."
    )
    return [*table(head, body), "", ranks]


def is_unclear(row: Mapping[str, Any]) -> bool:
    """Whether ratios of a scheme's signal to uniform's mean nothing: one of the two cannot be told from 0."""
    return bool(row["signal_unclear"] > UNCLEAR)


def _ratio(values: Sequence[float]) -> str:
    value, low, high = values
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def _share(values: Sequence[float]) -> str:
    value, low, high = (100 * one for one in values)
    return f"{value:.1f}% ({low:.1f}–{high:.1f})"
