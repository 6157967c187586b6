"""Keys of model servers: from the environment, never from a command line or a configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from rest_core.errors import UserError

OPENAI_VARIABLE = "OPENAI_API_KEY"
VLLM_VARIABLE = "VLLM_API_KEY"  # vLLM's own: a server that is started with it asks for this key
_SENDABLE = re.compile(r"[!-~]+")  # what a header takes
_SHORTEST_SECRET = 16  # characters; a shorter key stands in for none ("EMPTY"), and may be a word of an answer


def api_key(*variables: str) -> str | None:
    """The key in the first of these variables that is set.

    Raises:
        UserError: it cannot be sent.
    """
    for name in variables:
        if key := (os.environ.get(name) or "").strip():
            if not _SENDABLE.fullmatch(key):
                raise UserError(f"{name}: holds characters that no API key has; set it to the key alone")
            return key
    return None


def without_key(content: bytes, key: str | None) -> bytes:
    """What a server answers, without the key where it repeats that."""
    return content if key is None or len(key) < _SHORTEST_SECRET else content.replace(key.encode(), b"***")


def require_no_key(vllm_options: Iterable[str]) -> None:
    """Refuse vLLM's option for a key: everybody on the machine reads command lines, and ours are printed.

    Raises:
        UserError: the option is there.
    """
    for word in vllm_options:
        if word.partition("=")[0].replace("_", "-") == "--api-key":
            raise UserError(
                f"--api-key: a command line is no place for a key; set {VLLM_VARIABLE} in the server's environment, or "
                "serving.api_key_secret in platform.yaml"
            )
