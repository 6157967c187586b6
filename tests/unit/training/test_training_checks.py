from __future__ import annotations

import pytest

from rest_core.config import RlConfig, load, profiles
from rest_core.errors import UserError
from rest_core.training.checks import check

FITS = {"micro_batch_tokens": 128, "rollout_batch_tokens": 400, "max_response_tokens": 24, "group_size": 4}


def test_a_training_needs_prompts() -> None:
    with pytest.raises(UserError, match="the dataset's split 'rl' is empty"):
        check(RlConfig(), [], held_out=[])


def test_evaluation_needs_held_out_prompts() -> None:
    with pytest.raises(UserError, match=r"rl\.evaluate_every is set.*rl_validation.*data\.validation_fraction"):
        check(RlConfig(evaluate_every=1), [3], held_out=[])
    with pytest.raises(ValueError, match="final=best needs evaluate_every"):
        RlConfig(final="best")


@pytest.mark.parametrize(
    ("name", "needed", "what"),
    [
        ("micro_batch_tokens", 50 + 24, "one response"),
        ("rollout_batch_tokens", 50 + 4 * 24, "one group of 4"),
    ],
)
def test_a_budget_smaller_than_what_it_must_hold_is_refused(name: str, needed: int, what: str) -> None:
    check(RlConfig(**{**FITS, name: needed}), [3, 50, 2], held_out=[])
    problem = rf"rl\.{name} \({needed - 1}\) does not hold {what}: the longest prompt has 50 .*set rl\.{name}={needed}"
    with pytest.raises(UserError, match=problem):
        check(RlConfig(**{**FITS, name: needed - 1}), [3, 50, 2], held_out=[])


def test_rollouts_of_held_out_prompts_are_to_fit_too() -> None:
    check(RlConfig(**FITS), [3, 2], held_out=[304])
    with pytest.raises(UserError, match=r"rl\.rollout_batch_tokens \(400\).*the longest prompt has 305 "):
        check(RlConfig(**FITS), [3, 2], held_out=[305])


@pytest.mark.parametrize("profile", profiles())
def test_the_budgets_of_every_profile_hold_its_longest_samples(profile: str) -> None:
    config = load(profile)
    check(config.rl, [config.data.max_prompt_tokens], held_out=[config.data.max_prompt_tokens])
