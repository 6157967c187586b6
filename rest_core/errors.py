"""Errors that a user can cause and can mend.

A `UserError` is reported in one line (what was wrong, where, what to do) and ends the process with exit code 2.
Everything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rest_core.credentials import redact

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same thing again
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# What a terminal would obey; the last are halves of a character, which cannot be printed.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """Something in the input, the configuration or the surroundings that the user can mend.

    Its message goes to terminals, logs, reports and MLflow: credentials of addresses are hidden in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class NotFiniteLogits(UserError):
    """A model's logits are NaN or infinite, so that nothing can be sampled from it or trained on it."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are NaN or infinite: its weights are broken, or too large for the compute type; take "
            "another checkpoint, or set model.dtype=float32"
        )


class Preempted(Exception):
    """The process was asked to stop (SIGTERM, SIGINT) and has left its work so that it can be resumed."""

    def __init__(self, message: str, *, exit_code: int = EXIT_PREEMPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word closest to `word`: `; did you mean 'x'?`, or the empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around imports of optional packages: one that is missing is a `UserError` that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed; install it with: pip install 'rest-pipelines[{name}]'"
        ) from None


def one_line(text: object, *, longest: int = 2000) -> str:
    """`text`, of an error or of somebody else, in one line of at most `longest` characters, safe for a terminal."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    line = " ".join(_CONTROL.sub(" ", str(text)).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def with_notes(error: BaseException) -> str:
    """An error's message, and below it what whoever passed it on has added."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def described(error: BaseException, *, longest: int = 2000) -> str:
    """An error in one line, with its type where it is no `UserError`."""
    text = one_line(error, longest=longest)
    return text if isinstance(error, (UserError, Preempted)) else f"{type(error).__name__}: {text}".removesuffix(": ")
