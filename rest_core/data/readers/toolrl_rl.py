"""ToolRL's RL data: parquet with `prompt` and `reward_model.ground_truth` (dataset/rlla_4k).

`prompt` is a chat of a system message with the tools and a user message with the dialogue; `ground_truth` is the
reference response. Other columns (data_source, ability, extra_info) say nothing more. The prompt is kept word for
word.
"""

from __future__ import annotations

from collections.abc import Iterator

from rest_core.data.fields import Record, Rejected, Unreadable, items, mapping, text
from rest_core.data.prompts import Style, listed_tools
from rest_core.records import Message, Origin, Sample

NAME = "toolrl-rl"
KEYS = frozenset({"prompt", "reward_model"})
ANSWER = "reward_model.ground_truth"


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample a record; `style` is not used, the data brings its own prompt."""
    prompt = tuple(
        _message(value, f"prompt[{n}]") for n, value in enumerate(items(record.fields.get("prompt"), "prompt"))
    )
    told_in = [n for n, message in enumerate(prompt) if message.role == "system"]
    tools_field = f"prompt[{told_in[0]}].content" if told_in else "prompt"
    system = "\n\n".join(prompt[n].content for n in told_in)
    reward_model = mapping(record.fields.get("reward_model"), "reward_model")
    yield Sample(
        id=f"{NAME}/{record.name}",
        source=NAME,
        prompt=prompt,
        tools=listed_tools(system, tools_field),
        reference=text(reward_model.get("ground_truth"), ANSWER).strip(),
        origin=Origin(record.where, "prompt", tools_field, ANSWER),
    )


def _message(value: object, field: str) -> Message:
    fields = mapping(value, field)
    role = fields.get("role")
    if role not in ("system", "user", "assistant", "tool"):
        raise Unreadable("unknown role", f"{field}.role", repr(role))
    return Message(role, text(fields.get("content"), f"{field}.content"))
