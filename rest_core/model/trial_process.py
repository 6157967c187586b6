"""The process in which a checkpoint is tried; `trial.py` starts it and reads what it writes.

Reads requests in JSON on standard input, one a line: {"where": a folder or hub id, "source": as the user calls it,
"config": settings of `model`, "steps": [...]}. Writes lines: the name of each step before it begins, what is wrong as
JSON (a text, or null), and "ended" with the exit status of the trial's own process.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel  # the second with all that models need, once

from rest_core.chat import Refused, with_template
from rest_core.config import ModelConfig
from rest_core.errors import UserError, described
from rest_core.model import loading
from rest_core.model.context import context_of
from rest_core.model.trial import GIB, STEPS, TOO_LARGE

_SECONDS = 5  # of computing that a step may take; honest ones take a tenth
_MORE_SECONDS = 25  # at most, for large files:
_BYTES_A_SECOND = 4_000_000  # of a tokenizer; honest ones take a fifth of that
_PATIENCE = 120  # seconds that a trial of a folder may last: computing is counted, waiting is not
_MOST_CHARACTERS = 1_000_000  # of a short dialogue; honest templates write a few thousand
_PER_BYTE = 4  # parameters: twice what the tightest packing holds
_ATTENTION = (None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
_CALL = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
# Runs of one kind, behind which regular expressions that can be read in many ways try them all.
_TEXT = "\n".join(f"{piece * 300}!" for piece in ("a", "A", " ", "1", "\t", ".", "é", "aA1 .", "e"))
_SYSTEM = {"role": "system", "content": "s"}
_DIALOGUE: list[dict[str, Any]] = [
    {"role": "user", "content": _TEXT},
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "c", "tool_call_id": _CALL["id"], "name": "f"},
    {"role": "assistant", "content": "d"},
    {"role": "user", "content": "e"},
]


def _try_config(where: str, source: str, config: ModelConfig) -> None:
    """Read the description of the model, and build the model without memory for its parameters."""
    architecture = loading.read_config(where, source, config)
    context_of(architecture)
    text = architecture.get_text_config()
    for name in _SIZES:
        size = getattr(text, name, 1)
        if not isinstance(size, int) or size < 1:
            raise UserError(f"model {source}: config.json: {name} is {size!r}")
    # The name of any other is that of a repository, whose code would be fetched and run.
    if (attention := architecture._attn_implementation) not in _ATTENTION:
        known = ", ".join(filter(None, _ATTENTION))
        raise UserError(f"model {source}: config.json: no such attention as {attention!r} (known: {known})")
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(architecture)
    parameters = sum(parameter.numel() for parameter in empty.parameters())
    weights = sum(path.stat().st_size for path in Path(where).glob("*.safetensors"))
    if weights and config.init == "pretrained" and parameters > _PER_BYTE * weights:
        raise UserError(
            f"model {source}: config.json describes {parameters:,} parameters, and the weights are {weights:,} bytes; "
            "get it again"
        )


def _try_tokenizer(where: str, source: str, config: ModelConfig) -> None:
    loading.bare_tokenizer(where, source, config)(_TEXT, add_special_tokens=False)


def _try_template(where: str, source: str, config: ModelConfig) -> None:
    """Write prompts of every kind of turn; that a template refuses some is no matter."""
    tokenizer = loading.read_tokenizer(where, source, config)
    dialogues: list[list[dict[str, Any]]] = [[_SYSTEM, *_DIALOGUE], _DIALOGUE[:1], (_DIALOGUE * 3)[:-2]]
    for messages, tools in itertools.product(dialogues, ([{"type": "function", "function": _TOOL}], None)):
        try:
            written = with_template(tokenizer, messages, tools=tools, add_generation_prompt=True, tokenize=False)
        except Refused:
            continue
        if len(written) > _MOST_CHARACTERS:
            raise UserError(f"model {source}: its chat template makes {len(written):,} characters of a short dialogue")
        tokenizer(written, add_special_tokens=False)


_TRIALS = {"config": _try_config, "tokenizer": _try_tokenizer, "template": _try_template}


def _limit_computing(where: str) -> None:
    """Let the next step have its seconds."""
    files = sum(path.stat().st_size for path in Path(where).glob("*.json"))
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime) + 1 + _SECONDS + min(_MORE_SECONDS, files // _BYTES_A_SECOND)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def problem(step: str, where: str, source: str, config: ModelConfig) -> str | None:
    """What goes wrong in a step, in one line; None where nothing does."""
    try:
        _TRIALS[step](where, source, config)
    except MemoryError:
        return f"model {source}: {TOO_LARGE.format(STEPS[step])}"
    except UserError as error:
        return str(error)
    except BaseException as error:  # whatever a checkpoint makes libraries raise; those in Rust raise no Exception
        return f"model {source}: its {STEPS[step]} cannot be used: {described(error)}"
    return None


def _try(request: dict[str, Any], out: int) -> None:
    """Write the steps' names and what is wrong; may end this process, by the limits that it sets."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + GIB * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if Path(request["where"]).is_dir():
        signal.alarm(_PATIENCE)
    found = None
    for step in request["steps"]:
        os.write(out, f"{step}\n".encode())
        _limit_computing(request["where"])
        found = problem(step, request["where"], request["source"], ModelConfig(**request["config"]))
        if found is not None:
            break
    os.write(out, f"{json.dumps(found)}\n".encode())


def _serve(out: int) -> None:
    """A process of its own for each request, and at last its exit status."""
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            _try(json.loads(line), out)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.write(out, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    results = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
    _serve(results)
