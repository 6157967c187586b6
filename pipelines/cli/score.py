"""`rest score`: parse, regions, rewards and weights of one response, for a person to read."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rest_core.config import EMBEDDED_MODEL, Config, ModelConfig, validate
from rest_core.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from rest_core.algorithm.regions import Region
    from rest_core.response import Response
    from rest_core.score import ScoredResponse

_SCHEMES = ("paper", "official", "uniform", "mask_only", "name_boost", "frequency")
_FORMATS = ("tagged", "hermes", "llama3_json", "pythonic", "mistral", "qwen3_coder")
_COLOURS = {
    "NAME": "magenta",
    "ARGUMENTS": "cyan",
    "FORMAT": "yellow",
    "THINK": "green",
    "RESPONSE": "blue",
    "OTHER": "white",
}
_MAX_BYTES = 1_000_000


@click.command()
@click.argument("response_file", type=click.Path(path_type=Path))
@click.argument("reference_file", type=click.Path(path_type=Path))
@click.option("--scheme", type=click.Choice(_SCHEMES), default="paper", show_default=True, help="Weight scheme.")
@click.option("--step", type=click.IntRange(min=0), default=1, show_default=True, help="Place in the training.")
@click.option(
    "--total-steps", type=click.IntRange(min=1), default=100, show_default=True, help="Length of the training."
)
@click.option(
    "--entropy",
    "entropies",
    multiple=True,
    metavar="REGION=NATS",
    help="Policy entropy of a region, as MLflow shows it for a run; else one is assumed. May be given again.",
)
@click.option("--tokenizer", default=EMBEDDED_MODEL, show_default=True, metavar="MODEL", help="Whose tokens are meant.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(_FORMATS),
    default="tagged",
    show_default=True,
    help="How both texts are written: the project's own format, or a model family's by vLLM's name of its parser.",
)
@click.option("--tokens", is_flag=True, help="List every token, too.")
def score(
    response_file: Path,
    reference_file: Path,
    scheme: str,
    step: int,
    total_steps: int,
    entropies: tuple[str, ...],
    tokenizer: str,
    format_name: str,
    tokens: bool,
) -> None:
    """Take one response apart: the method on a page.

    How it is parsed, rewarded and weighted.

    RESPONSE_FILE holds a model's response, REFERENCE_FILE the wanted one; "-" reads one of them from stdin.

    \b
    Examples:
      rest score response.txt gold.txt
      rest score response.txt gold.txt --scheme official --step 50 --tokens
      rest score - gold.txt --entropy NAME=0.02 --entropy THINK=1.3 < response.txt
    """
    text, reference = _read(response_file), _read(reference_file)
    from rich.console import Console

    from rest_core import logs
    from rest_core.model.loading import load_tokenizer
    from rest_core.operations import policies
    from rest_core.score import score_response
    from rest_core.styles.formats import FORMATS

    logs.configure(sys.stderr, level=logging.WARNING, libraries=("transformers",))
    region_entropy = _entropies(entropies)
    weights = validate(Config, {"rl": {"weights": {"scheme": scheme}}}, where="--scheme").rl.weights
    result = score_response(
        text,
        reference,
        load_tokenizer(policies.fetched(tokenizer), ModelConfig()),
        weights=weights,
        step=step,
        total_steps=total_steps,
        region_entropy=region_entropy,
        read_by=FORMATS[format_name](),
    )
    if not result.reference.well_formed:
        raise UserError(f"{reference_file}: not well formed ({result.reference.problems[0]}); a reference must be")
    console = Console(highlight=False)
    _show_parse(console, result.response)
    _show_rewards(console, result, step)
    if scheme == "paper":
        given = {entry.partition("=")[0].upper() for entry in entropies}
        shown = ", ".join(f"{r.name} {h:g}{'' if r.name in given else ' (assumed)'}" for r, h in region_entropy.items())
        console.print(f"\n[bold]Region entropies[/] in nats: {shown}")
    _show_regions(console, result, f"{scheme}, step {step} of {total_steps}")
    if tokens:
        _show_tokens(console, result)


def _read(path: Path) -> str:
    try:
        with click.open_file(str(path), "rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path}: larger than {_MAX_BYTES:,} bytes; a response is shorter")
    if not text.strip():
        raise UserError(f"{path}: empty; it should hold one response")
    return text.removesuffix("\n")  # a file ends in one, a response does not


def _entropies(entries: tuple[str, ...]) -> dict[Region, float]:
    from rest_core.algorithm.regions import Region
    from rest_core.score import ASSUMED_ENTROPY

    values = dict(ASSUMED_ENTROPY)
    for entry in entries:
        name, _, number = entry.partition("=")
        if name.upper() not in Region.__members__:
            raise UserError(f"--entropy {entry!r}: no region {name!r}{nearest(name.upper(), Region.__members__)}")
        try:
            values[Region[name.upper()]] = float(number)
        except ValueError:
            raise UserError(f"--entropy {entry!r}: write it as REGION=NATS, such as NAME=0.1") from None
    return values


def _show_parse(console: Console, response: Response) -> None:
    from rich.text import Text

    console.print("[bold]Parse[/]")
    console.print("  well formed  " + ("[green]yes[/]" if response.well_formed else "[red]no[/]"))
    for problem in response.problems:
        console.print(Text(f"               {problem}"))
    console.print(Text(f"  think        {_short(response.think)}"))
    for number, call in enumerate(response.calls, 1):
        console.print(Text(f"  call {number:<8}{call.name} {_short(json.dumps(call.arguments, ensure_ascii=False))}"))
    if not response.calls:
        console.print("  calls        none")
    console.print(Text(f"  response     {_short(response.response)}"))


def _show_rewards(console: Console, result: ScoredResponse, step: int) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("scheme")
    for column in ("format", "correctness", "total"):
        table.add_column(column, justify="right")
    for scheme, reward in result.rewards.items():
        table.add_row(scheme, *(f"{value:+.3f}" for value in (reward.format, reward.correctness, reward.total)))
    console.print(f"\n[bold]Reward[/] (step {step})")
    console.print(table)
    if (problem := result.format_problem) is not None:
        console.print(Text(f"  format: {problem}"), soft_wrap=True)


def _show_regions(console: Console, result: ScoredResponse, place: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(f"\n[bold]Weights[/] ({place})")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("region")
    for column in ("tokens", "mean weight", "share of all weight"):
        table.add_column(column, justify="right")
    whole = sum(token.weight for token in result.tokens) or 1.0
    for region, (count, mean) in result.region_means().items():
        table.add_row(
            Text(region.name, style=_COLOURS[region.name]), str(count), f"{mean:.3f}", f"{count * mean / whole:.0%}"
        )
    console.print(table)
    console.print("[bold]Response by region[/]")
    for piece in result.segments():
        label = Text(f"  {piece.region.name:10}{piece.weight:6.2f}  ", style="dim")
        console.print(label + Text(_visible(piece.text), style=_COLOURS[piece.region.name]), soft_wrap=True)


def _show_tokens(console: Console, result: ScoredResponse) -> None:
    from rich.text import Text

    console.print("\n[bold]Tokens[/]")
    for number, token in enumerate(result.tokens):
        line = f"  {number:4}  {token.region.name:10}{token.weight:6.2f}  {_visible(token.text)}"
        console.print(Text(line, style=_COLOURS[token.region.name]), soft_wrap=True)


def _visible(text: str) -> str:
    """Text on one line, with nothing in it that a terminal would obey; the end-of-sequence token spells nothing."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return f"│{shown}│" if text else "(end of sequence)"


def _short(text: str | None, limit: int = 100) -> str:
    if text is None:
        return "none"
    shown = _visible(text)[1:-1] if text else ""
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


COMMANDS = (score,)
