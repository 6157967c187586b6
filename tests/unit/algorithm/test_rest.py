"""ResT as the trainer sees it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from rest_core.algorithm.regions import Region, token_regions
from rest_core.algorithm.rest import ResT
from rest_core.algorithm.rewards import tool_reward
from rest_core.algorithm.weights import relative_frequency, token_weights
from rest_core.config import FrequencyWeights, HighEntropyWeights, PaperWeights, RlConfig
from rest_core.response import parse

GOLD = '<tool_call>\n{"name": "add", "parameters": {"a": 1}}\n</tool_call>'
GIVEN = '<tool_call>\n{"name": "add", "parameters": {"a": 2}}\n</tool_call>'
NAME, ARGUMENTS, OTHER = Region.NAME, Region.ARGUMENTS, Region.OTHER
REGIONS = torch.tensor([[NAME, ARGUMENTS, OTHER], [ARGUMENTS, NAME, OTHER]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
ENTROPIES = torch.tensor([[0.2, 1.0, 0.1], [2.0, 0.4, 99.0]])
IDS = torch.tensor([[5, 6, 7], [5, 5, 0]])


@pytest.mark.parametrize("scheme", ["toolrl", "rest", "strict"])
def test_reward_and_regions_are_those_of_the_sampled_ids(tiny_tokenizer: Any, scheme: Any) -> None:
    ids = [*tiny_tokenizer(GIVEN, add_special_tokens=False)["input_ids"], tiny_tokenizer.eos_token_id]
    algorithm = ResT(RlConfig(reward=scheme), tiny_tokenizer)
    judged = algorithm.judge(ids, parse(GOLD), step=30)
    assert judged.response == parse(GIVEN)
    assert judged.reward == tool_reward(GIVEN, GOLD, scheme=scheme, step=30)
    assert torch.equal(judged.regions, token_regions(ids, tiny_tokenizer))
    assert algorithm.judge(ids, GOLD, step=30).reward == judged.reward


def test_the_samplers_entropies_stand_in_for_the_first_step_alone(tiny_tokenizer: Any) -> None:
    algorithm = ResT(RlConfig(steps=10, entropy_momentum=0.5), tiny_tokenizer)
    first = algorithm.weights(IDS, REGIONS, MASK, ENTROPIES, 1)
    mean = torch.full((len(Region),), math.nan)
    mean[[NAME, ARGUMENTS, OTHER]] = torch.tensor([0.3, 1.5, 0.1])  # 99 lies outside the mask
    torch.testing.assert_close(
        first, token_weights(REGIONS, MASK, scheme=PaperWeights(), step=1, total_steps=10, region_entropy=mean)
    )
    again = algorithm.weights(IDS, REGIONS, MASK, 50 * ENTROPIES, 1)
    assert torch.equal(again, first)  # from here on it is what training has observed
    sums, counts = torch.zeros(len(Region)).double(), torch.zeros(len(Region)).double()
    sums[NAME], counts[NAME] = 0.5, 5
    observed = algorithm.observe(sums, counts)
    assert float(observed[NAME]) == pytest.approx(0.1) and math.isnan(float(observed[OTHER]))
    mean[NAME] = 0.2  # 0.5 · 0.3 + 0.5 · 0.1
    torch.testing.assert_close(
        algorithm.weights(IDS, REGIONS, MASK, ENTROPIES, 4),
        token_weights(REGIONS, MASK, scheme=PaperWeights(), step=4, total_steps=10, region_entropy=mean),
    )


def test_schemes_by_token_get_the_tokens_own_figures(tiny_tokenizer: Any) -> None:
    for scheme, figures in (
        (HighEntropyWeights(top_share=0.4), {"token_entropy": ENTROPIES}),
        (FrequencyWeights(), {"token_frequency": relative_frequency(IDS, MASK)}),
    ):
        weights = ResT(RlConfig(steps=10, weights=scheme), tiny_tokenizer).weights(IDS, REGIONS, MASK, ENTROPIES, 2)
        assert torch.equal(weights, token_weights(REGIONS, MASK, scheme=scheme, step=2, total_steps=10, **figures))
        assert len(weights[MASK].unique()) > 1


def test_the_state_survives_a_checkpoint(tiny_tokenizer: Any) -> None:
    one = ResT(RlConfig(), tiny_tokenizer)
    one.weights(IDS, REGIONS, MASK, ENTROPIES, 1)
    other = ResT(RlConfig(), tiny_tokenizer)
    assert other.entropy.empty
    other.load_state(json.loads(json.dumps(one.state())))
    assert torch.equal(other.entropy.mean.nan_to_num(-1), one.entropy.mean.nan_to_num(-1))
    assert math.isnan(float(other.entropy.mean[Region.THINK]))  # not seen yet
    assert not other.entropy.empty


@pytest.mark.parametrize(
    ("std", "deviation"),
    [
        ("group", math.sqrt(2) + 1e-6),
        # r - mean of all processes: -1, 1, 0, 0, -3, 3; squares 20 over 6 - 1.
        ("batch", 2 + 1e-6),
        ("none", 1),
    ],
)
def test_advantages_follow_the_configuration(tiny_tokenizer: Any, std: Any, deviation: float) -> None:
    algorithm = ResT(RlConfig(advantage_std=std), tiny_tokenizer)
    rewards = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    advantages = algorithm.advantages(rewards, torch.cat([rewards, torch.tensor([[4.0, 10.0]])]))
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, 1.0], [0.0, 0.0]]).double() / deviation)
