"""The sketches and statistics that the evidence is computed with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evidence.gradients import PRIMARY, region_table, scheme_table
from evidence.recorded import PARTS, SCHEMES, UNIFORM, Recorded
from evidence.sketch import Sketch
from evidence.variance import figures, shares, table, tokens_table, without_largest

from rest_core.algorithm.regions import Region


def gradients(groups: int, *, signal: float, noise: float, size: int = 400, seed: int = 0) -> np.ndarray:
    """(groups, size) of mean `signal` in length, and noise of variance `noise` (trace of the covariance)."""
    generator = np.random.default_rng(seed)
    mean = np.zeros(size)
    mean[0] = signal
    return mean + generator.normal(size=(groups, size)) * np.sqrt(noise / size)


def test_a_sketch_keeps_scalar_products() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 500), (1000,), (64, 1000)]
    one = [torch.randn(shape, generator=generator) for shape in shapes]
    two = [x + torch.randn(x.shape, generator=generator) for x in one]
    sketch = Sketch([x.numel() for x in one])
    exact = sum(float((x * y).sum()) for x, y in zip(one, two, strict=True))
    norms = [sum(float(x.square().sum()) for x in vector) ** 0.5 for vector in (one, two)]
    assert abs(float(sketch(one) @ sketch(two)) - exact) < 0.03 * norms[0] * norms[1]


def test_a_sketch_is_linear() -> None:
    one, two = [torch.arange(50_000.0)], [torch.ones(50_000)]
    sketch = Sketch([50_000], size=1009)
    both = sketch([3 * one[0] - two[0]])
    assert torch.allclose(both, 3 * sketch(one) - sketch(two), rtol=1e-4, atol=1.0)


def test_variance_and_signal_are_unbiased() -> None:
    found = []
    for seed in range(200):
        made = gradients(12, signal=0.5, noise=2.0, seed=seed)
        products = made @ made.T
        found.append(figures(products, products, products))
    assert np.mean([one.variance for one in found]) == pytest.approx(2.0, rel=0.03)
    assert np.mean([one.signal for one in found]) == pytest.approx(0.25, abs=0.02)


def test_a_scheme_of_less_noise_and_another_direction_is_told_so() -> None:
    plain = gradients(300, signal=0.5, noise=2.0)
    turned = gradients(300, signal=0.5, noise=1.0, seed=1)[:, ::-1]  # its mean has nothing in common with the other
    both = [plain, turned]
    own = np.stack([x @ x.T for x in both])
    found = table(own, np.stack([x @ plain.T for x in both]), [UNIFORM, "other"])
    assert found[UNIFORM]["variance/uniform"] == [1.0, 1.0, 1.0]
    ratio, low, high = found["other"]["variance/uniform"]
    assert low < ratio < high and low > 0.4 and high < 0.6
    assert found["other"]["aligned"][0] == pytest.approx(0.0, abs=0.2)
    assert found[UNIFORM]["aligned"][0] == pytest.approx(1.0)
    assert found["other"]["snr"][0] == pytest.approx(0.25, rel=0.3)


def test_what_hangs_on_a_single_group_is_told() -> None:
    plain, half = gradients(50, signal=1.0, noise=1.0), 0.5 * gradients(50, signal=1.0, noise=1.0)
    plain[7], half[7] = 100, 0
    both = [plain, half]
    own, with_uniform = np.stack([x @ x.T for x in both]), np.stack([x @ plain.T for x in both])
    found = without_largest(own, with_uniform, [UNIFORM, "half"])
    assert found["share"] > 0.99
    assert found["variance/uniform"] == pytest.approx({UNIFORM: 1.0, "half": 0.25})
    assert found["snr/uniform"] == pytest.approx({UNIFORM: 1.0, "half": 1.0})


@pytest.mark.parametrize("signal", [0.0, 3.0])
def test_what_hangs_on_a_signal_is_told_only_where_there_is_one(signal: float) -> None:
    both = [gradients(30, signal=signal, noise=1.0), 1.1 * gradients(30, signal=signal, noise=1.0)]
    schemes = [UNIFORM, PRIMARY]
    own, with_uniform = np.stack([x @ x.T for x in both]), np.stack([x @ both[0].T for x in both])
    found = {
        "settings": {"region_share": {"NAME": 1.0}, "region_entropy": {"NAME": 0.1}},
        "plain": {
            "schemes": table(own, with_uniform, schemes),
            "without_largest_group": without_largest(own, with_uniform, schemes),
            "regions": shares({"NAME": own[0]}, own[0]),
        },
    }
    lines = scheme_table(found, "plain")
    assert lines[3].startswith(f"| {PRIMARY} | 1.21 (1.21–1.21) | {'1.21 (1.21–1.21)' if signal else 'unclear'} |")
    assert lines[-1].endswith("1.21 (variance) and 1.00 (signal to noise)." if signal else "1.21 (variance).")
    ends = "| 100.0% (100.0–100.0) | 100.0% (100.0–100.0) |" if signal else "| 100.0% (100.0–100.0) | unclear |"
    assert region_table(found, "plain")[2].endswith(ends)


def test_a_region_has_its_share_with_an_interval() -> None:
    one = gradients(200, signal=1.0, noise=3.0)
    two = gradients(200, signal=0.5, noise=1.0, seed=1)
    both = np.concatenate([one, two], axis=1)
    part = np.concatenate([one, 0 * two], axis=1)
    found = shares({"NAME": part @ both.T}, both @ both.T)["NAME"]
    for value, low, high in (found["variance"], found["signal"]):
        assert low < value < high < low + 0.2
    assert found["variance"][0] == pytest.approx(3 / 4, abs=0.02)
    assert found["signal"][0] == pytest.approx(1 / 1.25, abs=0.05)


def test_the_jacobians_norm_is_that_of_the_sampled_token() -> None:
    # Two tokens of the vocabulary; the parameters' Jacobian is 3 times the identity, whatever the probability.
    tokens = [
        {
            "region": "NAME",
            "entropy": -sum(q * np.log(q) for q in (p, 1 - p)),
            "logit_score": 1 - p**2 - (1 - p) ** 2,
            "squared_score": 9 * 2 * (1 - p) ** 2,
            "probability": p,
        }
        for p in (0.999, 0.9, 0.7)
    ]
    found = tokens_table(tokens)["regions"]["NAME"]
    assert found["squared_jacobian"] == pytest.approx(9)
    assert found["sampled_logit_score"] == pytest.approx(np.mean([2 * (1 - p) ** 2 for p in (0.999, 0.9, 0.7)]))


def recorded() -> Recorded:
    """Two groups of two responses; the second group has no signal."""
    regions = [Region.THINK, Region.NAME, Region.OTHER]
    group = {
        "prompt": [1, 2],
        "responses": [[5, 6, 7], [5, 8]],
        "regions": [[int(r) for r in regions], [int(r) for r in regions[:2]]],
        "entropies": [[1.0, 0.2, 0.4], [1.0, 0.2]],
        "rewards": [1.0, 0.0],
    }
    return Recorded([group | {"advantages": [0.7, -0.7]}, group | {"advantages": [0.0, 0.0]}])


def test_groups_without_signal_are_left_out() -> None:
    assert recorded().with_signal() == [0]


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in PARTS and name != "high_entropy"])
def test_every_scheme_has_mean_1_over_each_response(name: str) -> None:
    values = recorded()
    sums = values.weights(name).sum(dim=1)
    assert torch.allclose(sums, values.lengths.float())


def test_the_parts_add_up_to_uniform() -> None:
    values = recorded()
    assert torch.equal(sum(values.weights(part) for part in PARTS), values.weights(UNIFORM))


def test_tokens_are_drawn_from_every_region() -> None:
    values = recorded()
    chosen = values.some_tokens(1, seed=0)
    assert sorted(int(values.regions[place]) for place in chosen) == sorted([Region.THINK, Region.NAME, Region.OTHER])
