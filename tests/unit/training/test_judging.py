"""From responses to rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rest_core.algorithm.rest import ResT
from rest_core.config import RlConfig
from rest_core.records import Rollout
from rest_core.response import parse
from rest_core.training.judging import Judge, Judged, Task


def judge(tokenizer: Any, texts: Sequence[Sequence[str]], *, step: int = 1, **settings: Any) -> Judged:
    """Groups of responses, all to a prompt that wants words and no call."""
    config = RlConfig(**{"reward": "toolrl", "group_size": 2, **settings})
    groups = [
        [Rollout([1], tokenizer.encode(text, add_special_tokens=False), [], True, 0) for text in group]
        for group in texts
    ]
    tasks = [Task(f"t/{n}", [1], parse("words")) for n in range(len(texts))]
    algorithm = ResT(config, tokenizer)
    return Judge(algorithm, config, gather=list, main=True)(tasks, groups, step, where="step 1", last_good="none")


def test_rewards_are_in_float64(tiny_tokenizer: Any) -> None:
    judged = judge(tiny_tokenizer, [["words", "<think>\nx\n</think>"]], reward="rest", reward_weight=0.1, step=7)
    totals = [judgement.reward.total for judgement in judged.judgements[0]]
    assert totals[0] != totals[1]
    assert judged.rewards.tolist() == [[0.1 * total for total in totals]]  # no digit is lost
    assert judged.rewards.dtype == torch.float64
    assert judged.rewards.float().double().tolist() != judged.rewards.tolist()
