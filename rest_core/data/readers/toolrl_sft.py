"""ToolRL's SFT data: a JSON array of {instruction, input, output} (dataset/rlla_4k_raw/rlla_sft.json).

`instruction` is the system message with the tools, `input` the user message with the dialogue, `output` the response.
The prompt is kept word for word.
"""

from __future__ import annotations

from collections.abc import Iterator

from rest_core.data.fields import Record, Rejected, text
from rest_core.data.prompts import Style, listed_tools
from rest_core.records import Message, Origin, Sample

NAME = "toolrl-sft"
KEYS = frozenset({"instruction", "input", "output"})


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample a record; `style` is not used, the data brings its own prompt."""
    system = text(record.fields.get("instruction"), "instruction")
    yield Sample(
        id=f"{NAME}/{record.name}",
        source=NAME,
        prompt=(Message("system", system), Message("user", text(record.fields.get("input"), "input"))),
        tools=listed_tools(system, "instruction"),
        reference=text(record.fields.get("output"), "output").strip(),
        origin=Origin(record.where, "input", "instruction", "output"),
    )
