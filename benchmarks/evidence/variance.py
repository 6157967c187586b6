"""Variance, signal and direction of gradients, from the scalar products of K groups' gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NAN = float("nan")
DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class Figures:
    """Of one scheme; norms are in units of uniform's mean squared norm."""

    variance: float  # trace of the covariance of one group's gradient
    signal: float  # squared norm of the mean gradient
    snr: float  # signal / variance
    cosine: float  # of one group's gradient with the mean gradient of all others
    aligned: float  # cosine of the mean gradient with uniform's mean gradient
    # Signal towards uniform's objective over variance: what an update gains for plain GRPO's objective.
    snr_uniform: float


@np.errstate(divide="ignore", invalid="ignore")  # a bootstrap's draw of one group alone has no pairs: NaN, left out
def figures(own: Floats, with_uniform: Floats, uniform: Floats, counts: Floats | None = None) -> Figures:
    """The figures of a sample of groups.

    Args:
        own: (K, K) products of the scheme's gradients.
        with_uniform: (K, K) products of the scheme's (rows) with uniform's (columns).
        uniform: (K, K) products of uniform's.
        counts: (K,) how often each group was drawn (bootstrap); None = once each.
    """
    c = np.ones(len(own)) if counts is None else counts
    variance, signal = moments(own, c)
    (_, signal_uniform), (_, across) = moments(uniform, c), moments(with_uniform, c)
    others = (c @ own - np.diag(own) * c) / (c.sum() - c)  # of each group with the mean of the others
    norms = np.sqrt(np.diag(own) * np.maximum(_norm_of_others(own, c), 0))
    some = norms > 0  # a scheme may leave a group without any gradient
    cosine = float((c * others)[some] @ (1 / norms[some]) / c[some].sum()) if some.any() else NAN
    both = signal * signal_uniform
    return Figures(
        variance=variance,
        signal=signal,
        snr=signal / variance if variance > 0 else NAN,
        cosine=cosine,
        aligned=across / np.sqrt(both) if both > 0 else NAN,
        snr_uniform=np.sign(across) * across**2 / signal_uniform / variance if signal_uniform * variance > 0 else NAN,
    )


@np.errstate(divide="ignore", invalid="ignore")
def moments(products: Floats, counts: Floats | None) -> tuple[float, float]:
    """Trace of the covariance of two kinds of gradients, and the product of their means.

    Args:
        products: (K, K) of the groups' gradients of one kind (rows) with those of the other.
        counts: as in `figures`.
    """
    c = np.ones(len(products)) if counts is None else counts
    # Pairs of different groups alone are unbiased for products of means: a group with itself adds its own variance.
    of_means = float((c @ products @ c - (c * c) @ np.diag(products)) / (c.sum() ** 2 - (c * c).sum()))
    return float(c @ np.diag(products) / c.sum()) - of_means, of_means


def _norm_of_others(own: Floats, c: Floats) -> Floats:
    """(K,) squared norm of the mean of all groups but one."""
    total, rows = c @ own @ c, own @ c
    return (total - 2 * c * rows + c * c * np.diag(own)) / (c.sum() - c) ** 2


def table(own: Floats, with_uniform: Floats, schemes: list[str]) -> dict[str, dict[str, Any]]:
    """Each scheme's figures and their ratios (differences, of cosines) to uniform's, with 95 % bootstrap intervals.

    Groups are drawn with replacement, the same ones for all schemes, so that what the groups have in common cancels.
    """
    base = schemes.index("uniform")
    draws = _draws(own.shape[1])
    plain = [figures(own[base], with_uniform[base], own[base], c) for c in draws]
    result = {}
    for n, scheme in enumerate(schemes):
        found = [figures(own[n], with_uniform[n], own[base], c) for c in draws]
        row: dict[str, Any] = {}
        for name in asdict(found[0]):
            row[name] = _interval([getattr(one, name) for one in found])
        for name in ("variance", "signal", "snr", "snr_uniform"):
            pairs = [(getattr(one, name), getattr(u, name)) for one, u in zip(found, plain, strict=True)]
            ratios = [value / other if other else NAN for value, other in pairs]
            row[f"{name}/uniform"] = _interval(ratios)
        # A ratio of signals means nothing where the mean gradient cannot be told from 0.
        row["signal_unclear"] = max(float(np.mean([one.signal <= 0 for one in each[1:]])) for each in (found, plain))
        row["cosine-uniform"] = _interval([one.cosine - u.cosine for one, u in zip(found, plain, strict=True)])
        result[scheme] = row
    return result


def without_largest(own: Floats, with_uniform: Floats, schemes: list[str]) -> dict[str, Any]:
    """What hangs on a single group, the one with the largest gradient under uniform.

    Returns its share of the groups' summed squared norms, and each scheme's ratios to uniform's without it.
    """
    base = schemes.index("uniform")
    norms = np.diag(own[base])
    counts = (norms < norms.max()).astype(float)
    rest = [figures(own[n], with_uniform[n], own[base], counts) for n in range(len(schemes))]
    found: dict[str, Any] = {"share": float(norms.max() / norms.sum())}
    for name in ("variance", "snr"):
        found[f"{name}/uniform"] = {
            scheme: getattr(one, name) / getattr(rest[base], name) for scheme, one in zip(schemes, rest, strict=True)
        }
    return found


def _draws(groups: int) -> list[Floats | None]:
    """How often each group counts: None (once each) for the estimate, then a bootstrap's draws."""
    drawn = np.random.default_rng(0).integers(groups, size=(DRAWS, groups))
    return [None, *(np.bincount(one, minlength=groups).astype(float) for one in drawn)]


def _interval(values: Sequence[float]) -> list[float]:
    """[estimate, 2.5 %, 97.5 %]; the first value is the estimate, the others are bootstrap draws."""
    drawn = [value for value in values[1:] if np.isfinite(value)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (NAN, NAN)
    return [float(values[0]), float(low), float(high)]


def shares(parts: Mapping[str, Floats], uniform: Floats) -> dict[str, dict[str, list[float]]]:
    """Each part's share of uniform's variance and signal, with intervals.

    The parts add up to the gradient, and so their shares to 1; one may be negative.

    Args:
        parts: by name: (K, K) products of a part's gradients (rows) with uniform's (columns).
        uniform: (K, K) products of uniform's.
    """
    draws = _draws(len(uniform))
    whole = [moments(uniform, c) for c in draws]
    result = {}
    for part, products in parts.items():
        found = [moments(products, c) for c in draws]
        variances, signals = zip(*(np.divide(one, all_) for one, all_ in zip(found, whole, strict=True)), strict=True)
        result[part] = {"variance": _interval(variances), "signal": _interval(signals)}
    return result


def tokens_table(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """How well the bound's stand-ins follow the measured squared scores of single tokens.

    By region the means of 1 - exp(-H), of its exact value 1 - Σp² (the squared score over the logits as expected over
    the vocabulary), of the same of the sampled token, 1 - 2p + Σp², and of the squared score over the parameters; and
    the mean of the last over that of the one before, the squared Jacobian norm that the bound drops. Over all tokens
    the rank correlations.
    """
    from scipy.stats import spearmanr

    entropy = np.array([token["entropy"] for token in tokens])
    logit = np.array([token["logit_score"] for token in tokens])
    sampled = 2 * (1 - np.array([token["probability"] for token in tokens])) - logit
    measured = np.array([token["squared_score"] for token in tokens])
    proxy = -np.expm1(-entropy)
    names = np.array([token["region"] for token in tokens])
    regions = {}
    for name in sorted(set(names.tolist())):
        of = names == name
        mean = measured[of].mean()
        regions[name] = {
            "tokens": int(of.sum()),
            "entropy": float(entropy[of].mean()),
            "proxy": float(proxy[of].mean()),
            "proxy_of_mean_entropy": float(-np.expm1(-entropy[of].mean())),
            "logit_score": float(logit[of].mean()),
            "sampled_logit_score": float(sampled[of].mean()),
            "squared_score": float(mean),
            "standard_error": float(measured[of].std(ddof=1) / np.sqrt(of.sum())) if of.sum() > 1 else None,
            "squared_jacobian": float(mean / sampled[of].mean()),
        }
    return {
        "regions": regions,
        "spearman_proxy": float(spearmanr(proxy, measured).statistic),
        "spearman_logit_score": float(spearmanr(logit, measured).statistic),
    }
