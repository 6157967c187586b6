"""Which architectures of transformers take rows with a shared prefix, and which keep one row a response, and why."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rest_core.config import LoraConfig
from rest_core.model import attention
from rest_core.model.capabilities import head_is_linear, why_not_shared
from rest_core.model.loading import with_lora
from rest_core.model.logprobs import Policy

SHARED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "granite": {"logits_scaling": 4.0},
    "olmo2": {},
    "phi3": {},
    "cohere": {},
    "gpt_neox": {},
    "mistral": {"sliding_window": None},
}
SMALL_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}
NOT_SHARED: dict[str, tuple[dict[str, Any], str]] = {
    "mistral": ({"sliding_window": 4096}, "MistralForCausalLM asks for sliding_window in its attention layers"),
    "gemma2": ({"head_dim": 8}, "Gemma2ForCausalLM asks for (sliding_window|softcap) in its attention layers"),
    "gpt_oss": (
        {"head_dim": 8, "num_local_experts": 4, "sliding_window": 4096},
        "GptOssForCausalLM asks for (sliding_window|s_aux) in its attention layers",
    ),
    "gpt2": (SMALL_GPT2, "GPT2LMHeadModel asks for dropout in its attention layers"),
    "bloom": (
        {"n_layer": 2, "n_head": 2},
        "BloomForCausalLM does not take its attention from transformers' attention interface",
    ),
    "mamba": ({"state_size": 4}, "MambaForCausalLM (does not run on shared rows|has no attention)"),
    "falcon_h1": ({}, "FalconH1ForCausalLM gives other values on shared rows"),
    "qwen3_next": ({"head_dim": 8}, "Qwen3NextForCausalLM has no attention that takes trees"),
}

every_model = pytest.mark.filterwarnings("ignore")  # of transformers, on small configurations


@pytest.mark.parametrize("architecture", SHARED)
def test_plain_causal_attention_is_shared(random_model: Callable[..., Any], architecture: str) -> None:
    model = random_model(architecture, **SHARED[architecture])
    assert why_not_shared(model) is None
    policy = Policy(model)
    assert policy.shared and model.config._attn_implementation == attention.NAME


@every_model
@pytest.mark.parametrize("architecture", NOT_SHARED)
def test_other_architectures_keep_a_row_a_response_and_say_why(
    random_model: Callable[..., Any], architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes, reason = NOT_SHARED[architecture]
    model = random_model(architecture, **changes)
    before = model.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        policy = Policy(model)
    assert not policy.shared and model.config._attn_implementation == before
    (line,) = [record.getMessage() for record in caplog.records if record.name == "rest_core.model.logprobs"]
    prefix = "every response is trained in a row of its own, with its prompt: "
    assert line.startswith(prefix)
    assert re.match(reason, line.removeprefix(prefix))


def test_dropout_of_attention_is_seen_although_it_rests_in_evaluation(random_model: Callable[..., Any]) -> None:
    assert why_not_shared(random_model("gpt2", **SMALL_GPT2, attn_pdrop=0.0)) is None
    assert "dropout" in (why_not_shared(random_model("gpt2", **SMALL_GPT2, attn_pdrop=0.1)) or "")
    assert "dropout" in (why_not_shared(random_model("llama", attention_dropout=0.1)) or "")


def test_positions_that_depend_on_the_length_of_the_row_are_seen(random_model: Callable[..., Any]) -> None:
    scaled = {"rope_theta": 10_000.0, "factor": 2.0}
    assert why_not_shared(random_model("llama", rope_parameters={"rope_type": "linear", **scaled})) is None
    reason = why_not_shared(random_model("llama", rope_parameters={"rope_type": "dynamic", **scaled}))
    assert "rotary positions (dynamic)" in (reason or "")


@pytest.mark.parametrize("window", [2, 9, 4096])
def test_a_window_is_seen_however_long(random_model: Callable[..., Any], window: int) -> None:
    model = random_model("qwen2", use_sliding_window=True, sliding_window=window, max_window_layers=1)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    assert "sliding_window" in (why_not_shared(model) or "")


class Ordered(torch.nn.Module):
    """An attention layer that adds something from its neighbour in the row, whatever the tree says."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> Any:
        output, *rest = self.inner(hidden_states=hidden_states, **arguments)
        return output + 0.1 * hidden_states.roll(1, dims=1), *rest


class Deaf(torch.nn.Module):
    """An attention layer that does not pass on what it does not know."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: torch.Tensor, position_embeddings: Any, **_: Any) -> Any:
        return self.inner(hidden_states=hidden_states, position_embeddings=position_embeddings, attention_mask=None)


def test_a_layer_that_mixes_neighbours_is_seen_by_its_values(tiny_model: Any) -> None:
    tiny_model.model.layers[1].self_attn = Ordered(tiny_model.model.layers[1].self_attn)
    assert "LlamaForCausalLM gives other values on shared rows" in (why_not_shared(tiny_model) or "")


def test_a_layer_that_drops_arguments_is_seen(tiny_model: Any) -> None:
    tiny_model.model.layers[1].self_attn = Deaf(tiny_model.model.layers[1].self_attn)
    assert why_not_shared(tiny_model) == "LlamaForCausalLM does not pass arguments on to its attention layers"


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_of_the_trial(random_model: Callable[..., Any], implementation: str, training: bool) -> None:
    model = random_model("gpt2", **SMALL_GPT2)  # with dropout: its trial in training draws random numbers
    model.set_attn_implementation(implementation)
    model.train(training)
    weights = copy.deepcopy(model.state_dict())
    torch.manual_seed(4)
    state = torch.get_rng_state()
    assert why_not_shared(model) is not None
    assert head_is_linear(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config._attn_implementation == implementation
    assert model.training == training and all(module.training == training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sharing_can_be_switched_off(tiny_model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        policy = Policy(tiny_model, shared=False)
    assert not policy.shared and tiny_model.config._attn_implementation == "sdpa"
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(random_model: Callable[..., Any], dtype: torch.dtype) -> None:
    assert why_not_shared(random_model("llama", spread=0.05).to(dtype)) is None
    assert head_is_linear(random_model("llama", spread=0.05).to(dtype))


def test_adapters(tiny_model: Any) -> None:
    adapted = with_lora(tiny_model, LoraConfig(r=2, dropout=0.1))
    adapted.train()
    assert why_not_shared(adapted) is None and head_is_linear(adapted)
    assert Policy(adapted).shared and adapted.config._attn_implementation == attention.NAME


@pytest.mark.parametrize(
    ("architecture", "changes", "linear"),
    [
        ("llama", {}, True),
        ("granite", {"logits_scaling": 1.0}, True),
        ("granite", {"logits_scaling": 4.0}, False),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": None}, True),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}, False),
        ("cohere", {"logit_scale": 0.25}, False),
    ],
)
def test_heads(random_model: Callable[..., Any], architecture: str, changes: dict[str, Any], linear: bool) -> None:
    assert head_is_linear(random_model(architecture, **changes)) == linear
