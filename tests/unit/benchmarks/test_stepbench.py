"""The pure parts of benchmarks/rl_step.py: figures, counting, prompts, options, other commits."""

from __future__ import annotations

import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rl_step
import torch
from stepbench import child, machine, report
from stepbench.work import Work, conversation, encode, works_of

from rest_core.errors import UserError

_WORK = Work("a", prompts=2, prompt_tokens=10, group=3, new_tokens=4)


def test_a_ratio_is_of_medians_and_its_range_of_rounds() -> None:
    # The machine slowed down in the second round for both sides: pairs do not see it, unpaired extremes would.
    found = report.ratio([1.0, 2.0, 1.0], [4.0, 8.0, 5.0])
    assert found == {"median": 5.0, "low": 4.0, "high": 5.0, "count": 3}


@pytest.mark.parametrize("tied", [True, False])
def test_update_flop_agrees_with_what_torch_counts(random_model: Callable[..., Any], tied: bool) -> None:
    """Forward and backward of all matrix products are 6 FLOP a weight and token, attention's own left out."""
    from torch.utils.flop_counter import FlopCounterMode

    model = random_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=tied)
    ids = torch.arange(8)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    operations = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in operations.items() if "mm" in str(name) and "bmm" not in str(name))
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    counted = child.count(model)
    assert products == 6 * 8 * (counted["body"] - norms + counted["head"])


def test_kv_bytes_agree_with_a_real_cache(random_model: Callable[..., Any]) -> None:
    model = random_model("llama", num_attention_heads=4, num_key_value_heads=2)
    cache = model(input_ids=torch.arange(5)[None], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert child.count(model)["kv_bytes"] * 5 == held // 2  # bf16 there, float32 here


def test_prompts_have_exactly_the_wanted_length_and_differ(tiny_tokenizer: Any) -> None:
    prompts = [encode(tiny_tokenizer, conversation(tiny_tokenizer, number, 700)) for number in range(5)]
    assert [len(ids) for ids in prompts] == [700] * 5
    assert len({tuple(ids) for ids in prompts}) == 5
    with pytest.raises(UserError, match="no prompt has exactly 20 tokens"):
        conversation(tiny_tokenizer, 0, 20)


def _found(wall: list[float], rss: float, computed: int) -> dict[str, Any]:
    """What `run_rounds` returns for one side; a third of each step is rollout, half of it update."""
    steps = [
        {
            "wall": seconds,
            "cpu": 2 * seconds,
            "others_cpu": 0.0,
            "phases": {"rollout": seconds / 3, "update": seconds / 2, "optimizer": seconds / 6, "other": 0.0},
            "generated": 24,
            "body_tokens": computed,
            "memory": {"rss": rss},
        }
        for seconds in wall
    ]
    ready = {"parameters": {"body": 1000, "head": 100, "kv_bytes": 7}, "rss_exact": True}
    return {"settings": {}, "ready": ready, "warm_up": [], "steps": steps}


@pytest.fixture
def made() -> dict[str, Any]:
    found = {"ours": _found([6.0, 12.0, 6.0], 2.0e9, 44), "trl-best": _found([18.0, 36.0, 24.0], 4.0e9, 84)}
    works = {"a": report.summarise(_WORK, found, {"flops": 1e6, "bandwidth": 1e5})}
    described = {"cpu": "some", "cores": 2, "packages": {"torch": "2"}, "commit": "abc"}
    return {"model": "m", "command": "c", "machine": described, "works": works}


def test_summary_of_a_work(made: dict[str, Any]) -> None:
    work = made["works"]["a"]
    ours, best = work["arms"]["ours"], work["arms"]["trl-best"]
    assert ours["seconds"] == {"median": 6.0, "low": 6.0, "high": 12.0, "count": 3}
    # TRL's update takes half of 24 s.
    assert best["update_share_of_peak"] == pytest.approx(6 * (1000 * 84 + 100 * 24) / 12.0 / 1e6)
    # Four decode steps of six rows: all weights once each, and caches of 12 tokens in the mean.
    assert ours["rollout_over_floor"] == pytest.approx(2.0 / ((4 * 2 * 1100 + 24 * 12 * 7) / 1e5))
    assert work["ratios"]["trl-best"]["seconds"] == {"median": 4.0, "low": 3.0, "high": 4.0, "count": 3}


def test_table_and_picture(made: dict[str, Any]) -> None:
    assert "4.00 (3.00-4.00)" in report.table(made)
    assert "other processes" not in report.table(made)
    made["works"]["a"]["arms"]["ours"]["others_cpu_share"] = 0.3
    assert "other processes took 30% of the cores" in report.table(made)
    axes = report.figure(made).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["ours", "trl-best"]
    assert "4.0× our time" in axes.texts[1].get_text()


def test_what_a_run_measures_follows_from_its_options() -> None:
    sizes = {"prompts": None, "prompt_tokens": None, "new_tokens": 9}
    given = {"ours": "{lora: null}", "trl_best": "{}"}
    options = Namespace(work="a,training", arms=None, against=None, device="cpu", **given, **sizes)
    short, training = rl_step.chosen_works(options)
    assert (short.prompts, short.new_tokens) == (4, 9)
    assert rl_step.chosen_arms(options, short) == ["ours", "trl-best"]
    assert rl_step.chosen_arms(options, training) == ["ours"]
    assert rl_step.side_of("ours", short, options)["settings"] == {"micro_batch_tokens": 1024, "lora": None}
    options.against = "HEAD"
    assert rl_step.chosen_arms(options, short) == ["ours", "against"]
    options.arms = "ours,trl-best"
    with pytest.raises(UserError, match="its responses stop by chance"):
        rl_step.chosen_arms(options, training)
    for name in ("work", "arms"):
        setattr(options, name, "theirs")
        with pytest.raises(UserError, match=f"--{name}: unknown 'theirs'"):
            rl_step.chosen_works(options) if name == "work" else rl_step.chosen_arms(options, short)


def test_works_are_as_the_readme_has_them() -> None:
    lines = (Path(rl_step.__file__).parent / "README.md").read_text(encoding="utf-8").splitlines()
    for device, prompts in (("cpu", (4, 2, 1, 1)), ("cuda", (4, 64, 32, 64))):
        works = works_of(device)
        assert tuple(work.prompts for work in works.values()) == prompts
        for name, work in works.items():
            row = next(line for line in lines if line.startswith(f"| `{name}` |"))
            assert f"| {work.prompt_tokens} | {work.group} |" in row
            assert str(work.new_tokens) in row


def test_the_files_of_another_commit() -> None:
    top = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, cwd=machine.TOP, check=False)
    if top.returncode:
        pytest.skip("this is no checkout")
    with machine.checkout("HEAD") as (files, commit):
        assert commit == top.stdout.decode().strip()
        assert (files / "benchmarks" / "stepbench" / "child.py").is_file()
    assert not files.exists()
    with pytest.raises(UserError, match="--against no-such-commit"), machine.checkout("no-such-commit"):
        pass
