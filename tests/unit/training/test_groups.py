"""From responses to rewards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rest_core.algorithm.rest import ResT
from rest_core.config import RlConfig
from rest_core.errors import UserError
from rest_core.records import Rollout, Sample
from rest_core.response import parse
from rest_core.training.groups import Groups, Judge
from rest_core.training.tasks import Task

SAMPLE = Sample("t/0", "t", (), (), "words")


def judge(
    tokenizer: Any, texts: Sequence[Sequence[str]], *, step: int = 1, spare: bool = False, **settings: Any
) -> Groups:
    """Groups of responses, all to a prompt that wants words and no call."""
    config = RlConfig(**{"reward": "toolrl", "group_size": 2, **settings})
    groups = [
        [Rollout([1], tokenizer.encode(text, add_special_tokens=False), [], True, 0) for text in group]
        for group in texts
    ]
    tasks = [Task(f"t/{n}", [1], parse("words"), SAMPLE) for n in range(len(texts))]
    made = Judge(ResT(config, tokenizer), config, gather=list, main=True)
    return made(tasks, groups, step, where="step 1", spare=spare)


def never(**kwargs: Any) -> None:
    """Cannot score anything."""


def test_groups_that_the_step_can_do_without_may_all_fail(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "failing", SimpleNamespace(never=never))
    functions = {"reward_functions": [{"function": "failing:never"}]}
    with pytest.raises(UserError, match="no group could be scored: never: it returned None"):
        judge(tiny_tokenizer, [["words", "x"]], **functions)
    judged = judge(tiny_tokenizer, [["words", "x"]], spare=True, **functions)
    assert judged.dropped.tolist() == [True] and judged.rewards.tolist() == [[0.0, 0.0]]
    assert judged.with_signal() == [False]


def test_a_group_may_take_anothers_place(tiny_tokenizer: Any) -> None:
    texts = [["words", "<think>\nmore\n</think>"], ["words", "words"]]
    settings = {"overlong": {"buffer": 2048, "penalty": 4.0}}
    one, other = (judge(tiny_tokenizer, part, **settings) for part in (texts[1:], texts))
    one.replace(0, other, 0)
    assert one.judgements == other.judgements[:1] and one.functions == other.functions[:1]
    assert one.tasks == other.tasks[:1] and one.rollouts == other.rollouts[:1]
    assert torch.equal(one.rewards, other.rewards[:1]) and one.overlong is not None and other.overlong is not None
    assert torch.equal(one.overlong, other.overlong[:1]) and len(one.overlong.unique()) == 2


def test_rewards_are_in_float64(tiny_tokenizer: Any) -> None:
    judged = judge(tiny_tokenizer, [["words", "<think>\nx\n</think>"]], reward="rest", reward_weight=0.1, step=7)
    totals = [judgement.reward.total for judgement in judged.judgements[0]]
    assert totals[0] != totals[1]
    assert judged.rewards.tolist() == [[0.1 * total for total in totals]]  # no digit is lost
    assert judged.rewards.dtype == torch.float64
    assert judged.rewards.float().double().tolist() != judged.rewards.tolist()
