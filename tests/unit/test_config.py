"""What a configuration refuses, and how it says so."""

from __future__ import annotations

import pytest

from rest_core.config import RlConfig, load, validate
from rest_core.errors import UserError


@pytest.mark.parametrize("setting", ["top_p=0.9", "top_p=1.0", "top_k=50", "min_p=0.1", "repetition_penalty=1.2"])
def test_a_truncated_sampler_is_refused_with_its_reason(setting: str) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(UserError, match=rf"rl\.{name}: training samples from the policy's whole distribution"):
        load("quickstart", (f"rl.{setting}",))
    with pytest.raises(UserError, match=rf"rl: {name}: training samples from the policy's whole distribution"):
        validate(RlConfig, {name: float(value)}, where="rl")  # as a stage reads its parameter


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("rl.loss.length=100",), r"rl\.loss: .*length=100 belongs to aggregation=constant_length"),
        (("rl.loss.surrogate=cispo",), r"rl\.loss: .*surrogate=cispo has no dual clip.*set dual_clip=null"),
        (("rl.overlong={buffer: 5000}",), r"rl: .*overlong\.buffer \(5000\) is above max_response_tokens"),
        (("rl.reward=strict", "rl.reward_one_call_a_line=true"), "rl: .*one_call_a_line=true is for reward=toolrl"),
        (("rl.temperature=0.7",), r"rl: .*temperature is 0\.7: training samples at 1\.0"),
        (
            ("rl.mini_batch_prompts=3",),
            r"rl: .*mini_batch_prompts \(3\) does not divide prompts_per_step \(4\)",
        ),
        (("rl.mini_batch_prompts=8",), "does not divide"),
        (("rl.reward_weight=0",), "rl: .*reward_weight is 0 and reward_functions is empty"),
        (("rl.advantage_std=false",), r"rl\.advantage_std: .*'group', 'batch' or 'none'"),
        (("rl.loss.surrogate=gpso",), r"rl\.loss\.surrogate: .*'gspo'"),
    ],
)
def test_combinations_without_a_meaning_are_refused_with_the_reason(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load("quickstart", settings)
    assert not any(text in str(caught.value) for text in ("\n", "value error", "(got {"))


@pytest.mark.parametrize(
    "settings",
    [
        ("rl.loss.aggregation=constant_length", "rl.loss.length=100"),
        ("rl.loss={surrogate: cispo, dual_clip: null, clip_low: 1, aggregation: token_mean}",),
        ("rl.loss={surrogate: gspo, clip_low: 3.0e-4, clip_high: 4.0e-4}",),
    ],
)
def test_combinations_with_a_meaning_survive_the_way_through_kfp(settings: tuple[str, ...]) -> None:
    rl = load("quickstart", settings).rl
    assert validate(RlConfig, rl.to_parameter(), where="rl") == rl


def test_elsewhere_the_same_keys_are_merely_unknown() -> None:
    with pytest.raises(UserError, match=r"unknown key 'bfcl\.generation\.top_p'"):
        load("quickstart", ("bfcl.generation.top_p=0.9",))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps=3", "unknown key 'steps'; did you mean 'rl.steps'?"),
        ("learning_rate=1", "did you mean 'sft.learning_rate' or 'rl.learning_rate'?"),
        ("bfcl.max_response_tokens=4", "did you mean 'bfcl.generation.max_response_tokens'?"),
        ("rl.stps=3", "unknown key 'rl.stps'; did you mean 'steps'?"),
        ("rl.weights={scheme: papr}", "rl.weights.scheme: unknown scheme 'papr'; did you mean 'paper'? (known: paper,"),
        ("evaluation.engine={engine: vlm}", "evaluation.engine.engine: unknown engine 'vlm'; did you mean 'vllm'?"),
    ],
)
def test_a_wrong_key_or_choice_names_the_right_one(setting: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load("quickstart", (setting,))
    assert message in str(caught.value)


def test_the_docstring_under_a_field_is_its_description() -> None:
    fields = RlConfig.model_json_schema()["properties"]
    assert fields["group_size"]["description"] == "responses a prompt (G)"
    assert "description" not in fields["seed"]


@pytest.mark.parametrize(
    "override",
    [
        *(
            "registry.name=team/tool-use",
            "registry.name=a:b",
            "registry.name=''",
            "registry.name=' '",
            "registry.name='..'",
        ),
        *('registry.name="bob\'s model"', "registry.name='say \"x\"'", "registry.name='a`b'", 'registry.name="a\\\\b"'),
        *('registry.name="a\\nb"', f"registry.name={'x' * 251}", f"registry.name={'ä' * 126}", "registry.name=' x'"),
        *("tracking.experiment=''", "tracking.experiment=' '", f"tracking.experiment={'x' * 501}"),
        'tracking.experiment="a\\nb"',
    ],
)
def test_names_that_mlflow_refuses_are_refused_at_once(override: str) -> None:
    field = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"^profile tiny: {field}: ") as caught:
        load("tiny", (override,))
    assert "\n" not in str(caught.value)


def test_other_names_are_taken() -> None:
    assert load("tiny", ("registry.name=tool use v2.1 (ä)",)).registry.name == "tool use v2.1 (ä)"
    assert load("tiny", ("tracking.experiment=team/tool's use",)).tracking.experiment == "team/tool's use"
