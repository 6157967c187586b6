"""ToolRL's data: a system message with the tools, a user message with the dialogue, and the reference response.

RL (dataset/rlla_4k): parquet with `prompt`, a chat of the two messages, and `reward_model.ground_truth`. Other columns
(data_source, ability, extra_info) say nothing more.
SFT (dataset/rlla_4k_raw/rlla_sft.json): a JSON array of {instruction, input, output}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_core.data.dialogues import Verbatim
from rest_core.data.fields import Record, Unreadable, items, mapping, text
from rest_core.data.prompts import listed_tools, lists_tools
from rest_core.records import Message


def read_rl(record: Record) -> Verbatim:
    messages = items(record.fields.get("prompt"), "prompt")
    prompt = tuple(_message(value, f"prompt[{n}]") for n, value in enumerate(messages))
    system = [n for n, message in enumerate(prompt) if message.role == "system"]
    tools_field = f"prompt[{system[0]}].content" if system else "prompt"
    reward_model = mapping(record.fields.get("reward_model"), "reward_model")
    answer_field = "reward_model.ground_truth"
    return Verbatim(
        prompt,
        listed_tools("\n\n".join(prompt[n].content for n in system), tools_field),
        text(reward_model.get("ground_truth"), answer_field).strip(),
        "prompt",
        tools_field,
        answer_field,
    )


def read_sft(record: Record) -> Verbatim:
    system = text(record.fields.get("instruction"), "instruction")
    prompt = (Message("system", system), Message("user", text(record.fields.get("input"), "input")))
    tools, reference = listed_tools(system, "instruction"), text(record.fields.get("output"), "output").strip()
    return Verbatim(prompt, tools, reference, "input", "instruction", "output")


def has_tools(fields: Mapping[str, Any]) -> bool:
    """Whether a record of SFT's fields is ToolRL's: Alpaca's data has the same fields, and no tools."""
    return isinstance(fields["instruction"], str) and lists_tools(fields["instruction"])


def _message(value: object, field: str) -> Message:
    fields = mapping(value, field)
    role = fields.get("role")
    if role not in ("system", "user", "assistant", "tool"):
        raise Unreadable("unknown role", f"{field}.role", repr(role))
    return Message(role, text(fields.get("content"), f"{field}.content"))
