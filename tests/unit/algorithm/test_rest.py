"""ResT as the trainer sees it."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch

from rest_core.algorithm.regions import Region, token_regions
from rest_core.algorithm.rest import ResT
from rest_core.algorithm.rewards import tool_reward
from rest_core.algorithm.success import succeeds
from rest_core.algorithm.weights import relative_frequency, token_weights
from rest_core.chat import encode_response
from rest_core.config import (
    FrequencyWeights,
    HighEntropyWeights,
    MaskOnlyWeights,
    PaperWeights,
    RlConfig,
    TokenEntropyWeights,
)
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


def test_the_authors_layout_is_a_setting(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer(GOLD.replace("parameters", "arguments"), add_special_tokens=False)["input_ids"]
    for exact, correctness in ((False, 2 + 30 / 150), (True, -2 - 30 / 150)):
        algorithm = ResT(RlConfig(reward="rest", reward_one_call_a_line=exact), tiny_tokenizer)
        assert algorithm.judge(ids, GOLD, step=30).reward.correctness == pytest.approx(correctness)


def observed(**means: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and counts of 1,000 tokens a region."""
    sums, counts = torch.zeros(2, len(Region), dtype=torch.float64).unbind()
    for name, mean in means.items():
        sums[Region[name]], counts[Region[name]] = 1000 * mean, 1000.0
    return sums, counts


def test_the_samplers_entropies_stand_in_for_regions_that_training_has_not_seen(tiny_tokenizer: Any) -> None:
    algorithm = ResT(RlConfig(steps=10), tiny_tokenizer)

    def expected(step: int, **means: float) -> torch.Tensor:
        mean = torch.tensor([means.get(region.name, math.nan) for region in Region])
        common = {"scheme": PaperWeights(), "step": step, "total_steps": 10}
        return token_weights(REGIONS, MASK, region_entropy=mean, **common)

    assert algorithm.wants_entropies(REGIONS, MASK)
    made = algorithm.weights(IDS, REGIONS, MASK, ENTROPIES, 1)  # 99 lies outside the mask
    torch.testing.assert_close(made, expected(1, NAME=0.3, ARGUMENTS=1.5))
    algorithm.observe(*observed(ARGUMENTS=0.4, OTHER=0.1))
    # At step 5 the policy makes its first calls by name: this rollout's entropy of names, the running one of the rest.
    assert algorithm.wants_entropies(REGIONS, MASK)
    made = algorithm.weights(IDS, REGIONS, MASK, ENTROPIES, 5)
    torch.testing.assert_close(made, expected(5, NAME=0.3, ARGUMENTS=0.4))
    algorithm.observe(*observed(NAME=0.05))
    assert not algorithm.wants_entropies(REGIONS, MASK)
    made = algorithm.weights(IDS, REGIONS, MASK, None, 6)
    torch.testing.assert_close(made, expected(6, NAME=0.05, ARGUMENTS=0.4))


def test_schemes_by_token_get_the_tokens_own_figures(tiny_tokenizer: Any) -> None:
    for scheme, figures in (
        (HighEntropyWeights(top_share=0.4), {"token_entropy": ENTROPIES}),
        (TokenEntropyWeights(), {"token_entropy": ENTROPIES}),
        (FrequencyWeights(), {"token_frequency": relative_frequency(IDS, MASK)}),
    ):
        algorithm = ResT(RlConfig(steps=10, weights=scheme), tiny_tokenizer)
        algorithm.observe(*observed(**{region.name: 1.0 for region in Region}))
        assert algorithm.wants_entropies(REGIONS, MASK) == ("token_entropy" in figures)
        weights = algorithm.weights(IDS, REGIONS, MASK, ENTROPIES, 2)
        assert torch.equal(weights, token_weights(REGIONS, MASK, scheme=scheme, step=2, total_steps=10, **figures))
        assert len(weights[MASK].unique()) > 1


def test_the_state_survives_a_checkpoint(tiny_tokenizer: Any) -> None:
    one, other = ResT(RlConfig(), tiny_tokenizer), ResT(RlConfig(), tiny_tokenizer)
    one.observe(*observed(NAME=0.3))
    other.entropy.load_state(json.loads(json.dumps(one.entropy.state())))
    assert torch.equal(other.entropy.mean.nan_to_num(-1), one.entropy.mean.nan_to_num(-1))
    assert math.isnan(float(other.entropy.mean[Region.THINK]))  # not seen yet


@pytest.mark.parametrize("mean", ["trained", "weighted"])
def test_weights_follow_the_configured_mean(tiny_tokenizer: Any, mean: Any) -> None:
    algorithm = ResT(RlConfig(weights=MaskOnlyWeights(), weight_mean=mean), tiny_tokenizer)
    made = algorithm.weights(IDS, REGIONS, MASK, None, 1)
    assert torch.equal(made, token_weights(REGIONS, MASK, scheme="mask_only", step=1, total_steps=105, mean=mean))
    assert float(made[0].sum()) == (3.0 if mean == "trained" else 2.0)


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


@pytest.mark.parametrize("scheme", ["toolrl", "rest", "strict"])
def test_a_thought_that_the_prompt_begins_is_no_stray_tag(tiny_tokenizer: Any, scheme: Any) -> None:
    made = copy.deepcopy(tiny_tokenizer)
    made.chat_template = made.chat_template.replace("assistant\n", "assistant\n<think>\n")
    wanted = parse(f"<think> go </think>\n{GOLD}")
    ids = encode_response(made, wanted.text)
    judged = ResT(RlConfig(reward=scheme), made).judge(ids, wanted, step=1)
    assert judged.reward == tool_reward(wanted, wanted, scheme=scheme, step=1)  # the best there is
    assert judged.response.text == f"<think>\ngo </think>\n{GOLD}" and succeeds(judged.response, wanted)
    assert judged.regions[:4].tolist() == [Region.THINK] * 3 + [Region.FORMAT]
