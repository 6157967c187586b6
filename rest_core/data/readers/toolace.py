"""ToolACE as published on the hub (Team-ACE/ToolACE, data.json): records of {system, conversations}.

`system` holds instructions and the tools as a JSON array ("… functions in JSON format that you can invoke:\\n[…]");
`conversations` is a list of {from: "user" | "assistant" | "tool", value}. An assistant's calls are written
`[Func Name(arg="x", n=1), …]`; any other value is said to the user. A tool's value is its result. The published system
text tells the model to write calls in that notation, so it is replaced by ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from rest_core.data.fields import Record, Rejected
from rest_core.data.prompts import Style
from rest_core.data.readers import sharegpt
from rest_core.records import Sample

NAME = "toolace"
KEYS = frozenset({"system", "conversations"})


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample an assistant turn."""
    yield from sharegpt.samples(record, style, NAME)
