"""Weights against hand-worked numbers and a slow oracle, token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_core.algorithm.regions import Region
from rest_core.algorithm.weights import SCHEMES, relative_frequency, token_weights
from rest_core.config import (
    FrequencyWeights,
    HighEntropyWeights,
    NameBoostWeights,
    PaperWeights,
    TokenEntropyWeights,
    WeightMean,
)
from rest_core.errors import UserError

F, N, A, T, R, O = Region.FORMAT, Region.NAME, Region.ARGUMENTS, Region.THINK, Region.RESPONSE, Region.OTHER  # noqa: E741
ALL = torch.tensor([[F, N, A, T, R, O]])
ONES = torch.ones(1, 6, dtype=torch.bool)


def entropies(**values: float) -> torch.Tensor:
    return torch.tensor([values.get(region.name, float("nan")) for region in Region])


def weights(regions: torch.Tensor = ALL, mask: torch.Tensor = ONES, **options: Any) -> list[float]:
    return token_weights(regions, mask, **{"step": 1, "total_steps": 10, **options})[0].tolist()


def test_official_by_hand() -> None:
    # Raw at s = 100: FORMAT 1, NAME 1.2, ARGUMENTS 0.8, THINK 0.8, others 0; sum 3.8 over four tokens of six.
    authors = {"scheme": "official", "mean": "weighted"}
    assert weights(**authors, step=100) == pytest.approx([4 / 3.8, 4.8 / 3.8, 3.2 / 3.8, 3.2 / 3.8, 0, 0])
    assert weights(scheme="official", step=100) == pytest.approx([6 / 3.8, 7.2 / 3.8, 4.8 / 3.8, 4.8 / 3.8, 0, 0])
    # At s = 400 ARGUMENTS stands at 1.2 and THINK at 1: sum 4.4.
    assert weights(**authors, step=400) == pytest.approx([4 / 4.4, 4.8 / 4.4, 4.8 / 4.4, 4 / 4.4, 0, 0])


def test_paper_by_hand() -> None:
    settings_ = PaperWeights(w_min=0.8, w_max=5, alpha_format=2, alpha_arguments=0.5, alpha_think=1, floor=0.4)
    entropy = entropies(FORMAT=0.01, NAME=0.3, ARGUMENTS=0.5, THINK=1.5, RESPONSE=1.0, OTHER=0.2)

    def base(h: float) -> float:
        return 1 / (1 - math.exp(-h))

    # ν = 5 / 10: FORMAT 5 (clipped from 100) - 1, NAME base, ARGUMENTS + 0.25, THINK + 0.5; 0.4 of their mean twice.
    four = [4.0, base(0.3), base(0.5) + 0.25, base(1.5) + 0.5]
    raw = [*four, *[0.4 * sum(four) / 4] * 2]
    expected = [value * 6 / sum(raw) for value in raw]
    assert weights(scheme=settings_, step=5, region_entropy=entropy) == pytest.approx(expected, rel=1e-5)


def test_the_papers_second_rule_by_hand() -> None:
    settings_ = PaperWeights(rule="inverse", w_min=0.25, w_max=5, curriculum=False)
    entropy = entropies(FORMAT=0.0, NAME=0.5, ARGUMENTS=1.0, THINK=8.0)
    raw = [5.0, 2.0, 1.0, 0.25, 8.25 / 4, 8.25 / 4]
    expected = [value * 4 / 8.25 for value in raw]  # the mean of the four is the mean of all
    assert weights(scheme=settings_, region_entropy=entropy) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("step", [0, 5, 10])
def test_the_name_stays_high_however_unsure_the_policy_is_of_it(step: int) -> None:
    entropy = entropies(FORMAT=0.01, NAME=1.0, ARGUMENTS=0.3, THINK=0.8)  # 1 / (1 - e^-1) = 1.58
    row = weights(scheme="paper", step=step, region_entropy=entropy)
    assert row[1] >= row[2] > row[3]
    # The entropies alone do not say so.
    assert weights(scheme=PaperWeights(curriculum=False), step=step, region_entropy=entropy)[1] < row[1]


METHOD = {"FORMAT": 0.01, "NAME": 0.1, "ARGUMENTS": 0.3, "THINK": 0.8}  # of docs/method.md


@settings(max_examples=200)
@given(
    counts=st.fixed_dictionaries({region: st.integers(0, 60) for region in Region}),
    step=st.integers(0, 10),
    curriculum=st.booleans(),
    entropy=st.fixed_dictionaries({name: st.floats(0.001, 3) for name in METHOD}) | st.just(METHOD),
)
def test_what_went_wrong_and_the_end_weigh_what_they_weigh_in_grpo(
    counts: dict[Region, int], step: int, curriculum: bool, entropy: dict[str, float]
) -> None:
    """Error tokens have their token share of a row's weight, the end token the mean, whatever else the row has."""
    codes = [code for region, count in counts.items() for code in [int(region)] * count] + [int(O)]
    row = weights(
        torch.tensor([codes]),
        torch.ones(1, len(codes), dtype=torch.bool),
        scheme=PaperWeights(curriculum=curriculum),
        step=step,
        region_entropy=entropies(**entropy),
    )
    other = [weight for weight, code in zip(row, codes, strict=True) if code in (O, R)]
    assert other == pytest.approx([1.0] * len(other), rel=1e-4)
    assert sum(row) == pytest.approx(len(row), rel=1e-4)


def test_papers_curriculum_moves_weight_from_format_to_think() -> None:
    entropy = entropies(FORMAT=0.01, NAME=0.05, ARGUMENTS=0.6, THINK=1.0, RESPONSE=1.0, OTHER=0.3)
    shares = [weights(scheme="paper", step=s, region_entropy=entropy) for s in (0, 5, 10)]
    assert shares[0][0] > shares[1][0] > shares[2][0]  # FORMAT falls
    assert shares[0][3] < shares[1][3] < shares[2][3]  # THINK rises
    assert min(row[1] for row in shares) > 1  # NAME stays high
    still = PaperWeights(curriculum=False)
    assert weights(scheme=still, step=0, region_entropy=entropy) == weights(
        scheme=still, step=10, region_entropy=entropy
    )


def test_papers_bounds_hold_for_extreme_entropies() -> None:
    for h in (0.0, 1e-12, 50.0):
        row = weights(scheme="paper", step=0, region_entropy=torch.full((6,), h))
        assert all(math.isfinite(value) and value > 0 for value in row)
    unseen = weights(scheme="paper", region_entropy=torch.full((6,), float("nan")))
    assert all(math.isfinite(value) and value > 0 for value in unseen)


def test_controls_by_hand() -> None:
    assert weights(scheme="uniform") == [1] * 6
    assert weights(scheme="mask_only", mean="weighted") == [1, 1, 1, 1, 0, 0]
    assert weights(scheme="mask_only") == [1.5, 1.5, 1.5, 1.5, 0, 0]
    assert weights(scheme="name_boost") == pytest.approx([6 / 7, 12 / 7, 6 / 7, 6 / 7, 6 / 7, 6 / 7])
    assert weights(scheme=NameBoostWeights(boost=1.0)) == [1] * 6


def test_high_entropy_keeps_the_top_share_of_the_rollout() -> None:
    entropy = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3], [0.0, 0.0, 0.0, 0.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()  # the 9.0 is padding
    common = {"scheme": HighEntropyWeights(top_share=0.2), "step": 1, "total_steps": 1, "token_entropy": entropy}
    made = token_weights(torch.zeros(2, 5, dtype=torch.int64), mask, mean="weighted", **common)
    assert made.tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]  # 0.2 of 9 tokens: two
    # Chosen among the whole rollout's tokens, so it is these that have mean 1.
    made = token_weights(torch.zeros(2, 5, dtype=torch.int64), mask, **common)
    assert made.tolist() == [[0, 4.5, 0, 4.5, 0], [0, 0, 0, 0, 0]]


def test_high_entropy_keeps_no_more_than_its_share_of_equals() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    made = token_weights(
        torch.zeros(3, 5, dtype=torch.int64),
        mask,
        scheme="high_entropy",
        step=1,
        total_steps=1,
        token_entropy=torch.full((3, 5), 0.25),
        mean="weighted",
    )
    assert made.tolist() == [[0, 1, 1, 0, 0], [0] * 5, [0] * 5]  # 0.2 of ten tokens: two


def test_token_entropy_by_hand() -> None:
    entropy = torch.tensor([[0.05, 0.5, 1.0, 3.0, 0.5, 0.0]])
    raw = [16.0, *(1 / (1 - math.exp(-h)) for h in (0.5, 1.0, 3.0, 0.5)), 16.0]
    made = weights(scheme="token_entropy", token_entropy=entropy)
    assert made == pytest.approx([value * 6 / sum(raw) for value in raw], rel=1e-5)
    inverse = TokenEntropyWeights(rule="inverse", w_min=0.5, w_max=4)
    raw = [4.0, 2.0, 1.0, 0.5, 2.0, 4.0]
    made = weights(scheme=inverse, token_entropy=entropy)
    assert made == pytest.approx([value * 6 / sum(raw) for value in raw], rel=1e-5)


def test_frequency_favours_common_tokens() -> None:
    ids = torch.tensor([[7, 7, 7, 8]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    frequency = relative_frequency(ids, mask)
    assert frequency.tolist() == [[0.75, 0.75, 0.75, 0.25]]
    common, rare = -math.log(0.75), -math.log(0.25)
    mean = (3 * common + rare) / 4
    raw = [min(4.0, mean / common)] * 3 + [max(0.5, mean / rare)]
    made = token_weights(ids, mask, scheme=FrequencyWeights(), step=1, total_steps=1, token_frequency=frequency)
    assert made[0].tolist() == pytest.approx([value * 4 / sum(raw) for value in raw], rel=1e-5)


def oracle(
    scheme: str,
    regions: list[list[int]],
    mask: list[list[bool]],
    step: int,
    total: int,
    entropy: list[float],
    tokens: list[list[float]],
    shares: list[list[float]],
    mean: WeightMean,
) -> list[list[float]]:
    """Every scheme written out for one token at a time with the published defaults."""
    paper = PaperWeights()
    progress = min(step / total, 1)
    inside = [(r, t) for r, row in enumerate(mask) for t, on in enumerate(row) if on]
    ranked = sorted(inside, key=lambda place: -tokens[place[0]][place[1]])  # stable: equals in the order of places
    kept = set(ranked[: max(1, round(0.2 * len(ranked)))])

    def of_entropy(h: float) -> float:
        return paper.w_max if h == 0 else min(paper.w_max, max(paper.w_min, 1 / (1 - math.exp(-h))))

    def of_region(region: Region) -> float:
        """The paper's weight of one of its four regions."""
        value = of_entropy(entropy[region])
        if region == F:
            return max(paper.w_min, value - paper.alpha_format * progress)
        if region == N:
            return max(value, of_region(A), of_region(T))
        return min(paper.w_max, value + (paper.alpha_arguments if region == A else paper.alpha_think) * progress)

    mean_surprisal = sum(-math.log(shares[r][t]) for r, t in inside) / len(inside) if inside else 0.0

    def raw(r: int, t: int) -> float:
        region = Region(regions[r][t])
        if scheme == "paper":
            if region not in (R, O):
                return of_region(region)
            four = [Region(regions[r][n]) for n, on in enumerate(mask[r]) if on and regions[r][n] not in (R, O)]
            return paper.floor * (sum(map(of_region, four)) / len(four) if four else 1.0)
        if scheme == "official":
            return {F: 1.0, N: 1.2, A: min(1.2, 0.6 + 0.002 * step), T: min(1.0, 0.6 + 0.002 * step)}.get(region, 0.0)
        if scheme == "mask_only":
            return float(region not in (R, O))
        if scheme == "name_boost":
            return 2.0 if region == N else 1.0
        if scheme == "high_entropy":
            return float((r, t) in kept)
        if scheme == "token_entropy":
            return of_entropy(tokens[r][t])
        if scheme == "frequency":
            return min(4.0, max(0.5, mean_surprisal / max(1e-6, -math.log(shares[r][t]))))
        return 1.0

    raws = [[raw(r, t) if on else 0.0 for t, on in enumerate(row)] for r, row in enumerate(mask)]
    if scheme == "high_entropy" and mean == "trained":
        return [[value * len(inside) / len(kept) if kept else 0.0 for value in row] for row in raws]
    out = []
    for values, row in zip(raws, mask, strict=True):
        count = sum(row) if mean == "trained" else sum(value > 0 for value in values)
        out.append([value * count / sum(values) if sum(values) else 0.0 for value in values])
    return out


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    scheme=st.sampled_from(SCHEMES),
    step=st.integers(0, 500),
    mean=st.sampled_from(["trained", "weighted"]),
)
def test_agrees_with_the_oracle(data: Any, scheme: str, step: int, mean: WeightMean) -> None:
    rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    grid = lambda items: st.lists(st.lists(items, min_size=width, max_size=width), min_size=rows, max_size=rows)  # noqa: E731
    regions = data.draw(grid(st.integers(0, 5)))
    mask = data.draw(grid(st.booleans()))
    tokens = data.draw(grid(st.integers(0, 100).map(lambda n: n / 16)))
    ids = data.draw(grid(st.integers(0, 3)))
    entropy = data.draw(st.lists(st.integers(0, 48).map(lambda n: n / 16), min_size=6, max_size=6))
    inside = [x for row, on in zip(ids, mask, strict=True) for x, m in zip(row, on, strict=True) if m]
    shares = [
        [inside.count(x) / len(inside) if m else 1.0 for x, m in zip(row, on, strict=True)]
        for row, on in zip(ids, mask, strict=True)
    ]
    mask_tensor = torch.tensor(mask)
    made = token_weights(
        torch.tensor(regions),
        mask_tensor,
        scheme=scheme,
        step=step,
        total_steps=300,
        region_entropy=torch.tensor(entropy),
        token_entropy=torch.tensor(tokens),
        token_frequency=relative_frequency(torch.tensor(ids), mask_tensor),
        mean=mean,
    )
    expected = torch.tensor(oracle(scheme, regions, mask, step, 300, entropy, tokens, shares, mean))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean", ["trained", "weighted"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_do_not_depend_on_padding_and_have_mean_one(scheme: str, mean: WeightMean) -> None:
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(0, 6, (3, 7), generator=generator)
    tokens = torch.rand(3, 7, generator=generator)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6]).bool()
    common = {
        "scheme": scheme,
        "mean": mean,
        "step": 3,
        "total_steps": 9,
        "region_entropy": torch.tensor([0.1, 0.2, 0.05, 0.9, 0.8, 0.4]),
    }
    made = token_weights(regions, mask, token_entropy=tokens, token_frequency=tokens, **common)

    def wider(x: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.cat([x, torch.full((3, 5), fill, dtype=x.dtype)], dim=1)

    padded = token_weights(
        wider(regions, 2),
        wider(mask, 0),
        token_entropy=wider(tokens, 99.0),
        token_frequency=wider(tokens, 0.5),
        **common,
    )
    torch.testing.assert_close(padded[:, :7], made)
    assert not padded[:, 7:].any()
    if scheme == "high_entropy" and mean == "trained":
        assert float(made[mask].mean()) == pytest.approx(1.0, rel=1e-5)
        return
    for row, inside in zip(made, mask, strict=True):
        if (row > 0).any():
            over = inside if mean == "trained" else row > 0
            assert float(row[over].mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("mean", ["trained", "weighted"])
@pytest.mark.parametrize("scheme", ["official", "mask_only"])
def test_a_response_without_weighted_tokens_weighs_nothing(scheme: str, mean: WeightMean) -> None:
    """Malformed from beginning to end, and long: 0, not 0 · T / 0."""
    regions = torch.tensor([[O] * 50, [F] * 25 + [O] * 25])
    made = token_weights(regions, torch.ones(2, 50).bool(), scheme=scheme, step=1, total_steps=9, mean=mean)
    assert made[0].tolist() == [0.0] * 50
    assert made[1].tolist() == pytest.approx([2.0 if mean == "trained" else 1.0] * 25 + [0.0] * 25)


def test_malformed_output_still_gets_gradient_under_paper() -> None:
    """Defect of the authors' code: malformed output has weight 0, hence no negative gradient."""
    other = torch.full((1, 5), int(O))
    row = weights(other, torch.ones(1, 5).bool(), scheme="paper", region_entropy=torch.rand(6))
    assert row == pytest.approx([1.0] * 5)


def test_unknown_schemes_and_missing_inputs_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'official'"):
        weights(scheme="offical")
    with pytest.raises(ValueError, match="region_entropy"):
        weights(scheme="paper")
    with pytest.raises(ValueError, match="token_entropy"):
        weights(scheme="high_entropy")
