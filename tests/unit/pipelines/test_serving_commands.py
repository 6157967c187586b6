"""`rest serve` and `rest chat` on checkpoints and on versions of a real registry on SQLite."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient

from pipelines.cli import cli
from rest_core.config import ModelConfig, TrackingConfig
from rest_core.model.loading import load_model, save_policy
from rest_core.operations.tracking import store
from rest_core.serving.plugin import PLUGIN_FILE
from rest_core.styles.create import built_in_style

TOOLS = Path(__file__).resolve().parents[3] / "docs" / "examples" / "tools.py"


@pytest.fixture
def trained(tiny_checkpoint: Path, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A checkpoint as a training in the style `compact` leaves it."""
    model = load_model(tiny_checkpoint, ModelConfig(source=str(tiny_checkpoint)))
    save_policy(model, tiny_tokenizer, tmp_path / "trained", dtype=torch.float32, style=built_in_style("compact"))
    return tmp_path / "trained"


def test_a_checkpoint_can_be_read_by_others_and_has_the_parser_beside_it(trained: Path) -> None:
    assert (trained / PLUGIN_FILE).is_file()
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in trained.iterdir())


def test_serve_prints_the_command(trained: Path) -> None:
    result = CliRunner().invoke(
        cli, ["serve", str(trained), "--dry-run", "--python", "true", "--", "--dtype", "float32"]
    )
    assert result.exit_code == 0, result.output
    words = result.stdout.split()
    assert words[words.index("--model") + 1] == str(trained)
    assert words[words.index("--tool-parser-plugin") + 1] == str(trained / PLUGIN_FILE)
    assert words[-2:] == ["--dtype", "float32"]


def test_serve_takes_a_registered_version(trained: Path, tracking: TrackingConfig) -> None:
    client: MlflowClient = store.open_client(str(tracking.uri))
    client.create_registered_model("tools")
    client.create_model_version("tools", trained.as_uri())
    client.set_registered_model_alias("tools", "champion", "1")
    options = ["--dry-run", "--python", "true", "--set", f"tracking.uri={tracking.uri}"]
    named = ["--set", "registry.name=tools"]
    for model in (["tools@1"], ["tools@champion"], ["1", *named], named):
        result = CliRunner().invoke(cli, ["serve", *options, *model])
        assert result.exit_code == 0, result.output
        assert f"--model {trained}" in result.stdout and "--served-model-name tools" in result.stdout
    result = CliRunner().invoke(cli, ["serve", *options, *named, "--", "--max-model-len", "4096"])
    assert result.stdout.split()[-2:] == ["--max-model-len", "4096"], result.output
    result = CliRunner().invoke(cli, ["serve", *options, "--prot", "8001"])
    assert result.exit_code != 0 and "--prot" in result.output
    result = CliRunner().invoke(cli, ["serve", *options, "tools@2"])
    assert "tools has no version 2 (there: 1)" in str(result.exception)
    result = CliRunner().invoke(cli, ["serve", *options, "--python", "no-such-program", "tools@1"])
    assert "no such program" in str(result.exception)


def test_a_person_talks_to_a_checkpoint(trained: Path, tiny_checkpoint: Path) -> None:
    command = ["chat", str(trained), "--tools", str(TOOLS), "--max-tokens", "8", "--set", "model.dtype=float32"]
    # The prompt with two tools is longer than what this model sees.
    result = CliRunner().invoke(cli, command, input="Hi\n\n")
    assert "the dialogue has ended: prompt of" in str(result.exception)
    result = CliRunner().invoke(cli, [part for part in command if part not in ("--tools", str(TOOLS))], input="Hi\n\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("> ")
    shutil.rmtree(trained)
    result = CliRunner().invoke(cli, ["chat", str(trained), "--set", "tracking.uri=sqlite:////none/none.db"])
    assert result.exit_code != 0
