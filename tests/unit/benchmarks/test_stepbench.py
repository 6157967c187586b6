"""The pure parts of benchmarks/rl_step.py: statistics, counting, prompts, plan, joining of reports."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rl_step
import torch
from stepbench import flops, plan, settings, summary
from stepbench.measure import TokenCount
from stepbench.plot import figure
from stepbench.statistics import ratio, spread
from stepbench.work import WORKS, Work, conversations, encode

from rest_core.errors import UserError


def test_a_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 10.0, 2.0]).to_dict() == {"median": 2.5, "low": 1.0, "high": 10.0, "count": 4}
    with pytest.raises(ValueError, match="no samples"):
        spread([])


def test_a_ratio_is_of_medians_and_its_range_of_pairs() -> None:
    # The machine slowed down in the second round for both sides: pairs do not see it, unpaired extremes would.
    found = ratio([1.0, 2.0, 1.0], [4.0, 8.0, 5.0])
    assert (found.median, found.low, found.high) == (5.0, 4.0, 5.0)
    with pytest.raises(ValueError, match="paired"):
        ratio([1.0], [1.0, 2.0])


def test_tokens_of_a_work() -> None:
    work = Work("x", prompts=2, prompt_tokens=10, group=3, new_tokens=4)
    assert (work.responses, work.generated, work.useful, work.copied) == (6, 24, 38, 84)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_count_the_head_once_and_the_lookup_not_at_all(random_model: Callable[..., Any], tied: bool) -> None:
    model = random_model("llama", tie_word_embeddings=tied)
    table = model.config.vocab_size * model.config.hidden_size
    counted = flops.count_parameters(model)
    assert counted.head == table
    assert counted.lookup == (0 if tied else table)
    assert counted.body == sum(p.numel() for p in model.model.layers.parameters()) + model.model.norm.weight.numel()
    assert flops.update_flop(counted, 5, 2) == 6 * (5 * counted.body + 2 * table)


def test_update_flop_agrees_with_what_torch_counts(random_model: Callable[..., Any]) -> None:
    """Forward and backward of all matrix products are 6 FLOP a weight and token, attention's own left out."""
    from torch.utils.flop_counter import FlopCounterMode

    model = random_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=False)
    ids = torch.arange(8)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    operations = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in operations.items() if "mm" in str(name) and "bmm" not in str(name))
    counted = flops.count_parameters(model)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    exact = flops.Parameters(counted.body - norms, counted.head, counted.lookup)
    # The first layer's input needs a gradient too, for the embedding: nothing is saved there.
    assert products == flops.update_flop(exact, 8, 8)


def test_decode_floor_reads_weights_once_and_the_cache_of_every_row() -> None:
    class Config:
        num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, hidden_size = 28, 16, 8, 128, 1024

    kv = flops.kv_bytes_per_token(Config)
    assert kv == 2 * 28 * 8 * 128 * 2
    parameters = flops.Parameters(body=100, head=10, lookup=1000)
    assert flops.decode_bytes(parameters, kv, rows=3, cached=50) == 2 * 110 + 3 * 50 * kv


def test_kv_bytes_agree_with_a_real_cache(random_model: Callable[..., Any]) -> None:
    model = random_model("llama", num_attention_heads=4, num_key_value_heads=2)
    cache = model(input_ids=torch.arange(5)[None], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert flops.kv_bytes_per_token(model.config, element_bytes=4) * 5 == held


@pytest.mark.parametrize("checkpointing", [False, True])
def test_token_count_sees_training_passes_once(random_model: Callable[..., Any], checkpointing: bool) -> None:
    model = random_model("llama").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    count = TokenCount(model)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        model(input_ids=ids)  # a rollout
    model(input_ids=ids, logits_to_keep=2).logits.sum().backward()
    assert (count.body, count.head) == (12, 4)
    count.reset()
    assert (count.body, count.head) == (0, 0)


def test_prompts_have_exactly_the_wanted_length_and_differ(tiny_tokenizer: Any) -> None:
    work = Work("x", prompts=5, prompt_tokens=700, group=2, new_tokens=4)  # a token a byte: about one tool
    prompts = [encode(tiny_tokenizer, messages) for messages in conversations(tiny_tokenizer, work)]
    assert [len(ids) for ids in prompts] == [700] * 5
    assert len({tuple(ids) for ids in prompts}) == 5
    with pytest.raises(ValueError, match="too short"):
        conversations(tiny_tokenizer, Work("x", 1, 20, 2, 4))


def test_plan_grows_with_work_and_shrinks_with_cores() -> None:
    def seconds(arm: str, work: str, cores: int = 2, device: str = "cpu") -> float:
        return plan.step_seconds(arm, WORKS[work], device=device, parameters=135e6, cores=cores)

    for device in ("cpu", "cuda"):
        for arm in settings.ARMS:
            assert 0 < seconds(arm, "a", device=device) < seconds(arm, "b4", device=device)
            assert seconds(arm, "b4", device=device) < seconds(arm, "b8", device=device)
    assert seconds(settings.OURS, "a", cores=4) == pytest.approx(seconds(settings.OURS, "a") / 2)
    one = plan.run_seconds([settings.OURS], WORKS["a"], 3, device="cpu", parameters=135e6, cores=2)
    assert one == pytest.approx(3 * seconds(settings.OURS, "a") + plan.LOADING["cpu"])


def test_search_tries_only_what_divides_the_responses() -> None:
    sizes = [c.get("per_device_train_batch_size") for c in settings.candidates("cpu", 4)]
    assert sizes == [None, 1, 2, 4, 4]
    assert settings.candidates("cpu", 16)[0] == {}


def _found(wall: list[float], *, rss: float, body: int) -> dict[str, Any]:
    """What `run_rounds` returns for one side; a third of each step is rollout, half of it update."""
    steps = [
        {
            "wall": seconds,
            "cpu": 2 * seconds,
            "others_cpu": 0.0,
            "phases": {"rollout": seconds / 3, "update": seconds / 2, "optimizer": seconds / 6, "other": 0.0},
            "generated": 24,
            "body_tokens": body,
            "head_tokens": 24,
            "memory": {"rss": rss},
            "check": {},
        }
        for seconds in wall
    ]
    ready = {"parameters": {"body": 1000, "head": 100, "lookup": 7}, "rss_exact": True}
    ready |= {"rss_loading": rss, "rss_loaded": rss / 2}
    return {"settings": {}, "ready": ready, "warm_up": [], "steps": steps}


_WORK = Work("a", prompts=2, prompt_tokens=10, group=3, new_tokens=4)


def _report(**changes: Any) -> dict[str, Any]:
    found = {
        settings.OURS: _found([6.0, 12.0, 6.0], rss=2.0e9, body=44),
        settings.TRL_BEST: _found([18.0, 36.0, 24.0], rss=4.0e9, body=84),
    }
    machine = {"cpu": "some", "cores": 2, "packages": {"torch": "2"}, "commit": "abc"}
    works = {"a": summary.summarise(_WORK, found, cores=2, peak_flops=1e6)}
    return {"file": "cpu", "model": "m", "command": "c", "machine": machine, "works": works} | changes


def test_summary_of_a_work() -> None:
    work = _report()["works"]["a"]
    ours, best = work["arms"][settings.OURS], work["arms"][settings.TRL_BEST]
    assert ours["seconds"] == {"median": 6.0, "low": 6.0, "high": 12.0, "count": 3}
    assert ours["tokens_per_second"] == {"generated": 12.0, "trained": 6.0, "step": 4.0}
    computed = 6 * (1000 * 84 + 100 * 24) / 12.0  # TRL's update takes half of 24 s
    assert best["update"]["flops_per_second_computed"] == pytest.approx(computed)
    assert best["update"]["share_of_peak_computed"] == pytest.approx(computed / 1e6)
    assert best["update"]["flops_per_second_useful"] == pytest.approx(6 * (1000 * 38 + 100 * 24) / 12.0)
    ratios = work["ratios"][settings.TRL_BEST]
    assert (ratios["seconds"]["median"], ratios["seconds"]["low"], ratios["seconds"]["high"]) == (4.0, 3.0, 4.0)
    assert ratios["memory_share"] == {"rss": 0.5}


def test_a_busy_machine_is_said() -> None:
    report = _report()
    assert "other processes" not in summary.table(report)
    report["works"]["a"]["arms"][settings.OURS]["others_cpu_share"] = 0.3
    assert "other processes took 30% of the cores" in summary.table(report)


def test_scaling_is_time_a_token() -> None:
    points = [
        {"responses": 64, "tokens": 100, "seconds": spread([2.0]).to_dict()},
        {"responses": 128, "tokens": 200, "seconds": spread([5.0]).to_dict()},
    ]
    made = summary.scaling(points)
    assert [p["seconds_per_token"] for p in made["points"]] == [0.02, 0.025]
    assert made["largest_over_smallest"] == made["last_over_first"] == pytest.approx(1.25)
    report = _report(scaling=made | {"model": "m", "work": {"prompt_tokens": 10, "new_tokens": 4}})
    assert "last over first 1.25" in summary.table(report)
    assert [axes.get_ylabel() for axes in figure(report).axes] == [
        "seconds a step (median; bars: min to max)",
        "µs a token",
    ]


def test_reports_are_joined(tmp_path: Path) -> None:
    first, second, third = _report(), _report(decode={"batch": 1}), _report(model="another")
    second["works"]["b4"] = second["works"]["a"]
    third["works"] = {}
    second["works"]["a"] = json.loads(json.dumps(second["works"]["a"]))
    for kind in ("arms", "ratios"):
        second["works"]["a"][kind][settings.TRL_DEFAULT] = second["works"]["a"][kind].pop(settings.TRL_BEST)
    second["works"]["a"]["arms"][settings.OURS]["seconds"]["median"] = 7.0
    files = []
    for name, report in (("1", first), ("2", second), ("3", third)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(report), encoding="utf-8")
    joined = rl_step.combine(files[:2])
    assert set(joined["works"]) == {"a", "b4"}
    assert set(joined["works"]["a"]["arms"]) == set(settings.ARMS)
    assert set(joined["works"]["a"]["ratios"]) == {settings.TRL_BEST, settings.TRL_DEFAULT}
    assert joined["works"]["a"]["arms"][settings.OURS]["seconds"]["median"] == 6.0
    assert joined["decode"] == {"batch": 1}
    assert [part["gave"] for part in joined["parts"]] == [["a"], ["a", "b4", "decode"]]
    (tmp_path / "joined.json").write_text(json.dumps(joined), encoding="utf-8")
    assert len(rl_step.combine([tmp_path / "joined.json", files[1]])["parts"]) == 3
    with pytest.raises(UserError, match=r"3\.json: model is 'another'"):
        rl_step.combine(files)


def test_a_report_names_the_command_that_measures_it_again() -> None:
    given = ["--work", "a,b4", "--output", "/somewhere", "--name=x", "--ours", "{lora: null}"]
    assert rl_step.command(given) == "python benchmarks/rl_step.py --work a,b4 --ours '{lora: null}'"


def test_unknown_names_are_refused() -> None:
    options = Namespace(work="c", prompts=None, prompt_tokens=None, new_tokens=None, arms="theirs")
    with pytest.raises(UserError, match="unknown work 'c'"):
        rl_step.chosen_works(options, "cpu")
    with pytest.raises(UserError, match="unknown side 'theirs'"):
        rl_step.chosen_arms(options, WORKS["a"], "cpu")
