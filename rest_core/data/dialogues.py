"""The form that readers bring their records into, and the way from there to single-step samples.

A dialogue of K assistant turns becomes K samples, as in ResT and ToolRL: the history is the prompt, the turn is the
reference. Every part knows where the user's record has it, so that problems can be named in the user's terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rest_core.data.fields import Record, Rejected, Unreadable
from rest_core.data.tools import by_name, declares, same_name
from rest_core.records import Message, Origin, Role, Sample, Tool, ToolCall
from rest_core.styles.style import Style

# The answer where the data says that no call is right, and has no text for it.
NO_TOOL_FITS = "None of the available tools fits this request."
_MAX_ANSWERS = 500  # of a dialogue: each is a sample with all before it in its prompt; published data stays below 100


@dataclass(frozen=True)
class Turn:
    """A turn of a dialogue; only an assistant's has calls and thoughts, and it may lack a text."""

    role: Role
    text: str | None
    field: str  # where the record has it: "messages[3]"
    calls: tuple[ToolCall, ...] = ()
    call_fields: tuple[str, ...] = ()  # as many as calls
    think: str | None = None

    def message(self, style: Style) -> Message:
        if self.role == "assistant":
            return style.assistant_turn(self.calls, self.text, self.think)
        return Message(self.role, self.text or "")


@dataclass(frozen=True)
class Dialogue:
    """A record as tools and turns.

    `turns` ends where a turn cannot be read, with the reason. Only turns from `asked_from` on are wanted as answers;
    `unanswered` is raised where there is none.
    """

    tools: tuple[Tool, ...]
    turns: tuple[Turn | Rejected, ...]
    prompt_field: str
    tools_field: str
    asked_from: int = 0
    unanswered: Unreadable | None = None


@dataclass(frozen=True)
class Verbatim:
    """A record that brings a prompt of its own and a reference in our format, both kept word for word."""

    prompt: tuple[Message, ...]
    tools: tuple[Tool, ...]
    reference: str
    prompt_field: str
    tools_field: str
    reference_field: str


def samples(content: Dialogue | Verbatim, record: Record, *, style: Style, source: str) -> Iterator[Sample | Rejected]:
    """A sample for every assistant turn that is wanted and has a user turn before it.

    A turn that cannot be read takes the later ones along: they build on it; of a dialogue that is too long the
    first `_MAX_ANSWERS` are given. The sample of turn n has the id
    `source/name`, `.n` added where the dialogue has several.

    Raises:
        Unreadable: there is no such turn.
    """
    id_ = f"{source}/{record.name}"
    if isinstance(content, Verbatim):
        origin = Origin(record.where, content.prompt_field, content.tools_field, content.reference_field)
        yield Sample(id_, source, content.prompt, content.tools, content.reference, origin)
        return
    several = sum(isinstance(turn, Turn) and turn.role == "assistant" for turn in content.turns) > 1
    history: list[Message] = []
    asked = found = False
    answers = 0
    for place, turn in enumerate(content.turns):
        if isinstance(turn, Rejected):
            found = True
            yield turn
            continue
        turn = _without_filled_in(turn, content.tools)
        message = turn.message(style)
        if turn.role == "assistant" and asked and place >= content.asked_from:
            found = True
            answers += 1
            if answers > _MAX_ANSWERS:
                detail = f"more than {_MAX_ANSWERS} answers"
                yield Rejected("dialogue too long", f"{record.where}: field {turn.field!r}", detail)
                return
            yield Sample(
                id=f"{id_}.{place}" if several else id_,
                source=source,
                prompt=style.render(content.tools, history),
                tools=content.tools,
                reference=message.content,
                origin=Origin(record.where, content.prompt_field, content.tools_field, turn.field, turn.call_fields),
            )
        asked = asked or turn.role == "user"
        history.append(message)
    if not found:
        raise content.unanswered or Unreadable("no assistant turn behind a user's", content.prompt_field)


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
