"""ShareGPT's "conversations", as LLaMA-Factory reads them and Hermes' function-calling data and ToolACE have them.

conversations  the dialogue (`rest_core.data.readers.chat` has the spellings of a turn): {"from", "value"} or
               {"role", "content"}; calls stand in turns of their own, or in an assistant's text: as `<tool_call>`,
               or in ToolACE's notation `[Func Name(arg="x", n=1), …]`.
tools          a list, or a JSON string of one; else the system text lists them.
system         a system text beside the dialogue. ToolACE's (Team-ACE/ToolACE, data.json) holds instructions and the
               tools as a JSON array ("… functions in JSON format that you can invoke:\\n[…]"); it asks for
               calls in that notation, so it is replaced by ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_core.data.dialogues import Dialogue
from rest_core.data.fields import Record, text
from rest_core.data.readers import chat, tool_lists


def read(record: Record) -> Dialogue:
    entries = chat.numbered(record.fields.get("conversations"), "conversations")
    if system := record.fields.get("system"):
        entries.insert(0, ("system", chat.Plain("system", text(system, "system"))))
    return chat.dialogue(record, entries, "conversations")


def is_toolace(fields: Mapping[str, Any]) -> bool:
    """Whether a record is ToolACE's: only there the system text lists the tools."""
    system = fields["system"]
    return isinstance(system, str) and not fields.get("tools") and tool_lists.begins_array(system)
