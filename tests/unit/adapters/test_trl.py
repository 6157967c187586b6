"""The adapter on TRL itself: real rollouts and updates of a random model of two layers, in float32 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

pytest.importorskip("trl", reason="the optional extra trl is not installed")

from padded_loss import padded_loss
from trl import GRPOConfig, GRPOTrainer

from rest_core.adapters.trl import LOSS_TYPES, STATE_FILE, RestGRPOTrainer, rest_reward
from rest_core.algorithm.loss import Denominators
from rest_core.algorithm.regions import Region, token_regions
from rest_core.algorithm.weights import SCHEMES, token_weights
from rest_core.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

REFERENCE = '<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'
ROWS = [{"prompt": [{"role": "user", "content": "p" * n}], "reference": REFERENCE} for n in (1, 5, 3, 2)]


def tag_reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Something that random responses differ in: the mean of their ids, and their length."""
    return [sum(ids) / len(ids) / 64 + len(ids) / 8 for ids in completion_ids]


@pytest.fixture
def make(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """make(kind, token_weights=…, **config): a trainer of that class on a copy of the tiny model."""

    def trainer(kind: type = RestGRPOTrainer, *, own: dict[str, Any] | None = None, **config: Any) -> Any:
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 2,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "seed": 7,
        }
        model = copy.deepcopy(tiny_model)
        model.generation_config.eos_token_id = tiny_tokenizer.eos_token_id
        return kind(
            model=model,
            reward_funcs=[tag_reward],
            args=GRPOConfig(**{**defaults, **config}),
            train_dataset=Dataset.from_list(ROWS),
            **{"processing_class": copy.deepcopy(tiny_tokenizer), **(own or {})},
        )

    return trainer


Make = Callable[..., Any]


def trained(trainer: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    trainer.train()
    timed = ("runtime", "per_second", "step_time", "rest/", "flos")
    logs = [
        {name: value for name, value in entry.items() if not any(word in name for word in timed)}
        for entry in trainer.state.log_history
    ]
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}, logs


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"loss_type": "grpo", "entropy_coef": 0.01, "num_iterations": 2, "max_steps": 4},
        {"loss_type": "dr_grpo", "steps_per_generation": 2, "gradient_accumulation_steps": 2, "scale_rewards": "none"},
        {"loss_type": "bnpo", "mask_truncated_completions": True, "temperature": 0.8},
        {"loss_type": "cispo", "num_iterations": 2, "epsilon_high": 2.0},
        {"loss_type": "sapo", "num_iterations": 2},
        {"loss_type": "vespo", "num_iterations": 2},
    ],
    ids=lambda config: config.get("loss_type", "default"),
)
def test_all_ones_are_trl_to_the_bit(make: Make, config: dict[str, Any]) -> None:
    weights, logs = trained(make(GRPOTrainer, **config))
    ours, our_logs = trained(make(own={"token_weights": "uniform"}, **config))
    assert any(entry.get("grad_norm", 0) > 0 for entry in logs)
    # Means of (B, T) and of (B,) values are added up in another order.
    numbers, our_numbers = (
        [{k: v for k, v in one.items() if v is not None} for one in log] for log in (logs, our_logs)
    )
    assert our_numbers == [pytest.approx(entry, rel=1e-6) for entry in numbers]
    for name, weight in weights.items():
        assert torch.equal(ours[name], weight), name


def test_other_weights_change_what_is_learned(make: Make) -> None:
    uniform, _ = trained(make(own={"token_weights": "uniform"}))
    reshaped, _ = trained(make(own={"token_weights": "frequency"}))
    assert any(not torch.equal(uniform[name], reshaped[name]) for name in uniform)


def rollout(trainer: Any) -> dict[str, Any]:
    """One rollout of the trainer's own, as its loss sees it."""
    trainer.model.train()
    trainer.state.max_steps = trainer.args.max_steps
    trainer.current_gradient_accumulation_steps = 1
    return dict(trainer._generate_and_score_completions([row for row in ROWS[:2] for _ in range(4)]))


def with_drawn_regions(trainer: Any) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """A rollout, its advantages (B,) and its weights (B, T) made anew from drawn regions: random text has no tags."""
    batch = rollout(trainer)
    mask = batch["completion_mask"].bool()
    rows = zip(batch["completion_ids"], mask, strict=True)
    groups = torch.tensor(tag_reward([row[inside].tolist() for row, inside in rows])).view(-1, 4)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).reshape(-1)
    batch["regions"] = torch.randint(0, len(Region), mask.shape, generator=torch.Generator().manual_seed(1))
    return batch, advantages, trainer._token_weights(batch)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def token_log_probs(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies (B, T) of the completions, from all logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    every = model(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1].log_softmax(-1)
    return every.gather(2, batch["completion_ids"][..., None])[..., 0], -(every.exp() * every).sum(-1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("loss_type", "ours_is"),
    [
        ("grpo", {"aggregation": "sequence_mean"}),
        ("dapo", {"aggregation": "token_mean"}),
        ("dr_grpo", {"aggregation": "constant_length", "length": 12}),  # max_completion_length
        ("cispo", {"aggregation": "token_mean", "surrogate": "cispo"}),
    ],
)
def test_the_gradient_is_that_of_our_own_loss(make: Make, scheme: str, loss_type: str, ours_is: dict[str, Any]) -> None:
    # Of cispo, epsilon_high is the bound itself.
    options = {"epsilon_high": 1.2} if loss_type == "cispo" else {}
    trainer = make(own={"token_weights": scheme}, loss_type=loss_type, **options)
    batch, advantages, weights = with_drawn_regions(trainer)
    mask = batch["completion_mask"].bool()
    assert weights.shape == mask.shape and not bool(weights[~mask].any()) and bool(weights.any())
    means = weights.sum(dim=1) / mask.sum(dim=1)
    assert float(means.mean() if scheme == "high_entropy" else means.max()) == pytest.approx(1, abs=1e-5)
    batch["advantages"] = advantages[:, None] * weights
    theirs = gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
    logp, _ = token_log_probs(trainer.model, batch)
    total = Denominators(len(mask), float(mask.sum()), float(mask.sum()))  # TRL divides by tokens, not by weights
    loss, _ = padded_loss(logp, logp.detach(), advantages, mask, weights, dual_clip=None, denominators=total, **ours_is)
    ours = gradients(trainer.model, loss)
    assert any(bool(gradient.any()) for gradient in ours.values())
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_weight_is_a_weight_on_the_gradient_of_its_token(make: Make, loss_type: str) -> None:
    """Off policy too, in every loss that is accepted: parts of the tokens add up to the whole, twice is twice."""
    trainer = make(own={"token_weights": "paper"}, loss_type=loss_type)
    batch, advantages, weights = with_drawn_regions(trainer)
    logp, _ = token_log_probs(trainer.model, batch)
    noise = torch.randn(logp.shape, generator=torch.Generator().manual_seed(2)) * 0.3
    batch["old_per_token_logps"] = logp.detach() + noise

    def gradient(used: torch.Tensor) -> torch.Tensor:
        batch["advantages"] = advantages[:, None] * used
        of_all = gradients(trainer.model, trainer.compute_loss(trainer.model, batch))
        return torch.cat([part.reshape(-1) for part in of_all.values()])

    some = torch.rand(weights.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    whole = gradient(weights)
    assert bool(whole.any())
    torch.testing.assert_close(gradient(weights * some) + gradient(weights * ~some), whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient(2 * weights), 2 * whole, rtol=1e-4, atol=1e-6)


def test_weights_are_those_of_the_sampled_ids(make: Make, tiny_tokenizer: Any) -> None:
    trainer = make(own={"token_weights": "paper"})
    batch = rollout(trainer)
    mask = batch["completion_mask"].bool()
    for row, inside, regions in zip(batch["completion_ids"], mask, batch["regions"], strict=True):
        assert torch.equal(regions[inside], token_regions(row[inside], tiny_tokenizer))
    with torch.no_grad():
        _, entropy = token_log_probs(trainer.model, batch)
    assert trainer.region_entropy.mean.isnan().all()  # no training forward yet: the rollout's own entropies stand in
    seen = torch.stack([entropy[mask & (batch["regions"] == region)].mean() for region in Region])
    trainer.state.global_step = 1
    weights = trainer._token_weights(batch)
    expected = token_weights(batch["regions"], mask, scheme="paper", step=2, total_steps=2, region_entropy=seen)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


def test_training_forwards_feed_the_running_entropies(make: Make) -> None:
    trainer = make(own={"token_weights": "paper", "entropy_momentum": 0.5})
    batch = rollout(trainer)
    with torch.no_grad():
        _, entropy = token_log_probs(trainer.model, batch)
    trainer.compute_loss(trainer.model, batch)
    trainer._observe_entropies()
    # Of the rows with an advantage: those that the policy gradient is made of.
    signal = batch["completion_mask"].bool() & (batch["advantages"] != 0).any(dim=1, keepdim=True)
    assert signal.any()
    expected = torch.stack([entropy[signal & (batch["regions"] == region)].mean() for region in Region]).double()
    torch.testing.assert_close(trainer.region_entropy.mean, expected, equal_nan=True, rtol=0, atol=1e-5)
    trainer.model.eval()
    evaluated = trainer._generate_and_score_completions([row for row in ROWS[:1] for _ in range(4)])
    assert evaluated["advantages"].dim() == 1 and "regions" not in evaluated


class Watch(TrainerCallback):
    """The running entropies with which a training begins."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seen = self.trainer.region_entropy.mean.clone()


def test_a_resumed_training_goes_on_with_its_entropies(make: Make, tmp_path: Path) -> None:
    first = make(own={"token_weights": "paper"}, save_strategy="steps", save_steps=2)
    first.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    watch = Watch()
    resumed = watch.trainer = make(own={"token_weights": "paper", "callbacks": [watch]}, max_steps=4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(watch.seen[Region.OTHER], first.region_entropy.mean[Region.OTHER])
    assert resumed.region_entropy.mean[Region.OTHER] != watch.seen[Region.OTHER]
    (checkpoint / STATE_FILE).unlink()  # as TRL alone would have left it
    resumed = watch.trainer = make(own={"token_weights": "paper", "callbacks": [watch]}, max_steps=4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert bool(watch.seen.isnan().all())


def test_our_reward_in_trl(make: Make, tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer(REFERENCE)["input_ids"]
    reward = rest_reward(tiny_tokenizer, "rest")
    given = {"prompts": ["", ""], "completions": [REFERENCE, "x"], "reference": [REFERENCE] * 2}
    state = type("State", (), {"global_step": 74})()
    best, worst = reward(completion_ids=[[*ids, tiny_tokenizer.eos_token_id], [33]], trainer_state=state, **given)
    assert best == pytest.approx(1.5 + 2.5) and worst == pytest.approx(-1 - 2.5)  # the ranges of step 75
    trainer = make()
    trainer.reward_funcs = [reward]
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 2 and all(-4 <= value <= 4 for value in rewards)
    with pytest.raises(UserError, match=r"no column 'wanted'.*it has: answer.*reference=NAME"):
        rest_reward(tiny_tokenizer, reference="wanted")(
            prompts=[""], completions=[""], completion_ids=[[1]], answer=[""]
        )
    with pytest.raises(UserError, match="unknown reward scheme 'toolrll'"):
        rest_reward(tiny_tokenizer, "toolrll")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss_type": "luspo"}, "loss_type is 'luspo'.*no meaning"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level is 'sequence'.*choose 'token'"),
        ({"top_p": 0.9}, "top_p is 0.9.*whole distribution"),
        ({"top_k": 50}, "top_k is 50"),
        ({"min_p": 0.1}, "min_p is 0.1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty is 1.1"),
        ({"generation_kwargs": {"top_p": 0.5}}, "top_p is 0.5"),
    ],
)
def test_what_would_change_the_objective_is_refused(make: Make, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**config)


def test_an_unknown_scheme_and_several_turns_are_refused(make: Make) -> None:
    with pytest.raises(UserError, match="unknown weight scheme 'papper'; did you mean 'paper'"):
        make(own={"token_weights": "papper"})

    def several(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        ids = [[5, 6]] * 8
        return {
            "prompt_ids": [[1]] * 8,
            "completion_ids": ids,
            "logprobs": [[-1.0, -1.0]] * 8,
            "env_mask": [[1, 0]] * 8,
        }

    with pytest.raises(UserError, match="several turns"):
        rollout(make(own={"rollout_func": several}))


THOUGHT = f"<think> go </think>\n{REFERENCE}"


@pytest.fixture
def thinking(tiny_tokenizer: Any) -> Any:
    """A tokenizer whose chat template opens the thought, unless it is told not to."""
    made = copy.deepcopy(tiny_tokenizer)
    end = "{% if quick is not defined %}<think>\n{% endif %}"
    made.chat_template = made.chat_template.replace("assistant\n{% endif %}", f"assistant\n{end}{{% endif %}}")
    return made


def test_our_reward_reads_on_from_what_the_prompt_opens(thinking: Any) -> None:
    reward = rest_reward(thinking, "strict")
    chat, text = [{"role": "user", "content": "u"}], "Write.\n<think>\n"
    said = thinking(THOUGHT.removeprefix("<think>"), add_special_tokens=False)["input_ids"]
    whole = thinking(THOUGHT, add_special_tokens=False)["input_ids"]
    given: dict[str, Any] = {"completions": [""] * 4, "reference": [THOUGHT] * 4}
    rewards = reward(prompts=[chat, text, "Write.\n", chat], completion_ids=[said, said, whole, whole], **given)
    assert rewards[:3] == [4.0, 4.0, 4.0]
    assert rewards[3] < 4.0  # the tag twice
    with pytest.raises(UserError, match="a prompt that is plain text ends in '<tool_call>'"):
        reward(prompts=["Go: <tool_call>"], completion_ids=[said], completions=[""], reference=[THOUGHT])
    with pytest.raises(UserError, match="opens <think> in the prompt, and the reference '<tool_call>"):
        reward(prompts=[chat], completion_ids=[said], completions=[""], reference=[REFERENCE])


def test_regions_go_on_from_what_the_prompt_opens(make: Make, thinking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(own={"processing_class": thinking})
    said = thinking(THOUGHT.removeprefix("<think> "), add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(
        trainer, "_generate_single_turn", lambda prompt_ids, *_, **__: ([list(said) for _ in prompt_ids], None)
    )
    regions = rollout(trainer)["regions"]
    assert {tuple(row) for row in regions[:, :4].tolist()} == {(Region.THINK,) * 3 + (Region.FORMAT,)}
    trainer.chat_template_kwargs = {"quick": True}
    with pytest.raises(
        UserError, match=r"opens nothing in its ids, but '<think>\\n' by .*template: .*chat_template_kwargs"
    ):
        rollout(trainer)


def test_a_template_that_opens_a_call_is_refused_before_training(make: Make, thinking: Any) -> None:
    thinking.chat_template = thinking.chat_template.replace("<think>", "<tool_call>")
    with pytest.raises(UserError, match="ends the prompt in '<tool_call>"):
        make(own={"processing_class": thinking})
    with pytest.raises(UserError, match="ends the prompt in '<tool_call>"):
        rest_reward(thinking)
