"""From tools and a dialogue to the chat that the model sees: one template a style.

`toolrl` is ToolRL's own prompt (arXiv 2504.13958; dataset/rlla_4k): the tools and the format in the system message,
the whole dialogue as one user message. `compact` says the same in a fraction of the tokens and leaves the dialogue in
chat turns; it is for models that are small or slow. Scores depend on the prompt, so `template_text` is published with
every number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from rest_core.data.fields import Unreadable
from rest_core.data.python_calls import NotCalls, literal
from rest_core.data.schemas import DEFINITIONS
from rest_core.data.tools import same_name
from rest_core.records import Message, Tool

Style = Literal["toolrl", "compact"]

# The thoughts that ToolRL gives to references without thoughts of their own.
THINK_CALL = "I should use the appropriate tool with proper parameters to respond to the user's need."
THINK_RESPOND = "I should directly respond to the user's need."

_TOOLS = "{tools}"  # where a template lists the tools
_TOOLRL_SYSTEM = """\
You are a helpful multi-turn dialogue assistant capable of leveraging tool calls to solve user tasks and provide \
structured chat responses.

**Available Tools**
In your response, you can use the following tools:
{tools}

**Steps for Each Turn**
1. **Think:** Recall relevant context and analyze the current user goal.
2. **Decide on Tool Usage:** If a tool is needed, specify the tool and its parameters.
3. **Respond Appropriately:** If a response is needed, generate one while maintaining consistency across user queries.

**Output Format**
```plaintext
<think> Your thoughts and reasoning </think>
<tool_call>
{"name": "Tool name", "parameters": {"Parameter name": "Parameter content", "... ...": "... ..."}}
{"name": "... ...", "parameters": {"... ...": "... ...", "... ...": "... ..."}}
...
</tool_call>
<response> AI's final response </response>
```

**Important Notes**
1. You must always include the `<think>` field to outline your reasoning. Provide at least one of `<tool_call>` or \
`<response>`. Decide whether to use `<tool_call>` (possibly multiple times), `<response>`, or both.
2. You can invoke multiple tool calls simultaneously in the `<tool_call>` fields. Each tool call should be a JSON \
object with a "name" field and an "parameters" field containing a dictionary of parameters. If no parameters are \
needed, leave the "parameters" field an empty dictionary.
3. Refer to the previous dialogue records in the history, including the user's queries, previous `<tool_call>`, \
`<response>`, and any tool feedback noted as `<obs>` (if exists)."""
_TOOLRL_HISTORY = "**Dialogue Records History**"

_COMPACT_SYSTEM = """\
Answer with <think> short reason </think> and then either tool calls, one JSON object a line:
<tool_call>
{"name": "tool", "parameters": {"key": "value"}}
</tool_call>
or, when no tool fits, <response> text </response>
Tools:
{tools}"""

_SYSTEMS: dict[Style, str] = {"toolrl": _TOOLRL_SYSTEM, "compact": _COMPACT_SYSTEM}

_LISTED_FROM, _LISTED_TO = "following tools:\n", "\n\n**Steps for Each Turn**"
_LISTED_HEAD = re.compile(r"\d+\. (?:Name: (?P<name>.*)\nDescription: ?|(?P<short>[^:\n]+): ?)")
_LISTED_PARAMETERS = "\nParameters: "
_USER_FROM, _USER_TO = "<user>", "</user>"
_KNOWN_SYSTEMS = 256
_known_systems: dict[tuple[Style, int], tuple[tuple[Tool, ...], str]] = {}  # holds the tools: their id stays theirs


def render(style: Style, tools: Sequence[Tool], history: Sequence[Message]) -> tuple[Message, ...]:
    """The chat that asks for the next turn of `history`, format instructions included.

    Args:
        style: "toolrl" or "compact".
        tools: those that the model may call, in the order in which it is listed.
        history: the dialogue so far: user turns, assistant turns in the project's response format, tool results.
            System messages of the data's own are appended to the instructions.
    """
    extra = [message.content for message in history if message.role == "system"]
    turns = [message for message in history if message.role != "system"]
    head = Message("system", "\n\n".join([_system_text(style, tools), *extra]))
    return (head, *turns) if style == "compact" else (head, Message("user", _toolrl_history(turns)))


def template_text(style: Style) -> str:
    """The style's template with `{tools}` in the place of the tools, for people to read beside a score."""
    if style == "compact":
        return _COMPACT_SYSTEM
    return f"{_TOOLRL_SYSTEM}\n\n{_TOOLRL_HISTORY}\n<user> … </user>\n\n<tool_call> … </tool_call>\n<obs> … </obs>"


def lists_tools(system: str) -> bool:
    """Whether a system message has a list of tools in ToolRL's style."""
    return _LISTED_FROM in system


def listed_tools(system: str, field: str = "system") -> tuple[Tool, ...]:
    """The tools that a system message in ToolRL's style lists, as ToolRL and its API-Bank files write them.

    Properties are kept as they stand there, ToolRL's own names of types included ("str, optional"), so that `render`
    gives the text back. It does not name the required ones.

    Args:
        field: where the user's record has the message, for errors.

    Raises:
        Unreadable: the message has no such list, or an entry cannot be read.
    """
    listed = _between(system, _LISTED_FROM, _LISTED_TO)
    if not listed:
        raise Unreadable("tools missing", field, "no list of tools in ToolRL's format")
    tools = []
    # Every entry ends with its line of parameters; a description may hold lines that look like an entry's first.
    rest = listed[0]
    while rest.strip():
        head = _LISTED_HEAD.match(rest)
        description, found, tail = rest[head.end() if head else 0 :].partition(_LISTED_PARAMETERS)
        if head is None or not found:
            raise Unreadable("tool list cannot be read", field, rest[:60])
        parameters, _, rest = tail.partition("\n")
        properties = _properties(parameters, field)
        definitions = {key: properties.pop(key) for key in DEFINITIONS[:1] if key in properties}
        schema = {"type": "object", "properties": properties, "required": [], **definitions}
        tools.append(Tool(same_name(head["name"] or head["short"]), description, schema))
    return tuple(tools)


def user_turns(prompt: Sequence[Message]) -> list[str]:
    """The user turns of a prompt of either style."""
    turns: list[str] = []
    for message in prompt:
        if message.role == "user":
            tagged = _between(message.content, _USER_FROM, _USER_TO, every=True)
            turns += [turn.strip() for turn in tagged or [message.content]]
    return turns


def _system_text(style: Style, tools: Sequence[Tool]) -> str:
    """The instructions with the tools; kept for a tuple of tools, as the samples of a data set share theirs."""
    key = (style, id(tools))
    if (known := _known_systems.get(key)) is not None:
        return known[1]
    text = _SYSTEMS[style].replace(_TOOLS, _tool_lines(style, tools))
    if isinstance(tools, tuple):
        if len(_known_systems) == _KNOWN_SYSTEMS:
            _known_systems.clear()
        _known_systems[key] = (tools, text)
    return text


def _tool_lines(style: Style, tools: Sequence[Tool]) -> str:
    if style == "toolrl":
        return "\n".join(
            f"{number}. Name: {tool.name}\nDescription: {tool.description}\n"
            f"Parameters: {json.dumps(_shown(tool), ensure_ascii=False)}"
            for number, tool in enumerate(tools, start=1)
        )
    return "\n".join(_compact_line(tool) for tool in tools)


def _compact_line(tool: Tool) -> str:
    """One line of JSON; it names the optional parameters, the shorter list."""
    line: dict[str, Any] = {"name": tool.name, "description": tool.description}
    line["parameters"] = _shown(tool)
    optional = [name for name in tool.parameters["properties"] if name not in tool.parameters.get("required", ())]
    if optional:
        line["optional"] = optional
    return _COMPACT.encode(line)


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # `json.dumps` would make one at each call


def _shown(tool: Tool) -> dict[str, Any]:
    """The parameters that the model sees: properties by name, and the definitions that they refer to."""
    definitions = {key: tool.parameters[key] for key in DEFINITIONS if key in tool.parameters}
    return {**tool.parameters["properties"], **definitions}


def _between(text: str, start: str, end: str, *, every: bool = False) -> list[str]:
    """The text between the first `start` and the next `end`, or between every such pair; one pass over the text."""
    found: list[str] = []
    place = text.find(start)
    while place >= 0 and (every or not found):
        stop = text.find(end, place + len(start))
        if stop < 0:
            break
        found.append(text[place + len(start) : stop])
        place = text.find(start, stop + len(end))
    return found


def _toolrl_history(turns: Sequence[Message]) -> str:
    text = f"{_TOOLRL_HISTORY}\n"
    for index, message in enumerate(turns):
        if message.role == "tool":
            text += f"{'' if index == 0 else chr(10)}<obs> {message.content} </obs>"
            continue
        turn = f"<user> {message.content} </user>" if message.role == "user" else message.content
        text += f"{'' if index == 0 else chr(10) * 2}{turn}"
    return text


def _properties(text: str, field: str) -> dict[str, Any]:
    """A line of parameters: JSON in ToolRL's files, a Python dict in API-Bank's."""
    try:
        value = literal(text)
    except NotCalls as error:
        raise Unreadable("tool list cannot be read", field, str(error)) from None
    if not isinstance(value, dict):
        raise Unreadable("tool list cannot be read", field, f"parameters {text[:60]!r}")
    return value
