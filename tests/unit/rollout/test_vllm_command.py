"""The command that starts a vLLM server, up to where the server itself begins."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines import cli
from rest_core.config import ModelConfig
from rest_core.errors import UserError
from rest_core.rollout import vllm_worker
from rest_core.rollout.vllm_command import server_command


def command(modules: Path, config: ModelConfig | None = None, **changes: object) -> tuple[list[str], dict[str, str]]:
    options = {"python": "py", "host": "::1", "port": 8001, "weights": "folder", "environment": {"HOME": "/root"}}
    return server_command("folder/model", config or ModelConfig(), modules=modules, **{**options, **changes})  # type: ignore[arg-type]


def value(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_the_server_samples_from_the_policy_and_takes_weights(tmp_path: Path) -> None:
    arguments, environment = command(tmp_path, extra=("--max-model-len", "4096"))
    assert arguments[0] == "py" and arguments[-2:] == ["--max-model-len", "4096"]
    assert value(arguments, "--model") == "folder/model" and value(arguments, "--dtype") == "bfloat16"
    assert (value(arguments, "--host"), value(arguments, "--port")) == ("::1", "8001")
    assert value(arguments, "--generation-config") == "vllm"  # no settings of the checkpoint's
    assert value(arguments, "--logprobs-mode") == "raw_logprobs"
    assert "--trust-remote-code" not in arguments and "--weight-transfer-config" not in arguments
    assert environment["VLLM_SERVER_DEV_MODE"] == "1" and environment["HOME"] == "/root"
    config = ModelConfig(dtype="float32", revision="abc", trust_remote_code=True)
    arguments, _ = command(tmp_path, config, weights="nccl")
    assert value(arguments, "--revision") == "abc" and value(arguments, "--dtype") == "float32"
    assert "--trust-remote-code" in arguments
    assert value(arguments, "--weight-transfer-config") == '{"backend": "nccl"}'


def test_its_workers_find_the_one_module_that_they_need_and_nothing_else(tmp_path: Path) -> None:
    arguments, environment = command(tmp_path, environment={"PYTHONPATH": "/other"})
    folder, other = environment["PYTHONPATH"].split(":")
    assert other == "/other" and [path.name for path in Path(folder).iterdir()] == ["rest_vllm_worker.py"]
    module, _, name = value(arguments, "--worker-extension-cls").partition(".")
    code = f"import sys; sys.path.insert(0, {folder!r}); import {module} as m; print(m.{name}.load_policy.__name__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert shown.stdout.strip() == "load_policy"
    assert command(tmp_path)[1]["PYTHONPATH"] == folder  # the same version of it is written once


def test_the_worker_needs_nothing_of_this_project() -> None:
    tree = ast.parse(Path(vllm_worker.__file__).read_text())
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported and not [name for name in imported if name.split(".")[0] in ("rest_core", "transformers", "vllm")]


def test_the_command_becomes_the_server(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$VLLM_SERVER_DEV_MODE $@"\n')
    script.chmod(0o755)
    arguments = ["serve-rollouts", "--policy", str(tiny_checkpoint), "--python", str(script), "--", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("1 -m vllm.") and done.stdout.rstrip().endswith("--seed 1")
    assert str(tiny_checkpoint) in done.stdout
    missing = CliRunner().invoke(cli.cli, ["serve-rollouts", "--policy", str(tiny_checkpoint), "--python", "nowhere"])
    assert isinstance(missing.exception, UserError) and "nowhere: no such program" in str(missing.exception)
