"""The command line: what it prints, what it refuses and how it ends. The stages themselves are tested elsewhere."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipelines import cli
from pipelines.cli.options import configuration
from rest_core.errors import Preempted, UserError
from rest_core.operations.result import StageResult


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`rest …` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["rest", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `rest profiles` raise `error`."""

    def callback() -> None:
        raise error

    monkeypatch.setattr(cli.cli.commands["profiles"], "callback", callback)


@pytest.mark.parametrize("code", [75, 130])
def test_a_stop_on_request_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    raising(monkeypatch, Preempted("left after step 3 of 9", exit_code=code))
    assert run_main(monkeypatch, "profiles") == code
    assert capsys.readouterr().err == "left after step 3 of 9\n"


def test_the_commands_of_the_project_are_there() -> None:
    wanted = (
        "run ablate aggregate prepare sft train serve-rollouts eval-bfcl eval-api-bank compare register promote "
        "history lineage serve chat clean compile score ui sync profiles submit status logs retry stop schedule"
    )
    assert set(cli.cli.commands) == set(wanted.split())


def commands() -> list[str]:
    """Every command with its group's name before it; groups themselves hold none of the work."""
    groups = {name: command for name, command in cli.cli.commands.items() if isinstance(command, click.Group)}
    return [
        *(name for name in cli.cli.commands if name not in groups),
        *(f"{name} {inner}" for name, group in groups.items() for inner in group.commands),
    ]


@pytest.mark.parametrize("name", commands())
def test_help_has_examples_that_the_command_accepts(name: str) -> None:
    result = CliRunner().invoke(cli.cli, [*name.split(), "--help"])
    assert result.exit_code == 0
    examples = [line.strip() for line in result.output.splitlines() if line.strip().startswith(f"rest {name}")]
    assert examples
    command: click.Command = cli.cli
    for part in name.split():
        assert isinstance(command, click.Group)
        command = command.commands[part]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for example in examples:
        own = re.split(r" -- | \| ", example)[0]  # what comes behind is for another program
        used = [word for word in own.split() if word.startswith("-") and word != "-"]
        assert set(used) <= options, example


def test_help_imports_none_of_the_heavy_packages() -> None:
    heavy = "torch transformers datasets mlflow kfp matplotlib"
    code = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import cli;"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0;"
        f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--profile", "quickstar"], "did you mean 'quickstart'?"),
        (["run", "--set", "rl.stepz=3"], "did you mean 'steps'?"),
        (["run", "--set", "rl.steps"], "section.key=value"),
        (["run", "--set", "rl.steps=many"], "rl.steps"),
        (["trian"], "Did you mean 'train'?"),
        (["train", "--datset", "x"], "--dataset"),
        (["train", "--out", "x"], "rest train --help"),
        (["score", "missing.txt", "missing.txt"], "missing.txt: No such file"),
        (["compile", "-o", "x.yaml", "--gpus", "-1"], "--gpus"),
        (["compile", "-o", "x.yaml", "--data", __file__], "path of this machine"),
        (["compile", "-o", "x.yaml", "--set", "tracking.uri=http://user:secret@host:5000"], "holds a password"),
        (["run", "--set", "rl.weights={scheme: paper, w_min: 20}"], "w_min (20.0) is above w_max (16.0)"),
    ],
)
def test_wrong_use_is_told_in_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.json, line 3: not JSON"), 2, "error: a.json, line 3: not JSON\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            2,
            "error: /data/x: the disk is full; free some space",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
    ],
)
def test_how_a_command_ends(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(monkeypatch, error)
    assert run_main(monkeypatch, "profiles") == code
    err = capsys.readouterr().err
    assert line in err
    assert len(err.strip().splitlines()) == 1


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError("defect"))
    with pytest.raises(ZeroDivisionError):
        run_main(monkeypatch, "profiles")
    raising(monkeypatch, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        run_main(monkeypatch, "profiles")


def test_data_replaces_the_sources_and_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    config = configuration("quickstart", (), data="mine.jsonl")
    assert [source.location for source in config.data.sources] == [str(tmp_path / "mine.jsonl")]
    assert config.data.sources[0].format == "auto"
    uri = configuration("quickstart", (), data="s3://bucket/x.jsonl")
    assert uri.data.sources[0].location == "s3://bucket/x.jsonl"


def test_api_bank_names_the_files_and_switches_the_stage_on(tmp_path: Path) -> None:
    config = configuration("quickstart", ("api_bank.enabled=false",), api_bank=str(tmp_path))
    assert config.api_bank.enabled
    assert config.api_bank.location == str(tmp_path)


def test_profiles_lists_every_profile() -> None:
    from rest_core.config import profiles

    result = CliRunner().invoke(cli.cli, ["profiles"])
    assert [line.split()[0] for line in result.output.splitlines()] == profiles()


def test_a_stage_tells_its_notes_behind_its_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = StageResult({"data/dropped": 1.0}, notes=("dropped 1 of 3:", "  1  tools missing"))
    monkeypatch.setattr("rest_core.stages.data.prepare_data", lambda **settings: result)
    out = tmp_path / "data"
    assert run_main(monkeypatch, "prepare", "--profile", "tiny", "--run-name", "x", "--out", str(out)) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [*result.notes, f"prepare: done; see {out}"]
