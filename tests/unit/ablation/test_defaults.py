"""Settings that an ablation has of its own, below what the user sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from pipelines.cli.pipeline_options import PipelineOptions, pipeline_options
from rest_core.ablation import settings
from rest_core.config import Config


@click.command()
@pipeline_options
def described(chosen: PipelineOptions) -> None:
    click.echo(chosen.config.rl.advantage_std)


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEFAULTS", ("rl.advantage_std=none",))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--pipeline", "ablation"], "none"),
        (["--pipeline", "ablation", "--set", "rl.advantage_std=batch"], "batch"),
        ([], "group"),
    ],
)
def test_on_a_cluster(options: Sequence[str], wanted: str) -> None:
    done = CliRunner().invoke(described, [*options, "--profile", "tiny"])
    assert done.exit_code == 0 and done.output.strip() == wanted


@pytest.mark.parametrize(("options", "wanted"), [([], "none"), (["--set", "rl.advantage_std=batch"], "batch")])
def test_on_this_machine(options: Sequence[str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def run(config: Config, *_: Any, **__: Any) -> None:
        seen.append(config)

    monkeypatch.setattr("pipelines.local_ablation.run_ablation", run)
    monkeypatch.setattr("pipelines.local_ablation.show", lambda *_: None)
    done = CliRunner().invoke(cli, ["ablate", "--profile", "tiny", *options])
    assert done.exit_code == 0, done.output
    assert seen[0].rl.advantage_std == wanted
