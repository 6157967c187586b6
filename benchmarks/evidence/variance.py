"""Variance, signal and direction of gradients, from the scalar products of K groups' gradients."""

from __future__ import annotations

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
    # Pairs of different groups alone are unbiased for products of means: a group with itself adds its own variance.
    pairs = c.sum() ** 2 - (c * c).sum()

    def of_means(products: Floats) -> float:
        return float((c @ products @ c - (c * c) @ np.diag(products)) / pairs)

    squared = float(c @ np.diag(own) / c.sum())
    signal, signal_uniform, across = of_means(own), of_means(uniform), of_means(with_uniform)
    variance = squared - signal
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


def _interval(values: list[float]) -> list[float]:
    """[estimate, 2.5 %, 97.5 %]; the first value is the estimate, the others are bootstrap draws."""
    drawn = [value for value in values[1:] if np.isfinite(value)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (NAN, NAN)
    return [float(values[0]), float(low), float(high)]


def shares(own: Floats, with_uniform: Floats, schemes: list[str]) -> dict[str, dict[str, list[float]]]:
    """Of each region's part of uniform's gradient: its share of the variance, and of the squared norm, with intervals.

    The parts add up to the gradient, but are not orthogonal: shares of the variance alone need not add up to 1.
    """
    uniform = own[schemes.index("uniform")]
    draws = _draws(len(uniform))
    whole = [figures(uniform, uniform, uniform, c).variance for c in draws]
    norms = [_squared_norm(uniform, c) for c in draws]
    result = {}
    for n, scheme in enumerate(schemes):
        if scheme.startswith("part "):
            parts = [figures(own[n], with_uniform[n], uniform, c).variance for c in draws]
            along = [_squared_norm(with_uniform[n], c) for c in draws]
            result[scheme.removeprefix("part ")] = {
                "variance": _interval([part / all_ for part, all_ in zip(parts, whole, strict=True)]),
                "squared_norm": _interval([part / all_ for part, all_ in zip(along, norms, strict=True)]),
            }
    return result


def _squared_norm(products: Floats, counts: Floats | None) -> float:
    return float(np.diag(products) @ (np.ones(len(products)) if counts is None else counts))


def tokens_table(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """How well the bound's stand-ins follow the measured squared scores of single tokens.

    By region the means of 1 - exp(-H), 1 - Σp² and of the squared score over the parameters, and the mean of the last
    over the second (the squared Jacobian norm that the proxy drops); over all tokens the rank correlations.
    """
    from scipy.stats import spearmanr

    entropy = np.array([token["entropy"] for token in tokens])
    logit = np.array([token["logit_score"] for token in tokens])
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
            "squared_score": float(mean),
            "standard_error": float(measured[of].std(ddof=1) / np.sqrt(of.sum())) if of.sum() > 1 else None,
            "squared_jacobian": float(mean / logit[of].mean()),
        }
    return {
        "regions": regions,
        "spearman_proxy": float(spearmanr(proxy, measured).statistic),
        "spearman_logit_score": float(spearmanr(logit, measured).statistic),
    }
