from __future__ import annotations

from typing import Any

import pytest

from rest_core.ablation.settings import AblationConfig, Trial, check, parse_schemes, trials
from rest_core.config import (
    ApiBankConfig,
    BfclConfig,
    HighEntropyWeights,
    PaperWeights,
    RlConfig,
    UniformWeights,
    VllmServerConfig,
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
    assert schemes == {"uniform": UniformWeights(), "entropy-only": PaperWeights(curriculum=False)}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["papre"], r"scheme 'papre': weights: .*'paper'"),
        (["paper", "paper"], "given twice"),
        (["x={scheme: paper"], "write it as NAME or NAME="),
        (["a/b={scheme: paper}"], "name"),
        (["x={scheme: paper, w_mx: 3}"], "w_max"),
    ],
)
def test_a_scheme_that_is_none_is_refused_in_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_schemes(texts)
    assert "\n" not in str(error.value)


def test_trials_go_seed_by_seed() -> None:
    every = trials({"uniform": UniformWeights(), "paper": PaperWeights()}, [0, 5])
    assert [trial.label for trial in every] == [
        "uniform · seed 0",
        "paper · seed 0",
        "uniform · seed 5",
        "paper · seed 5",
    ]


@pytest.mark.parametrize(("schemes", "seeds"), [({}, [0]), ({"uniform": UniformWeights()}, [])])
def test_no_trials_are_no_ablation(schemes: dict[str, UniformWeights], seeds: list[int]) -> None:
    with pytest.raises(UserError, match="at least one scheme and one seed"):
        trials(schemes, seeds)


def test_a_seed_twice_is_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        trials({"uniform": UniformWeights()}, [1, 2, 1])


TWO = trials({"uniform": UniformWeights(), "paper": PaperWeights()}, [0, 1])


def refuse(every: tuple[Trial, ...] = TWO, metric: str = "bfcl/overall", **sections: Any) -> str:
    settings = {"rl": RlConfig(), "bfcl": BfclConfig(), "api_bank": ApiBankConfig()} | sections
    return check(every, AblationConfig(metric=metric), **settings)


def test_trials_that_can_be_compared() -> None:
    assert refuse() == "2 schemes in 4 trials, compared by bfcl/overall"
    for metric in (
        "bfcl/live",
        "bfcl/simple_python",
        "api_bank/overall_soft",
        "api_bank/level_1_strict",
        "reward/after",
    ):
        refuse(metric=metric)
    refuse(metric="task/best", rl=RlConfig(evaluate_every=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": ()}, "at least one trial"),
        ({"every": TWO[1:2]}, r"ablation\.baseline=uniform: no trial has this scheme \(there are: paper\)"),
        ({"every": (*TWO, TWO[1])}, "trial paper · seed 0 stands twice"),
        (
            {"every": trials({"uniform": UniformWeights(), "grpo": UniformWeights()}, [0])},
            "uniform and grpo have the same",
        ),
        (
            {"every": (*TWO, Trial(name="paper", seed=2, weights=PaperWeights(w_max=2)))},
            "paper has other weights in trial paper · seed 2",
        ),
        ({"rl": RlConfig(enabled=False)}, r"set rl\.enabled=true"),
        ({"bfcl": BfclConfig(enabled=False)}, r"ablation\.metric=bfcl/overall: this configuration does not measure it"),
        ({"bfcl": BfclConfig(categories=("live",))}, r"does not measure it.*bfcl/live"),
        ({"metric": "bfcl/overal"}, "did you mean 'bfcl/overall'"),
        ({"metric": "reward/after", "rl": RlConfig(reward_probe_prompts=0)}, "does not measure it"),
        ({"metric": "task/best"}, "does not measure it"),
        (
            {
                "every": trials({"uniform": UniformWeights(), "entropy": HighEntropyWeights()}, [0]),
                "rl": RlConfig(engine=VllmServerConfig()),
            },
            r"entropy · seed 0: rl.*vllm does not give",
        ),
    ],
)
def test_what_would_compare_nothing_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        refuse(**arguments)
    assert "\n" not in str(told.value)


def test_the_deciding_figure_is_shown_first_and_once() -> None:
    settings = AblationConfig(metric="bfcl/live", metrics=("bfcl/overall", "bfcl/live", "bfcl/overall"))
    assert settings.shown == ("bfcl/live", "bfcl/overall")
