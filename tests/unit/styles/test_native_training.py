"""Training in the native style: regions by bytes, rewards, and a step on a random model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_templates import tokenizer

from rest_core.algorithm.regions import Region
from rest_core.algorithm.rest import ResT
from rest_core.config import ModelConfig, RlConfig
from rest_core.errors import UserError
from rest_core.records import Message, Sample, Tool, ToolCall
from rest_core.styles.native import NativeStyle
from rest_core.training import sft
from rest_core.training.progress import Observer
from rest_core.training.rl import RlTrainer
from rest_core.training.tasks import make_tasks

TOOL = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}})
ONE, TWO = ToolCall("add", {"a": 1, "s": "é"}), ToolCall("add", {"a": 2, "s": "x"})


def ids_of(made: Any, text: str) -> list[int]:
    return [*made(text, add_special_tokens=False)["input_ids"], made.eos_token_id]


def algorithm(name: str, **settings: Any) -> tuple[Any, NativeStyle, ResT]:
    made = tokenizer(name)
    style = NativeStyle(made)
    return made, style, ResT(RlConfig(**settings), made, style.format)


@pytest.mark.parametrize(
    ("name", "tags", "arguments"),
    [
        ("qwen3", ["<tool_call>", "</tool_call>"] * 2, ['{"a": 1, "s": "é"}', '{"a": 2, "s": "x"}']),
        (
            "qwen3_5_nothink",
            ["<tool_call>", "</tool_call>"] * 2,
            [
                "<parameter=a>\n1\n</parameter>\n<parameter=s>\né\n</parameter>",
                "<parameter=a>\n2\n</parameter>\n<parameter=s>\nx\n</parameter>",
            ],
        ),
        ("llama3_2", [], ['{"a": 1, "s": "é"}', '{"a": 2, "s": "x"}']),
        ("mistral", ["[TOOL_CALLS]"], ['{"a": 1, "s": "é"}', '{"a": 2, "s": "x"}']),
        ("lfm2_v2", ["<|tool_call_start|>[", "]<|tool_call_end|>"], ["a=1, s='é'", "a=2, s='x'"]),
    ],
)
def test_regions_fall_on_the_bytes_that_they_name(name: str, tags: list[str], arguments: list[str]) -> None:
    made, style, rest = algorithm(name)
    text = style.write(think=None, calls=[ONE, TWO], response=None)
    text = text.removeprefix("<think>\n\n</think>\n\n")
    thinks = name == "qwen3"
    text = f"<think>\nwhy é\n</think>\n\n{text}" if thinks else text
    ids = ids_of(made, text)
    response, regions = rest.read(ids, [TOOL])
    assert list(response.calls) == [ONE, TWO] and len(regions) == len(ids)
    spelled: dict[Region, list[int]] = {region: [] for region in Region}
    for token, region in zip(ids, regions.tolist(), strict=True):
        spelled[Region(region)].append(token)
    pieces = {region: made.decode(found) for region, found in spelled.items()}
    assert pieces[Region.NAME] == "addadd"
    assert pieces[Region.ARGUMENTS] == "".join(arguments)
    assert pieces[Region.FORMAT] == ("<think></think>" if thinks else "") + "".join(tags)
    assert pieces[Region.THINK] == ("\nwhy é\n" if thinks else "")
    assert regions[-1] == Region.OTHER  # the end of the response


def test_words_are_the_region_response() -> None:
    made, style, rest = algorithm("qwen2_5")
    ids = ids_of(made, style.write(think=None, calls=[ONE], response="Let me add."))
    _, regions = rest.read(ids)
    assert made.decode([n for n, r in zip(ids, regions.tolist(), strict=True) if r == Region.RESPONSE]) == "Let me add."


@pytest.mark.parametrize("scheme", ["toolrl", "rest", "strict"])
@pytest.mark.parametrize("name", ["qwen3", "llama3_2", "lfm2_v2", "mistral", "qwen3_5_nothink"])
def test_rewards_are_those_of_what_is_read(scheme: Any, name: str) -> None:
    made, style, rest = algorithm(name, reward=scheme)
    reference = style.parse(style.write(think=None, calls=[ONE, TWO], response=None), [TOOL])

    def reward(text: str) -> Any:
        return rest.judge(ids_of(made, text), reference, 150, [TOOL]).reward

    def written(*calls: ToolCall) -> str:
        return style.write(think=None, calls=calls, response=None).removeprefix("<think>\n\n</think>\n\n")

    best = reward(written(ONE, TWO))
    assert best.total == 4
    assert reward(f"<think>\nhm\n</think>\n\n{written(ONE, TWO)}").total == 4
    half = reward(written(ONE, ToolCall("sub", {"a": 1})))
    assert half.format == best.format and half.correctness < best.correctness
    more = reward(written(ONE, TWO, ToolCall("add", {"a": 9, "s": "y"})))
    assert more.total < 4 if scheme == "strict" else more.format == best.format
    assert reward("I cannot.").total < half.total
    assert reward(written(ONE, TWO) + "\nThere you are.").format < best.format
    assert reward("").correctness == -3 and reward("").format < best.format


def test_a_call_where_none_is_wanted_and_words_where_they_are() -> None:
    made, style, rest = algorithm("qwen3", reward="strict")
    reference = style.parse(style.write(think=None, calls=[], response="No tool fits."))
    assert rest.judge(ids_of(made, "Sorry."), reference, 1).reward.total == 4
    called = style.write(think=None, calls=[ONE], response=None)
    assert rest.judge(ids_of(made, called), reference, 1).reward.correctness == -3
    hidden = 'Sorry. <tool_call>\n{"name": "add", "arguments": {"a": 1'
    assert rest.judge(ids_of(made, hidden), reference, 1).reward.correctness == -3


def test_the_authors_layout_has_no_meaning_in_other_formats() -> None:
    with pytest.raises(UserError, match="reward_one_call_a_line"):
        algorithm("qwen3", reward_one_call_a_line=True)


def samples(style: NativeStyle, count: int) -> list[Sample]:
    return [
        Sample(
            f"s/{n}",
            "s",
            style.render([TOOL], [Message("user", f"Add {n}.")]),
            (TOOL,),
            style.write(think=None, calls=[ToolCall("add", {"a": n, "s": "x"})], response=None),
        )
        for n in range(count)
    ]


def test_supervised_rows_end_as_the_chat_template_ends_a_turn() -> None:
    made, style, _ = algorithm("qwen3")
    (row,) = sft.encode(made, samples(style, 1), style)
    learnt = [label for label in row["labels"] if label != sft.IGNORED]
    assert made.decode(learnt).endswith('{"name": "add", "arguments": {"a": 0, "s": "x"}}\n</tool_call><|im_end|>')
    assert '"description": "Adds."' in made.decode(row["input_ids"])


def test_a_dataset_of_another_style_is_refused() -> None:
    made, style, _ = algorithm("qwen3")
    (sample,) = samples(style, 1)
    other = Sample(sample.id, "s", sample.prompt, sample.tools, "<think>\nnever closed <tool_call> {")
    with pytest.raises(UserError, match="sample s/0: its reference is not in the style native, tool parser hermes"):
        make_tasks(made, [other], style)


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_step_runs_in_native_style(random_model: Callable[..., Any], tmp_path: Path) -> None:
    made, style, _ = algorithm("hermes")
    config = RlConfig(
        steps=1,
        prompts_per_step=3,
        group_size=4,
        max_response_tokens=16,
        micro_batch_tokens=1024,
        rollout_batch_tokens=4096,
        reward="strict",
        reward_probe_prompts=0,
        evaluate_every=1,
        evaluate_prompts=1,
    )
    tasks = make_tasks(made, samples(style, 4), style)
    metrics: dict[str, float] = {}
    sizes = {"vocab_size": len(made), "max_position_embeddings": 1024}
    model = random_model("llama", **sizes, eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id)
    trainer = RlTrainer(
        model,
        made,
        tasks[1:],
        config,
        ModelConfig(dtype="float32"),
        folder=tmp_path / "checkpoints",
        fingerprint="data",
        observer=Observer(lambda values, step: metrics.update(values), lambda rows, name: None),
        validation=tasks[:1],
        algorithm=ResT(config, made, style.format),
    )
    result = trainer.train()
    assert result["rl/steps"] == 1 and -3 <= metrics["reward/total"] <= 4
    assert metrics["response/call_share"] == 0
