"""`rest serve | chat`: a trained model in use."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import FILE, configuration, configured, local_path
from rest_core.api_keys import require_no_key
from rest_core.config import Config
from rest_core.errors import UserError

if TYPE_CHECKING:
    from rest_core.evaluation.policy import Policy

_VLLM = Path(".venv-vllm/bin/python")  # where `make vllm` makes its environment
_MAX_STEPS = 6  # of calls in a turn: a small model repeats itself
_DEFAULT = "champion"
_MODEL = click.argument("model", default=_DEFAULT)


@click.command()
@_MODEL
@configured
@click.option(
    "--python",
    metavar="FILE",
    help=f"Interpreter of an environment with vLLM; default: {_VLLM} where there is one (`make vllm`), else this one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen at.")
@click.option("--dry-run", is_flag=True, help="Print the command, start nothing.")
@click.option(
    "--kserve", type=FILE, metavar="PLATFORM.YAML", help="Print the manifest of a KServe InferenceService instead."
)
@click.argument("vllm_options", nargs=-1, type=click.UNPROCESSED)
def serve(
    model: str,
    profile: str,
    overrides: tuple[str, ...],
    python: str | None,
    host: str,
    port: int,
    dry_run: bool,
    kserve: Path | None,
    vllm_options: tuple[str, ...],
) -> None:
    """Serve a trained model with vLLM, behind OpenAI's API.

    MODEL is an alias or number of the registered model (default: champion), NAME@ALIAS, or the folder of a checkpoint.
    `tools=` of requests goes into the prompt that it was trained on, and its calls come back as `tool_calls`. Options
    behind `--` go to `vllm serve`. With VLLM_API_KEY in the environment the server asks for this key.

    \b
    Examples:
      rest serve
      rest serve 3 --port 8001
      rest serve runs/latest/model -- --max-model-len 4096
      rest serve --kserve deploy/platform.yaml | kubectl apply -f -
    """
    from rest_core.serving.vllm_serve import serve_command

    if model.startswith("-"):  # behind `--`, without a model before it
        model, vllm_options = _DEFAULT, (model, *vllm_options)
    require_no_key(vllm_options)
    if kserve is not None:
        _print_manifest(model, configuration(profile, overrides), kserve, vllm_options)
        return
    chosen = python or (str(_VLLM) if _VLLM.is_file() else sys.executable)
    interpreter = shutil.which(chosen)
    if interpreter is None:
        raise UserError(f"--python {chosen}: no such program; give the interpreter of an environment with vLLM")
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    if not dry_run and subprocess.run([interpreter, "-c", probe], check=False).returncode != 0:
        raise UserError(
            f"--python {chosen}: it has no vLLM; give the interpreter of an environment with it (make vllm)"
        )
    name, folder = _located(model, configuration(profile, overrides))
    command = serve_command(folder, name=name, python=interpreter, host=host, port=port, extra=vllm_options)
    click.echo(shlex.join(command), err=not dry_run)
    if not dry_run:
        os.execve(interpreter, command, {"VLLM_NO_USAGE_STATS": "1", **os.environ})


@click.command()
@_MODEL
@configured
@click.option("--tools", type=FILE, metavar="FILE", help="Python file; its functions are the tools.")
@click.option("--url", metavar="URL", help="Talk to a server (`rest serve`: http://127.0.0.1:8000/v1) instead.")
@click.option("--max-tokens", default=512, show_default=True, type=click.IntRange(1), help="Of a response.")
def chat(
    model: str,
    profile: str,
    overrides: tuple[str, ...],
    tools: Path | None,
    url: str | None,
    max_tokens: int,
) -> None:
    """Talk to a trained model, which may call the functions of a Python file.

    MODEL is as in `rest serve`; with --url it is the name under which the server has it. The functions need type hints
    and a docstring. They are executed with what the model writes: give it no function that must not be called. An
    empty line ends the dialogue. A server's key comes from OPENAI_API_KEY, or else VLLM_API_KEY.

    \b
    Examples:
      rest chat --tools docs/examples/tools.py
      rest chat runs/latest/model --tools my_tools.py
      rest chat rest-tool-use --url http://127.0.0.1:8000/v1 --tools my_tools.py
    """
    from rest_core.config import GenerationConfig
    from rest_core.environments.dialogue import run_dialogues
    from rest_core.evaluation.policy import Chat
    from rest_core.serving.terminal_chat import TerminalChat, functions_of

    functions = {} if tools is None else functions_of(tools)
    generation = GenerationConfig(max_prompt_tokens=16384, max_response_tokens=max_tokens)
    policy = _policy(model, url, configuration(profile, overrides), generation)
    environment = TerminalChat(functions, _ask, click.echo, policy.reader(Chat((), ())))
    (dialogue,) = run_dialogues([environment], policy, generation, max_steps=_MAX_STEPS)
    if dialogue.error is not None:
        raise UserError(f"the dialogue has ended: {dialogue.error}")


def _policy(model: str, url: str | None, config: Config, generation: Any) -> Policy:
    from rest_core.serving.checkpoint_style import as_trained
    from rest_core.stages import policies

    if url is not None:
        endpoint = config.evaluation.model_copy(
            update={"endpoint": config.evaluation.endpoint.model_copy(update={"prompting": "tools"})}
        )
        # A journal of answers belongs to it, which no other dialogue may read.
        journal = Path(tempfile.mkdtemp(prefix="rest-chat-"))
        return policies.remote(f"openai:{model}@{url}", config.model, endpoint, journal)
    name, folder = _located(model, config)
    prompted = as_trained(folder, config.model)
    return policies.local(name, folder, prompted, config.evaluation, generation)


def _ask() -> str | None:
    try:
        return click.prompt(">", prompt_suffix=" ", default="", show_default=False) or None
    except click.Abort:
        return None


def _print_manifest(model: str, config: Config, platform_file: Path, vllm_options: tuple[str, ...]) -> None:
    import yaml

    from pipelines.cluster.kserve import service_of
    from pipelines.platform import load_platform
    from rest_core.operations.kserve import inference_service
    from rest_core.operations.tracking import versions

    platform = load_platform(platform_file)
    if vllm_options:
        serving = platform.serving.model_copy(update={"vllm_options": (*platform.serving.vllm_options, *vllm_options)})
        platform = platform.model_copy(update={"serving": serving})
    name, at, alias = model.rpartition("@")
    version = versions.version(config.tracking, name if at else config.registry.name, alias)
    manifest = inference_service(version, service_of(platform, alias))
    click.echo(yaml.safe_dump(manifest, sort_keys=False, width=120), nl=False)


def _located(model: str, config: Config) -> tuple[str, Path]:
    """The name and the folder of a checkpoint: itself, or that of a registered version."""
    if (folder := local_path(model)) is not None and folder.is_dir():
        from rest_core.model.loading import resolve
        from rest_core.operations import policies

        return folder.absolute().name, Path(resolve(policies.fetched(folder)))
    from rest_core.operations.tracking import versions

    name, at, number = model.rpartition("@")
    found = versions.version(config.tracking, name if at else config.registry.name, number)
    return found.name, found.fetch()


COMMANDS = (serve, chat)
