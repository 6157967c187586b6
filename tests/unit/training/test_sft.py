from __future__ import annotations

import copy
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from rest_core.algorithm.regions import Region, token_regions
from rest_core.chat import encode_prompt
from rest_core.config import LoraConfig, ModelConfig, RegionName, SftConfig
from rest_core.errors import UserError
from rest_core.model.loading import save_policy
from rest_core.records import Message, Sample, ToolCall
from rest_core.response import render
from rest_core.training import sft, sft_checkpoint

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

FLOAT32 = ModelConfig(dtype="float32")


def sample(n: int) -> Sample:
    reference = render(think=None, calls=[ToolCall("add", {"n": n})], response=None)
    return Sample(f"test/{n}", "test", (Message("user", "x" * (1 + 3 * n)),), (), reference)


SAMPLES = [sample(n) for n in range(4)]


class Log:
    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def __call__(self, values: dict[str, float], step: int) -> None:
        self.steps.append((step, values))

    def losses(self) -> list[float]:
        return [values["sft/loss"] for _, values in self.steps if "sft/loss" in values]


def train(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    log: Log | None = None,
    validation: list[Sample] | None = None,
    mirror: str | None = None,
    **changes: Any,
) -> tuple[Any, dict[str, float]]:
    config = SftConfig(**{"epochs": 1.0, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.01, **changes})
    observed = {"folder": folder, "on_metrics": log or Log(), "mirror": mirror}
    rows, held_out = (sft.encode(tokenizer, samples) for samples in (SAMPLES, validation or []))
    return sft.train(model, tokenizer, rows, held_out, config, FLOAT32, **observed)


def test_only_the_response_has_labels(tiny_tokenizer: Any) -> None:
    for made, row in zip(SAMPLES, sft.encode(tiny_tokenizer, SAMPLES), strict=True):
        prompt = encode_prompt(tiny_tokenizer, made.prompt)
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][: len(prompt)] == [sft.IGNORED] * len(prompt)
        assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :]
        assert tiny_tokenizer.decode(row["labels"][len(prompt) :]) == made.reference + "<|end|>"


def test_a_tag_that_the_prompt_opens_is_no_target(tiny_tokenizer: Any) -> None:
    made = copy.deepcopy(tiny_tokenizer)
    made.chat_template = made.chat_template.replace("assistant\n", "assistant\n<think>\n")
    reference = render(think="go", calls=[ToolCall("add", {"n": 1})], response=None)
    row = sft.encode(made, [replace(SAMPLES[0], reference=reference)])[0]
    assert made.decode(row["input_ids"]).endswith("assistant\n<think>\ngo </think>" + reference[19:] + "<|end|>")
    assert made.decode([n for n in row["labels"] if n != sft.IGNORED]).startswith("go </think>\n<tool_call>")
    with pytest.raises(UserError, match="opens <think> in the prompt"):
        sft.encode(made, SAMPLES)  # these have no thoughts


def test_rows_are_padded_without_loss_or_attention(tiny_tokenizer: Any) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = sft.Collator(pad_id=8)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 8, 8]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_logits_begin_where_the_first_response_does(tiny_model: Any) -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, -100, 8, 9]},
        {"input_ids": [4, 3, 2, 1], "labels": [-100, -100, 2, 1]},
    ]
    batch = sft.Collator(pad_id=0)(rows)
    assert batch["logits_to_keep"] == 4
    assert batch["shift_labels"].tolist() == [[-100, 8, 9, -100], [2, 1, -100, -100]]
    whole = {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}
    with torch.no_grad():
        assert float(tiny_model(**batch).loss) == pytest.approx(float(tiny_model(**whole).loss), rel=1e-6)


def test_the_reported_loss_is_that_of_the_response_tokens(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    log = Log()
    rows = sft.encode(tiny_tokenizer, SAMPLES)
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logps = tiny_model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        for place, label in enumerate(row["labels"][1:]):
            if label != sft.IGNORED:
                total, count = total - float(logps[place, label]), count + 1
    train(tiny_model, tiny_tokenizer, tmp_path, log=log, max_steps=1)
    assert log.losses()[0] == pytest.approx(total / count, rel=1e-4)  # over both micro-batches, token by token


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_loss_is_weighted_by_region(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, lora: dict[str, int] | None
) -> None:
    wanted = {"name": 3.0, "arguments": 3.0, "format": 0.0}
    calls = [
        replace(one, reference=render(think="so", calls=[ToolCall("add", {"n": n})], response=None))
        for n, one in enumerate(SAMPLES)
    ]
    rows = sft.encode(tiny_tokenizer, calls, region_weights=wanted)
    total, count = 0.0, 0
    for row in rows:
        labels = torch.tensor([n for n in row["labels"] if n != sft.IGNORED])
        weights = torch.tensor(row["weights"][-len(labels) :])
        assert not any(row["weights"][: -len(labels)]) and float(weights.mean()) == pytest.approx(1)
        regions = token_regions(labels, tiny_tokenizer)
        relative = weights / weights[regions == Region.OTHER][0]
        assert relative.tolist() == pytest.approx([wanted.get(Region(n).name.lower(), 1.0) for n in regions.tolist()])
        with torch.no_grad():
            logps = tiny_model(torch.tensor([row["input_ids"]])).logits[0, -len(labels) - 1 : -1].log_softmax(-1)
        total -= float((logps.gather(-1, labels[:, None])[:, 0] * weights).sum())
        count += len(labels)
    config = SftConfig(max_steps=1, batch_size=4, micro_batch_size=2, region_weights=wanted, lora=lora)
    held_out = sft.encode(tiny_tokenizer, calls)
    log = Log()
    _, figures = sft.train(tiny_model, tiny_tokenizer, rows, held_out, config, FLOAT32, folder=tmp_path, on_metrics=log)
    assert log.losses()[0] == pytest.approx(total / count, rel=1e-4)
    assert figures["sft/validation_loss_before"] != pytest.approx(total / count, rel=1e-3)  # is not weighted


def test_regions_without_weight_leave_no_loss() -> None:
    assert sft.loss_weights(torch.tensor([2, 2]), {"format": 0.0}).tolist() == [0, 0]
    assert {*get_args(RegionName)} == {region.name.lower() for region in Region}


def test_a_handful_of_samples_is_learnt_by_heart(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    log = Log()
    trained, figures = train(
        tiny_model, tiny_tokenizer, tmp_path, log=log, max_steps=60, learning_rate=0.02, validation=SAMPLES[:1]
    )
    losses = log.losses()
    assert len(losses) == 60
    assert losses[-1] < 0.4 * losses[0]
    assert figures["sft/samples"] == 4 and figures["sft/steps"] == 60
    assert figures["sft/loss"] == losses[-1]
    assert figures["sft/validation_loss_after"] < 0.4 * figures["sft/validation_loss_before"]
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"epochs": 3.0}, 3),  # four samples, four an update
        ({"epochs": 2.0, "batch_size": 2}, 4),
        ({"epochs": 1.0, "batch_size": 1, "micro_batch_size": 4}, 4),
        ({"epochs": 9.0, "max_steps": 2}, 2),
    ],
)
def test_the_number_of_updates(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, changes: dict[str, Any], steps: int
) -> None:
    log = Log()
    _, figures = train(tiny_model, tiny_tokenizer, tmp_path, log=log, **changes)
    assert len(log.losses()) == figures["sft/steps"] == steps


def test_a_batch_that_micro_batches_do_not_fill_is_refused(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"sft\.micro_batch_size \(4\) does not divide sft\.batch_size \(6\)"):
        train(tiny_model, tiny_tokenizer, tmp_path, batch_size=6, micro_batch_size=4)


def test_adapters_alone_are_trained_and_merged(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    before = copy.deepcopy(tiny_model.state_dict())
    trained, _ = train(
        tiny_model, tiny_tokenizer, tmp_path / "run", max_steps=5, learning_rate=0.05, lora=LoraConfig(r=4)
    )
    state = trained.state_dict()
    for name, tensor in before.items():
        matches = [key for key in state if key.replace(".base_layer", "").removeprefix("base_model.model.") == name]
        assert len(matches) == 1
        assert torch.equal(state[matches[0]], tensor), name
    ids = torch.arange(20, 40)[None]
    trained.eval()
    with torch.no_grad():
        logits = trained(ids).logits
        with trained.disable_adapter():
            assert not torch.allclose(trained(ids).logits, logits, atol=1e-2)
    save_policy(trained, tiny_tokenizer, tmp_path / "saved", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-4, atol=1e-4)


def test_an_interrupted_warm_up_goes_on_from_its_checkpoint(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    straight, _ = train(copy.deepcopy(tiny_model), tiny_tokenizer, tmp_path / "straight", max_steps=4)

    class Stop(Log):
        def __call__(self, values: dict[str, float], step: int) -> None:
            super().__call__(values, step)
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(tiny_model), tiny_tokenizer, tmp_path / "run", log=Stop(), max_steps=4, checkpoint_every=2)
    (tmp_path / "run" / "checkpoint-3").mkdir()  # torn: another kill came while it was written
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").write_text("{")
    log = Log()
    resumed, _ = train(
        copy.deepcopy(tiny_model), tiny_tokenizer, tmp_path / "run", log=log, max_steps=4, checkpoint_every=2
    )
    assert [step for step, values in log.steps if "sft/loss" in values] == [3, 4]
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json", "hashes.json"])
@pytest.mark.parametrize("damage", ["flipped", "empty", "pipe"])
def test_a_damaged_checkpoint_of_the_warm_up_is_passed_over(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        checkpoint = tmp_path / f"checkpoint-{number}"
        checkpoint.mkdir()
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (checkpoint / name).write_text(f"{name} {number}")
        state = SimpleNamespace(is_world_process_zero=True, global_step=number)
        sft_checkpoint.Hashes(tmp_path).on_save(None, state, None)
    assert sft_checkpoint.newest(tmp_path) == tmp_path / "checkpoint-2"
    spoiled = tmp_path / "checkpoint-2" / file
    content = spoiled.read_bytes()
    spoiled.unlink()
    if damage == "pipe":
        os.mkfifo(spoiled)
    else:
        spoiled.write_bytes(b"" if damage == "empty" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert sft_checkpoint.newest(tmp_path) == tmp_path / "checkpoint-1"
    if (file, damage) != ("hashes.json", "pipe"):  # which is none, as in a torn one
        assert f"{tmp_path / 'checkpoint-2'} is passed over" in caplog.text


class Killed(Log):
    """The machine is lost in step 4."""

    def __call__(self, values: dict[str, float], step: int) -> None:
        super().__call__(values, step)
        if step == 4:
            raise KeyboardInterrupt


def test_a_warm_up_goes_on_on_another_machine(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    def run(name: str, log: Log) -> Any:
        model = copy.deepcopy(tiny_model)
        mirror = str(tmp_path / "volume")
        settings = {"max_steps": 5, "checkpoint_every": 1}
        return train(model, tiny_tokenizer, tmp_path / name, log=log, mirror=mirror, **settings)[0]

    straight, _ = train(copy.deepcopy(tiny_model), tiny_tokenizer, tmp_path / "straight", max_steps=5)
    with pytest.raises(KeyboardInterrupt):
        run("one", Killed())
    assert [path.name for path in (tmp_path / "volume").iterdir()] == ["checkpoint-3"]
    (tmp_path / "volume" / "checkpoint-4").mkdir()  # was being copied
    (tmp_path / "volume" / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "two" / "checkpoint-3").mkdir(parents=True)  # was being downloaded
    (tmp_path / "two" / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    log = Log()
    resumed = run("two", log)
    assert [step for step, values in log.steps if "sft/loss" in values] == [4, 5]
    assert [path.name for path in (tmp_path / "volume").iterdir()] == ["checkpoint-5"]
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_mirror_that_refuses_stops_no_warm_up(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, figures = train(
        tiny_model, tiny_tokenizer, tmp_path / "run", max_steps=2, checkpoint_every=1, mirror="/sys/volume"
    )
    assert figures["sft/steps"] == 2
    assert caplog.text.count("this checkpoint is not mirrored") == 2


def test_a_loss_that_is_no_number_stops_the_warm_up(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny_model.model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match=r"step 1: .*not finite: lower sft\.learning_rate"):
        train(tiny_model, tiny_tokenizer, tmp_path, max_steps=3)


def test_a_warm_up_needs_samples(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the dataset's split 'sft' is empty"):
        sft.train(tiny_model, tiny_tokenizer, [], [], SftConfig(), FLOAT32, folder=tmp_path, on_metrics=Log())
