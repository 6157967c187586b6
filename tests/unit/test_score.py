"""`rest score`: one response taken apart, and what a person sees of it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines import cli
from rest_core.algorithm.regions import Region
from rest_core.config import FrequencyWeights, ModelConfig, OfficialWeights, PaperWeights, UniformWeights
from rest_core.model.loading import load_tokenizer
from rest_core.score import score_response

RESPONSE = (
    "<think> Two cities. </think>\n<tool_call>\n"
    '{"name": "get_weather", "parameters": {"city": "Oslo"}}\n'
    '{"name": "get_weather", "parameters": {"city": "Bergem"}}\n</tool_call>'
)
REFERENCE = RESPONSE.replace("Bergem", "Bergen")
TOKENIZER = "embedded:tiny-random"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TOKENIZER, ModelConfig())


@pytest.mark.parametrize("weights", [PaperWeights(), OfficialWeights(), UniformWeights(), FrequencyWeights()])
def test_the_tokens_spell_the_response_and_weigh_one_on_average(tokenizer: Any, weights: Any) -> None:
    score = score_response(RESPONSE, REFERENCE, tokenizer, weights=weights, step=1, total_steps=10)
    assert "".join(token.text for token in score.tokens) == RESPONSE
    assert math.isclose(sum(token.weight for token in score.tokens) / len(score.tokens), 1.0, rel_tol=1e-5)
    assert sum(piece.tokens for piece in score.segments()) == len(score.tokens)
    assert sum(count for count, _ in score.region_means().values()) == len(score.tokens)


def test_both_calls_are_seen(tokenizer: Any) -> None:
    score = score_response(RESPONSE, REFERENCE, tokenizer, weights=UniformWeights(), step=1, total_steps=10)
    names = "".join(token.text for token in score.tokens if token.region is Region.NAME)
    assert names == "get_weatherget_weather"
    assert score.tokens[-1].text == ""  # end of sequence
    assert score.tokens[-1].region is Region.OTHER


def test_a_thought_that_the_prompt_begins_is_scored_with_and_without_its_tag(tokenizer: Any) -> None:
    made = copy.deepcopy(tokenizer)
    made.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    scores = [
        score_response(text, REFERENCE, made, weights=UniformWeights(), step=1, total_steps=10)
        for text in (REFERENCE, REFERENCE.removeprefix("<think> "))
    ]
    assert scores[0] == scores[1]
    assert scores[0].response.text == REFERENCE.replace("<think> ", "<think>\n")
    assert scores[0].rewards["strict"].total == 4.0
    assert "".join(token.text for token in scores[0].tokens) == REFERENCE.removeprefix("<think> ")
    assert scores[0].tokens[0].region is Region.THINK


def test_region_entropy_moves_the_paper_weights(tokenizer: Any) -> None:
    def think_weight(entropy: float) -> float:
        entropies = dict.fromkeys(Region, 0.5) | {Region.THINK: entropy}
        settings = PaperWeights(curriculum=False)
        score = score_response(
            RESPONSE, REFERENCE, tokenizer, weights=settings, step=1, total_steps=10, region_entropy=entropies
        )
        return score.region_means()[Region.THINK][1]

    assert think_weight(0.3) > think_weight(0.5) > think_weight(2.0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    response, reference = tmp_path / "response.txt", tmp_path / "gold.txt"
    response.write_text(RESPONSE + "\n", encoding="utf-8")
    reference.write_text(REFERENCE + "\n", encoding="utf-8")
    return str(response), str(reference)


def test_what_is_printed_can_be_read_without_colour(files: tuple[str, str]) -> None:
    result = CliRunner().invoke(cli.cli, ["score", *files, "--tokenizer", TOKENIZER, "--tokens"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "\x1b" not in result.stdout
    assert "  well formed  yes" in lines
    assert '  call 2       get_weather {"city": "Bergem"}' in lines
    # S = (1 + (1 + 1) + (1 + 0)) / (1 + 2 + 2) = 0.8, on [-3, 3]: 1.8
    assert next(line.split() for line in lines if "toolrl" in line) == ["toolrl", "+1.000", "+1.800", "+2.800"]
    assert sum(line.startswith("  NAME ") and line.endswith("│get_weather│") for line in lines) == 2
    assert any("(end of sequence)" in line for line in lines)
    assert "NAME 0.04 (assumed)" in result.stdout


def test_malformed_output_is_shown_with_its_reasons_and_cannot_steer_the_terminal(tmp_path: Path, files: Any) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text('<tool_call>{"name": "f"\x1b[2J[bold]\x07', encoding="utf-8")
    result = CliRunner().invoke(cli.cli, ["score", str(bad), files[1], "--tokenizer", TOKENIZER])
    assert result.exit_code == 0, result.output
    assert "well formed  no" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "\\x1b[2J[bold]\\x07" in result.stdout
    assert "  format: the response has the tags <tool_call>, the reference <think>" in result.stdout


def test_a_low_format_reward_says_why_and_a_malformed_reference_is_refused(tmp_path: Path, files: Any) -> None:
    command = ["score", files[0], files[1], "--tokenizer", TOKENIZER]
    Path(files[0]).write_text(REFERENCE.replace("\n</tool_call>", "</tool_call>"), encoding="utf-8")
    assert "  format: toolrl wants a line break between the parts" in CliRunner().invoke(cli.cli, command).stdout
    Path(files[0]).write_text(REFERENCE, encoding="utf-8")
    assert "  format: " not in CliRunner().invoke(cli.cli, command).stdout
    Path(files[1]).write_text("<tool_call>{</tool_call>", encoding="utf-8")
    result = CliRunner().invoke(cli.cli, command)
    assert "gold.txt: not well formed (" in str(result.exception)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"ab\xff", "not UTF-8 text (byte 2)"), (b"x" * 1_000_001, "larger than")]
)
def test_files_that_hold_no_response(tmp_path: Path, files: Any, content: bytes, message: str) -> None:
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    result = CliRunner().invoke(cli.cli, ["score", str(path), files[1], "--tokenizer", TOKENIZER])
    assert message in str(result.exception)
    assert str(path) in str(result.exception)


@pytest.mark.parametrize(("entry", "message"), [("NAMES=1", "did you mean 'NAME'?"), ("NAME=low", "REGION=NATS")])
def test_entropies_that_cannot_be_read(files: Any, entry: str, message: str) -> None:
    result = CliRunner().invoke(cli.cli, ["score", *files, "--entropy", entry])
    assert message in str(result.exception)
