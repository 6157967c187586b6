"""The one form that readers bring their records into, and the way from there to single-step samples.

A dialogue of K assistant turns becomes K samples, as in ResT and ToolRL: the history is the prompt, the turn is the
reference. Every part knows where the user's record has it, so that whatever is wrong can be said in the user's terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rest_core.data.fields import Record, Rejected
from rest_core.data.prompts import THINK_CALL, THINK_RESPOND, Style, render
from rest_core.data.tools import by_name, declares, same_name
from rest_core.records import Message, Origin, Role, Sample, Tool, ToolCall
from rest_core.response import render as render_response

# The answer where the data says that no call is right, and gives no words for it.
NO_TOOL_FITS = "None of the available tools fits this request."
_EARLIER = "an earlier turn cannot be read"


@dataclass(frozen=True)
class Turn:
    """A turn of a dialogue; only an assistant's has calls and thoughts, and it may lack words."""

    role: Role
    text: str | None
    field: str  # where the record has it: "messages[3]"
    calls: tuple[ToolCall, ...] = ()
    call_fields: tuple[str, ...] = ()  # as many as calls
    think: str | None = None

    def message(self) -> Message:
        if self.role == "assistant":
            return assistant_turn(self.calls, self.text, self.think)
        return Message(self.role, self.text or "")


@dataclass(frozen=True)
class Dialogue:
    """What a record holds.

    `turns` ends where a turn cannot be read: there stands why. Only turns from `asked_from` on are wanted as answers.
    """

    tools: tuple[Tool, ...]
    turns: tuple[Turn | Rejected, ...]
    prompt_field: str
    tools_field: str
    asked_from: int = 0


def assistant_turn(calls: Sequence[ToolCall], response: str | None, think: str | None = None) -> Message:
    """An assistant turn in the project's response format; without a thought of its own it gets ToolRL's."""
    thought = think or (THINK_CALL if calls else THINK_RESPOND)
    return Message("assistant", render_response(think=thought, calls=calls, response=response or None))


def samples(dialogue: Dialogue, record: Record, *, style: Style, source: str) -> Iterator[Sample | Rejected]:
    """A sample for every assistant turn that is wanted and has a user turn before it.

    A turn that cannot be read takes the later ones along: they build on it. The sample of turn n has the id
    `source/name`, `.n` added where the dialogue has several.
    """
    answers = [turn for turn in dialogue.turns if isinstance(turn, Turn) and turn.role == "assistant"]
    history: list[Message] = []
    asked = False
    for place, turn in enumerate(dialogue.turns):
        if isinstance(turn, Rejected):
            yield turn
            continue
        turn = _without_filled_in(turn, dialogue.tools)
        message = turn.message()
        if turn.role == "assistant" and asked and place >= dialogue.asked_from:
            yield Sample(
                id=f"{source}/{record.name}.{place}" if len(answers) > 1 else f"{source}/{record.name}",
                source=source,
                prompt=render(style, dialogue.tools, history),
                tools=dialogue.tools,
                reference=message.content,
                origin=Origin(record.where, dialogue.prompt_field, dialogue.tools_field, turn.field, turn.call_fields),
            )
        asked = asked or turn.role == "user"
        history.append(message)


def earlier_unreadable(record: Record, field: str) -> Rejected:
    """What becomes of an assistant turn behind one that cannot be read."""
    return Rejected(_EARLIER, f"{record.where}: field {field!r}")


def _without_filled_in(turn: Turn, tools: Sequence[Tool]) -> Turn:
    """Without nulls that no one wrote: JSON that was exported from Arrow has the keys of other rows' calls as null.

    Those are arguments that the tool does not have. Null for an argument that it has may be meant, and stays.
    """

    if not any(None in call.arguments.values() for call in turn.calls):
        return turn
    known = by_name(tools)

    def cleaned(call: ToolCall) -> ToolCall:
        tool = known.get(same_name(call.name))
        if tool is None:
            return call
        kept = {name: value for name, value in call.arguments.items() if value is not None or declares(tool, name)}
        return replace(call, arguments=kept)

    return replace(turn, calls=tuple(map(cleaned, turn.calls)))
