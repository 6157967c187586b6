"""Words of others (a server, a library, a name in a database) as they are shown: in one line, nothing for a terminal to
obey."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # the last: halves of a character, not printable


def printable(text: str) -> str:
    """`text` with a space for every line end, escape, bell and the like."""
    return _CONTROL.sub(" ", text)


def one_line(text: object, *, longest: int = 300) -> str:
    """`text` in one line of at most `longest` characters."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    line = " ".join(printable(str(text)).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
