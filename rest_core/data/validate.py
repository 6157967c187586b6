"""What a sample must be, beyond being readable: a prompt, tools, and a reference that uses them as declared."""

from __future__ import annotations

from rest_core.data.fields import Rejected
from rest_core.data.prompts import user_turns
from rest_core.data.tools import by_name, same_name
from rest_core.records import Sample
from rest_core.response import parse


def problem(sample: Sample, file: str) -> Rejected | None:
    """Why a sample cannot be trained on, None where it can.

    An argument that the tool does not declare counts: in ToolRL's data it marks calls that were mangled when they were
    converted (`{"a": "1}, b=2", …}`).
    """

    def rejected(reason: str, field: str, detail: str = "") -> Rejected:
        return Rejected(reason, f"{file}: {sample.id}: field {field!r}", detail)

    if not any(turn for turn in user_turns(sample.prompt)):
        return rejected("question empty", "prompt")
    if not sample.tools:
        return rejected("tools missing", "tools")
    if not _is_unicode(sample):
        return rejected("text is not valid Unicode", "prompt or reference", "a lone surrogate")
    reference = parse(sample.reference)
    if not reference.well_formed:
        return rejected("reference not well formed", "reference", reference.problems[0])
    tools = by_name(sample.tools)
    for call in reference.calls:
        tool = tools.get(same_name(call.name))
        if tool is None:
            return rejected("tool does not exist", "reference", f"{call.name!r} is none of {', '.join(tools)}")
        unknown = [name for name in call.arguments if name not in tool.parameters["properties"]]
        if unknown and not tool.parameters.get("additionalProperties"):
            return rejected("argument not declared by the tool", "reference", f"{unknown[0]!r} of {call.name!r}")
    return None


def _is_unicode(sample: Sample) -> bool:
    texts = [sample.reference, *(message.content for message in sample.prompt)]
    texts += [text for tool in sample.tools for text in (tool.name, tool.description, str(tool.parameters))]
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
