from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rest_core.ablation.settings import AblationConfig, Scheme, Trial, as_trained, check, parse_schemes, trials
from rest_core.config import (
    ApiBankConfig,
    BfclConfig,
    LoraConfig,
    LossConfig,
    OverlongPenalty,
    PaperWeights,
    RlConfig,
    UniformWeights,
    load,
    validate,
)
from rest_core.errors import UserError


def test_a_trial_replaces_weights_and_seed_and_nothing_else() -> None:
    rl = RlConfig(steps=7, seed=3)
    trial = Trial(name="grpo", seed=11, weights=UniformWeights())
    applied = trial.applied_to(rl)
    assert (applied.weights, applied.seed) == (UniformWeights(), 11)
    assert applied.model_copy(update={"weights": rl.weights, "seed": rl.seed}) == rl


def test_a_trial_survives_the_way_through_kfp() -> None:
    trial = Trial(name="strong", seed=2, weights=PaperWeights(w_max=4, curriculum=False))
    values = trial.to_parameter() | {"seed": 2.0}  # a KFP parameter's numbers are doubles
    assert validate(Trial, values, where="trial") == trial


def test_schemes_as_written_on_a_command_line() -> None:
    schemes = parse_schemes(["uniform", "entropy-only={scheme: paper, curriculum: false}"])
    assert schemes == {
        "uniform": Scheme(weights=UniformWeights()),
        "entropy-only": Scheme(weights=PaperWeights(curriculum=False)),
    }


DR_GRPO = "dr-grpo={scheme: uniform, rl: {advantage_std: none, loss: {aggregation: constant_length, dual_clip: null}}}"


def test_a_scheme_may_replace_further_settings_of_the_training() -> None:
    (trial,) = trials(parse_schemes([DR_GRPO]), [2])
    assert trial.settings == ("advantage_std", "loss.aggregation", "loss.dual_clip")
    rl = RlConfig(steps=7, loss=LossConfig(clip_high=0.28, length=None))
    applied = trial.applied_to(rl)
    assert (applied.advantage_std, applied.weights, applied.seed) == ("none", UniformWeights(), 2)
    assert applied.loss == LossConfig(clip_high=0.28, aggregation="constant_length", dual_clip=None)  # the rest stays
    assert applied.steps == 7
    # Through KFP, whose parameters hold no null and whose numbers are doubles.
    assert validate(Trial, trial.to_parameter(), where="trial") == trial


def test_sections_that_are_not_there_are_made_and_others_merged() -> None:
    trial = trials(parse_schemes(["x={scheme: paper, rl: {lora: {r: 4}, overlong: {buffer: 8}}}"]), [0])[0]
    applied = trial.applied_to(RlConfig(lora=LoraConfig(alpha=64)))
    assert applied.lora == LoraConfig(r=4, alpha=64) and applied.overlong == OverlongPenalty(buffer=8)
    assert trial.applied_to(RlConfig()).lora == LoraConfig(r=4)


def test_a_training_that_is_a_trial_knows_it_from_the_command_line() -> None:
    (trial,) = trials(parse_schemes([DR_GRPO]), [2])
    assert trial.text == "dr-grpo=advantage_std,loss.aggregation,loss.dual_clip"
    assert as_trained(trial.text, trial.applied_to(RlConfig())) == trial
    plain = Trial(name="plain", seed=3, weights=UniformWeights())
    assert plain.text == "plain" and as_trained("plain", plain.applied_to(RlConfig())) == plain
    with pytest.raises(UserError, match=r"rl has no field 'loss\.agregation'; did you mean 'loss\.aggregation'"):
        as_trained("x=loss.agregation", RlConfig())
    with pytest.raises(UserError, match="--trial: name"):
        as_trained("a/b", RlConfig())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["papre"], r"scheme 'papre': weights\.scheme: unknown scheme 'papre'; did you mean 'paper'"),
        (["paper", "paper"], "given twice"),
        (["x={scheme: paper"], "write it as NAME or NAME="),
        (["a/b={scheme: paper}"], "name"),
        (["x={scheme: paper, w_mx: 3}"], "w_max"),
        (["x={scheme: paper, rl: {seed: 3}}"], "rl: .*seed is no setting of a scheme: `seed` has it"),
        (["x={scheme: paper, rl: {weights: {}}}"], "weights is no setting of a scheme"),
        (["x={scheme: paper, rl: {mirror: /a}}"], "mirror is no setting of a scheme: the ablation has it"),
        (["x={scheme: paper, rl: 3}"], "rl: input should be a valid dictionary"),
    ],
)
def test_a_scheme_that_is_none_is_refused_in_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_schemes(texts)
    assert "\n" not in str(error.value)


def test_trials_go_seed_by_seed() -> None:
    every = trials(parse_schemes(["uniform", "paper"]), [0, 5])
    assert [trial.label for trial in every] == [
        "uniform · seed 0",
        "paper · seed 0",
        "uniform · seed 5",
        "paper · seed 5",
    ]


@pytest.mark.parametrize(("schemes", "seeds"), [([], [0]), (["uniform"], [])])
def test_no_trials_are_no_ablation(schemes: list[str], seeds: list[int]) -> None:
    with pytest.raises(UserError, match="at least one scheme and one seed"):
        trials(parse_schemes(schemes), seeds)


def test_a_seed_twice_is_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        trials(parse_schemes(["uniform"]), [1, 2, 1])


TWO = trials(parse_schemes(["uniform", "paper"]), [0, 1])


def of(*schemes: str) -> tuple[Trial, ...]:
    return trials(parse_schemes(["uniform", *schemes]), [0])


def refuse(every: tuple[Trial, ...] = TWO, metric: str = "bfcl/call_accuracy", **sections: Any) -> str:
    settings = {"rl": RlConfig(), "bfcl": BfclConfig(), "api_bank": ApiBankConfig()} | sections
    return check(every, AblationConfig(metric=metric), **settings)


def test_trials_that_can_be_compared() -> None:
    assert refuse() == "2 schemes in 4 trials, compared by bfcl/call_accuracy"
    for metric in (
        "bfcl/live",
        "bfcl/simple_python",
        "api_bank/overall_soft",
        "api_bank/level_1_strict",
        "reward/after",
    ):
        refuse(metric=metric)
    for metric in ("task/last/accuracy", "task/best"):
        refuse(metric=metric, rl=RlConfig(evaluate_every=5))
    refuse(every=of("g={scheme: paper, rl: {steps: 90}}"), metric="reward/after", rl=RlConfig(reward="toolrl"))
    assert refuse(every=of("none={scheme: uniform, rl: {advantage_std: none}}")).startswith("2 schemes in 2 trials")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": ()}, "at least one trial"),
        ({"every": TWO[1:2]}, r"ablation\.baseline=uniform: no trial has this scheme \(there are: paper\)"),
        ({"every": (*TWO, TWO[1])}, "trial paper · seed 0 stands twice"),
        (
            {"every": of("grpo={scheme: uniform}")},
            "uniform and grpo have the same weights and settings",
        ),
        ({"every": of("g={scheme: uniform, rl: {advantage_std: group}}")}, "uniform and g have the same"),  # as it is
        ({"every": of("g={scheme: uniform, rl: {advantage_sdt: none}}")}, "g · seed 0: rl: .*mean 'advantage_std'"),
        ({"every": of("g={scheme: uniform, rl: {loss: {length: 9}}}")}, r"g · seed 0: rl: loss: .*constant_length"),
        ({"every": of("g={scheme: uniform, rl: {mini_batch_prompts: 7}}")}, r"g · seed 0: rl: .*\(7\) does not divide"),
        (
            {"every": of("g={scheme: paper, rl: {reward: strict}}"), "metric": "reward/after"},
            "reward/after: schemes uniform and g are measured by other rewards",
        ),
        (
            {"every": of("g={scheme: paper, rl: {reward_one_call_a_line: true}}"), "metric": "reward/after"},
            "uniform and g are measured by other rewards",
        ),
        (  # the ranges of the reward `rest` move with the steps
            {"every": of("g={scheme: paper, rl: {steps: 90}}"), "metric": "reward/after"},
            "uniform and g are measured by other rewards",
        ),
        (
            {"every": of("g={scheme: paper, rl: {reward_probe_prompts: 0}}"), "metric": "reward/after"},
            r"ablation\.metric=reward/after: scheme g does not measure it",
        ),
        (
            {"every": (*TWO, Trial(name="paper", seed=2, weights=PaperWeights(w_max=2)))},
            "paper · seed 0 and paper · seed 2 have other weights or settings under one name",
        ),
        ({"rl": RlConfig(enabled=False)}, r"set rl\.enabled=true"),
        (
            {"bfcl": BfclConfig(enabled=False)},
            r"ablation\.metric=bfcl/call_accuracy: scheme uniform does not measure it",
        ),
        (
            {"bfcl": BfclConfig(categories=("live",)), "metric": "bfcl/overall_single_turn"},
            r"does not measure it.*bfcl/live",
        ),
        ({"metric": "bfcl/call_accurac"}, "did you mean 'bfcl/call_accuracy'"),
        ({"metric": "reward/after", "rl": RlConfig(reward_probe_prompts=0)}, "does not measure it"),
        ({"metric": "task/last/accuracy"}, "does not measure it"),
        (
            {
                "every": of("best={scheme: uniform, rl: {final: best}}"),
            },
            r"best · seed 0: rl.*final=best needs evaluate_every",
        ),
    ],
)
def test_what_would_compare_nothing_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        refuse(**arguments)
    assert "\n" not in str(error.value)


def test_the_deciding_figure_is_shown_first_and_once() -> None:
    settings = AblationConfig(metric="bfcl/live", metrics=("bfcl/call_accuracy", "bfcl/live", "bfcl/call_accuracy"))
    assert settings.shown == ("bfcl/live", "bfcl/call_accuracy")


def test_the_baselines_of_the_docs_go_together() -> None:
    text = (Path(__file__).parents[3] / "docs" / "ablation.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    rest ablate [^\n]*mini_batch_prompts.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    given = [(words[n], words[n + 1]) for n in range(2, len(words), 2)]
    (profile,) = (value for name, value in given if name == "--profile")
    config = load(profile, [value for name, value in given if name == "--set"])
    every = trials(parse_schemes([value for name, value in given if name == "--scheme"]), [0])
    line = check(every, AblationConfig(), config.rl, config.bfcl, config.api_bank)
    assert line.startswith(f"{len(every)} schemes") and len(every) > 4
