"""Drawing a token by inverting the cumulative distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rest_core.rollout.sampling import sample

HALF_OPEN_END = 1 - 2**-24  # the largest float32 below 1


def test_the_first_token_whose_cumulative_probability_is_above_the_draw() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(7, 1)
    draws = torch.tensor([0.0, 0.09, 0.11, 0.29, 0.31, 0.61, HALF_OPEN_END])
    token, logp, entropy = sample(logits, 1.0, draws)
    assert token.tolist() == [0, 0, 1, 1, 2, 3, 3]
    torch.testing.assert_close(logp, torch.tensor([0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 0.4]).log())
    torch.testing.assert_close(entropy, torch.full((7,), 1.2798542))  # -Σ p ln p


def test_temperature_changes_what_is_drawn_and_not_what_is_reported() -> None:
    logits = torch.tensor([[0.2, 0.8]]).log().repeat(2, 1)
    token, logp, entropy = sample(logits, 0.5, torch.tensor([0.058, 0.060]))  # 0.04 / (0.04 + 0.64) = 0.0588
    assert token.tolist() == [0, 1]
    torch.testing.assert_close(logp, torch.tensor([0.2, 0.8]).log())
    torch.testing.assert_close(entropy, torch.full((2,), 0.5004024))


def test_without_draws_the_most_likely_token_is_taken() -> None:
    token, logp, _ = sample(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), 0.0, None)
    assert token.tolist() == [1, 0]
    torch.testing.assert_close(logp, torch.tensor([2.0 - 2.4076059, 3.0 - 3.4076059]))


def test_frequencies_are_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.3, 0.0, 0.25, 0.2, 0.0, 0.15, 0.07, 0.03])
    count = 20_000
    draws = torch.rand(count, generator=generator)
    token, _, _ = sample(probabilities.log().repeat(count, 1), 1.0, draws)
    seen = torch.bincount(token, minlength=8).double()
    wanted = count * probabilities.double()
    possible = wanted > 0
    assert not seen[~possible].any()
    chi_square = ((seen - wanted)[possible].square() / wanted[possible]).sum()
    assert chi_square < 23.5  # 5 degrees of freedom; above it 3 times in 10,000


def test_an_impossible_token_is_not_drawn_at_either_end() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(2, 1)
    token, logp, entropy = sample(logits, 1.0, torch.tensor([0.0, HALF_OPEN_END]))
    assert token.tolist() == [1, 3]
    torch.testing.assert_close(logp, torch.full((2,), -math.log(2)))
    torch.testing.assert_close(entropy, torch.full((2,), math.log(2)))


@given(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-200, 200, width=32)), min_size=1, max_size=40).filter(
        lambda values: any(math.isfinite(value) for value in values)
    ),
    st.one_of(st.just(0.0), st.just(HALF_OPEN_END), st.floats(0, HALF_OPEN_END, width=32)),
    st.sampled_from([0.3, 1.0, 2.0]),
)
def test_whatever_is_drawn_has_a_probability(values: list[float], draw: float, temperature: float) -> None:
    token, logp, entropy = sample(torch.tensor([values]), temperature, torch.tensor([draw]))
    assert 0 <= int(token) < len(values)
    assert math.isfinite(float(logp))
    assert -1e-4 <= float(entropy) <= math.log(len(values)) + 1e-4


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logits_that_are_none_are_seen_at_the_log_prob_of_their_row(broken: float, temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, broken, 2.0], [2.0, 1.0, 0.0], [-math.inf] * 3])
    draws = torch.tensor([0.1, 0.5, 0.9, 0.5]) if temperature else None
    token, logp, _ = sample(logits, temperature, draws)
    assert logp.isnan().tolist() == [False, True, False, True]
    assert bool(((token >= 0) & (token < 3)).all())  # what follows may index with it


@pytest.mark.parametrize("size", [50_000, 150_000])
def test_the_last_token_of_a_large_vocabulary_can_be_drawn(size: int) -> None:
    token, _, _ = sample(torch.zeros(2, size), 1.0, torch.tensor([0.0, HALF_OPEN_END]))
    assert int(token[0]) == 0
    assert int(token[1]) >= size - 10


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_workspace_changes_nothing_whatever_it_holds(temperature: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    draws = torch.tensor([0.1, 0.5, 0.9]) if temperature else None
    kept = logits.clone()
    for one, other in zip(
        sample(logits, temperature, draws),
        sample(logits, temperature, draws, torch.full((2, 3, 50), math.nan)),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert torch.equal(logits, kept)
