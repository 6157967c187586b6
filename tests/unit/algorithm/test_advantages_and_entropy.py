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
    assert group_advantages(rewards, divide_by_std=False)[0].tolist() == [-2, -1, 0, 3]


def test_a_group_without_variance_has_no_advantage() -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2]])
    assert group_advantages(rewards)[0].tolist() == [0, 0, 0]
    assert zero_variance(rewards).tolist() == [True, False]


def test_groups_do_not_see_each_other() -> None:
    rewards = torch.rand(5, 4, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(group_advantages(rewards[order]), group_advantages(rewards)[order])


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
