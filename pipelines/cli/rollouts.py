"""`rest serve-rollouts`: a vLLM server for `rest train`."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import click

from pipelines.cli.options import configuration, configured
from rest_core.api_keys import require_no_key
from rest_core.errors import UserError


@click.command("serve-rollouts", context_settings={"ignore_unknown_options": True})
@configured
@click.option(
    "--policy", required=True, metavar="DIR", help="The policy that will be trained: folder, hub id or s3:// URI."
)
@click.option(
    "--python",
    default=sys.executable,
    metavar="FILE",
    help="Interpreter of an environment with vLLM; default: this one. `make vllm` makes one: .venv-vllm/bin/python",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen at.")
@click.argument("vllm_options", nargs=-1, type=click.UNPROCESSED)
def serve_rollouts(
    profile: str,
    overrides: tuple[str, ...],
    policy: str,
    python: str,
    host: str,
    port: int,
    vllm_options: tuple[str, ...],
) -> None:
    """Serve a policy for rollouts with vLLM.

    A training with rl.engine.engine=vllm_server samples from it and replaces its weights after each update. Who can
    reach the server can replace its weights too: keep it inside. With VLLM_API_KEY in the environment of server and
    training, responses need this key; what replaces weights does not. Options behind `--` go to `vllm serve`.

    \b
    Examples:
      rest serve-rollouts --policy runs/sft
      rest serve-rollouts --policy runs/sft --python .venv-vllm/bin/python -- --max-model-len 4096
      rest serve-rollouts --policy Qwen/Qwen3-4B-Instruct-2507 --host 0.0.0.0 -- --tensor-parallel-size 2
    """
    require_no_key(vllm_options)
    config = configuration(profile, overrides)
    from rest_core import storage
    from rest_core.config import VllmServerConfig
    from rest_core.model.loading import resolve
    from rest_core.operations import policies
    from rest_core.rollout.vllm_command import server_command

    interpreter = shutil.which(python)
    if interpreter is None:
        raise UserError(f"--python {python}: no such program; give the interpreter of an environment with vLLM")
    engine: Any = config.rl.engine
    arguments, environment = server_command(
        resolve(policies.fetched(policy)),
        config.model,
        python=interpreter,
        host=host,
        port=port,
        weights=engine.weights if isinstance(engine, VllmServerConfig) else "folder",
        modules=storage.cache_folder() / "vllm",
        extra=vllm_options,
        environment=os.environ,
    )
    click.echo(" ".join(arguments), err=True)
    os.execve(interpreter, arguments, environment)


COMMANDS = (serve_rollouts,)
