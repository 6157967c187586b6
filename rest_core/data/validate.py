"""The conditions of a sample beyond being readable: a prompt, tools, and a reference that uses them as declared."""

from __future__ import annotations

import json

from rest_core.data.fields import Rejected, is_unicode, shown
from rest_core.data.prompts import user_turns
from rest_core.data.tools import by_name, declares, same_name
from rest_core.records import Origin, Sample
from rest_core.response import Response


def problem(sample: Sample, reference: Response) -> Rejected | None:
    """Why a sample cannot be trained on, None where it can; names the place in the user's data.

    An argument that the tool does not declare counts: in ToolRL's data it marks calls that were mangled when they were
    converted (`{"a": "1}, b=2", …}`).

    Args:
        sample: as a reader gives it, with its origin.
        reference: the sample's, parsed.
    """
    origin = sample.origin
    assert origin is not None

    def rejected(reason: str, field: str, detail: str = "") -> Rejected:
        return Rejected(reason, f"{origin.where}: field {field!r}", detail)

    if not any(user_turns(sample.prompt)):
        return rejected("question empty", origin.prompt)
    if not sample.tools:
        return rejected("tools missing", origin.tools)
    if (field := _not_unicode(sample, origin)) is not None:
        return rejected("text is not valid Unicode", field, "a lone surrogate")
    if not reference.well_formed:
        return rejected("reference not well formed", origin.answer, reference.problems[0])
    tools = by_name(sample.tools)
    for number, call in enumerate(reference.calls):
        place = origin.calls[number] if number < len(origin.calls) else origin.answer
        tool = tools.get(same_name(call.name))
        if tool is None:
            return rejected("tool does not exist", place, f"{shown(call.name, 60)!r} is none of {', '.join(tools)}")
        unknown = [name for name in call.arguments if not declares(tool, name)]
        if unknown:
            return rejected("argument not declared by the tool", place, f"{shown(unknown[0], 60)!r} of {call.name!r}")
    return None


def _not_unicode(sample: Sample, origin: Origin) -> str | None:
    """The field with text that no file can hold, None where there is none."""
    tools = json.dumps([[t.name, t.description, t.parameters] for t in sample.tools], ensure_ascii=False)
    for field, texts in (
        (origin.answer, [sample.reference]),
        (origin.tools, [tools]),
        (origin.prompt, [message.content for message in sample.prompt]),
    ):
        if not all(map(is_unicode, texts)):
            return field
    return None
