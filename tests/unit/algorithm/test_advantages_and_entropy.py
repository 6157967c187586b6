"""Group advantages and running region entropies by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch

from rest_core.algorithm.advantages import group_advantages, zero_variance
from rest_core.algorithm.entropy import RunningRegionEntropy, region_sums
from rest_core.algorithm.regions import Region


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0]], dtype=torch.float64)
    std = math.sqrt((4 + 1 + 0 + 9) / 3)  # unbiased: over G - 1
    expected = [value / (std + 1e-6) for value in (-2, -1, 0, 3)]
    assert group_advantages(rewards)[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert group_advantages(rewards, std="none")[0].tolist() == [-2, -1, 0, 3]


def test_a_group_without_variance_has_no_advantage() -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2]])
    assert group_advantages(rewards)[0].tolist() == [0, 0, 0]
    assert zero_variance(rewards).tolist() == [True, False]


@pytest.mark.parametrize(
    ("rewards", "equal"),
    [
        ([4.0, 4.0 - 2.4e-7], True),  # one rounding of float32 apart
        ([-3.0, -3.0 + 2e-6], True),
        ([4.0, 4.0 - 1e-5], False),
        ([0.0, 1e-5], False),  # relative to the rewards' size
        ([2e-9, 1e-9], False),
        ([0.1 + 0.2 - 0.3, 0.0], True),  # 5.6e-17
        ([0.0, 0.0], True),
        ([1e9, 1e9 + 1], True),
    ],
)
def test_rewards_that_differ_by_rounding_are_equal(rewards: list[float], equal: bool) -> None:
    group = torch.tensor([rewards], dtype=torch.float64)
    assert zero_variance(group).tolist() == [equal]
    for std in ("group", "batch", "none"):
        assert bool(group_advantages(group, std=std).any()) != equal  # type: ignore[arg-type]


def test_advantages_are_in_float64_whatever_the_rewards_are_in() -> None:
    # Nine rewards of 4 and one of 3.9: a mean of 3.99, which float32 misses by 1e-8.
    rewards = torch.tensor([[4.0] * 9 + [3.9]], dtype=torch.float64)
    advantages = group_advantages(rewards, std="none")
    assert advantages[0].tolist() == pytest.approx([0.01] * 9 + [-0.09], rel=1e-12)
    assert group_advantages(rewards.float()).dtype == torch.float64


def test_groups_do_not_see_each_other() -> None:
    rewards = torch.rand(5, 4, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(group_advantages(rewards[order]), group_advantages(rewards)[order])


def test_the_deviation_of_the_batch_is_that_of_all_processes() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0], [0.0, 0.0, 6.0]])
    # r - mean: -1 0 1, 0 0 0, -2 -2 4; squares add up to 26, over 9 - 1.
    std = math.sqrt(26 / 8) + 1e-6
    wanted = [[-1 / std, 0, 1 / std], [0, 0, 0], [-2 / std, -2 / std, 4 / std]]
    whole = group_advantages(rewards, std="batch")
    assert whole.tolist() == [pytest.approx(row) for row in wanted]
    for part in (slice(0, 1), slice(1, 3), slice(3, 3)):  # of a process; the last one has none
        assert torch.equal(group_advantages(rewards[part], std="batch", everyone=rewards), whole[part])


def test_region_sums_count_unweighted_tokens_inside_the_mask() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    regions = torch.tensor([[0, 3, 3], [3, 0, 5]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    sums, counts = region_sums(values, regions, mask)
    assert sums.tolist() == [1, 0, 0, 14, 0, 0]
    assert counts.tolist() == [1, 0, 0, 3, 0, 0]


def test_the_running_mean_by_hand() -> None:
    running = RunningRegionEntropy(momentum=0.9)
    assert running.mean.isnan().all()
    one = torch.zeros(len(Region), dtype=torch.float64)
    one[Region.NAME] = 1.0
    step = running.update(0.5 * one, one)
    assert float(step[Region.NAME]) == 0.5 and math.isnan(float(step[Region.THINK]))
    assert float(running.mean[Region.NAME]) == 0.5
    running.update(3.0 * one, 2 * one)
    assert float(running.mean[Region.NAME]) == pytest.approx((0.9 * 0.5 + 3) / (0.9 + 2))
    running.update(0 * one, 0 * one)  # a step without tokens says nothing
    assert float(running.mean[Region.NAME]) == pytest.approx((0.9 * 0.5 + 3) / (0.9 + 2))


def test_one_odd_token_does_not_outweigh_a_steps_many() -> None:
    running = RunningRegionEntropy(momentum=0.9)
    one = torch.ones(len(Region), dtype=torch.float64)
    running.update(0.02 * 10_000 * one, 10_000 * one)
    running.update(3.0 * one, one)
    assert float(running.mean[0]) == pytest.approx((0.9 * 200 + 3) / 9_001)  # 0.0203, not 0.9 · 0.02 + 0.1 · 3


def test_a_rollouts_own_entropies_stand_in_for_what_was_not_seen() -> None:
    running = RunningRegionEntropy(momentum=0.9)
    sums, counts = torch.zeros(2, len(Region), dtype=torch.float64).unbind()
    sums[Region.THINK], counts[Region.THINK] = 8.0, 10.0
    running.update(sums, counts)
    regions = torch.tensor([[Region.NAME, Region.NAME, Region.THINK], [Region.THINK, Region.FORMAT, Region.OTHER]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    values = torch.tensor([[0.01, 0.03, 5.0], [5.0, 5.0, 5.0]])
    assert running.lacks(regions, mask) and not running.lacks(regions[:, 2:], mask[:, 2:])
    filled = running.filled(values, regions, mask)
    assert float(filled[Region.NAME]) == pytest.approx(0.02)
    assert float(filled[Region.THINK]) == pytest.approx(0.8)  # has been seen: nothing of this rollout's
    assert math.isnan(float(filled[Region.FORMAT]))  # outside the mask
    assert math.isnan(float(running.mean[Region.NAME]))  # it stands in, it is not taken in


def test_the_state_is_what_decays() -> None:
    one, other = RunningRegionEntropy(0.5), RunningRegionEntropy(0.5)
    some = torch.arange(1.0, 1 + len(Region)).double()
    one.update(some, 10 * some)
    one.update(2 * some, some)
    other.load_state(json.loads(json.dumps(one.state())))
    for running in (one, other):
        running.update(some, some)
    assert torch.equal(one.mean, other.mean)
