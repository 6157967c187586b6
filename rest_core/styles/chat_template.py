"""The chat template that a checkpoint is handed on with: a style's prompts by `apply_chat_template(messages, tools=…)`.

    {#- rest-pipelines … -#}     tools and messages → the style's variables → the style's messages
    {#- rest-pipelines: … -#}    the model's own chat template, which writes those messages

So that whoever serves the checkpoint sends OpenAI's messages and tools, and the model reads what it was trained on.
`own_template` takes the first part off again: here prompts are rendered by the style itself, which knows more (what a
source said of a tool, for one). The first part keeps to what transformers' and llama.cpp's Jinja have in common.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import TemplateError

from rest_core.chat import Refused, template_variables, with_template
from rest_core.data.schemas import DEFINITIONS
from rest_core.errors import UserError, one_line
from rest_core.records import Message, Tool, ToolCall
from rest_core.styles.style import Style
from rest_core.styles.template_file import MessageTemplate, TemplateFile, translated
from rest_core.styles.template_style import TemplateStyle

_HEAD = "{#- rest-pipelines: prompts of the style "
_HEAD_END = " -#}"
_MARK = "{#- rest-pipelines: the model's own chat template -#}" + '{{ "" }}'  # which keeps white space behind it
_EXAMPLE = Tool(
    "get_weather",
    'The "weather" <é>.',
    {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "string"}}, "required": ["a"]},
)
_SET = re.compile(r"\{%- if (\w+) is not defined -%\}\{%- set \w+ = (.+?) -%\}\{%- endif -%\}")
_ADD = '{%- set rest.messages = rest.messages + [{"role": role, "content": content}] -%}'


def chat_template(style: Style, own: str, variables: Mapping[str, Any]) -> str:
    """The chat template of a checkpoint that was trained in a style.

    Args:
        style: of the training.
        own: the model's own chat template.
        variables: those of its own template that were set in the training, such as enable_thinking.

    Raises:
        UserError: the style's prompts cannot be written by a chat template; the message says why.
    """
    given = {**variables, **style.variables}
    head = [
        f"{{%- if {name} is not defined -%}}{{%- set {name} = {_literal(value)} -%}}{{%- endif -%}}"
        for name, value in given.items()
    ]
    if isinstance(style, TemplateStyle):
        head += _of_style(style.file)
    name = "native" if style.native_tools else style.name
    return "\n".join([f"{_HEAD}{name}{_HEAD_END}", *head, _MARK]) + own


def variables_of(text: str) -> dict[str, Any]:
    """The variables that a checkpoint's chat template sets for the model's own, such as enable_thinking."""
    head = text.partition(_MARK)[0] if text.startswith(_HEAD) else ""
    return {name: json.loads(value) for name, value in _SET.findall(head)}


def style_of(text: str) -> str | None:
    """The name of the style of which a checkpoint's chat template writes the prompts; None of any other template."""
    return text.removeprefix(_HEAD).partition(_HEAD_END)[0] if text.startswith(_HEAD) else None


def written_by(style: Style, tokenizer: Any) -> str:
    """The chat template with which a tokenizer writes a style's prompts; tried on an example.

    Raises:
        UserError: there is none that does.
    """
    own = tokenizer.chat_template
    if not isinstance(own, str):
        raise UserError("the tokenizer has several")
    made = chat_template(style, own, template_variables(tokenizer))
    call = style.assistant_turn([ToolCall(_EXAMPLE.name, {"a": "<é>"})], None)
    history = (Message("system", "Note."), Message("user", "<é> 'Hi'"), call, Message("tool", "3"))
    messages, variables = style.chat_input(style.render((_EXAMPLE,), history), (_EXAMPLE,))
    read = style.parse(call.content, (_EXAMPLE,))
    made_call = {"name": read.calls[0].name, "arguments": read.calls[0].arguments}
    asked: list[dict[str, Any]] = [{"role": one.role, "content": one.content} for one in history]
    asked[2] = {"role": "assistant", "content": "", "tool_calls": [_numbered(made_call)]}
    asked[2] |= {} if read.think is None else {"reasoning_content": read.think}
    asked[3] |= {"tool_call_id": _numbered(made_call)["id"], "name": _EXAMPLE.name}
    function = {"name": _EXAMPLE.name, "description": _EXAMPLE.description, "parameters": _EXAMPLE.parameters}
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    try:
        wanted = with_template(tokenizer, messages, **options, **variables)
        tools = [{"type": "function", "function": function}]
        found = tokenizer.apply_chat_template(asked, tools=tools, chat_template=made, **options)
    except (Refused, ValueError, TypeError, TemplateError) as error:
        raise UserError(f"an example cannot be written: {one_line(error)}") from None
    if found != wanted:
        raise UserError("it writes an example otherwise than the style does (by a filter of Jinja's own, perhaps)")
    return made


def _numbered(function: dict[str, Any]) -> dict[str, Any]:
    return {"id": "call00000", "type": "function", "function": function}


def own_template(text: str) -> str:
    """The model's own chat template in one that `chat_template` has made; any other as it is."""
    return text.split(_MARK, 1)[1] if text.startswith(_HEAD) and _MARK in text else text


def _of_style(file: TemplateFile) -> Iterator[str]:
    if file.format not in _TURN_TEXT:
        raise UserError(
            f"a chat template cannot write turns in the format {file.format!r} (it can: {', '.join(_TURN_TEXT)})"
        )
    thoughts = file.thoughts
    parts = {
        "TURN_TEXT": _TURN_TEXT[file.format],
        "DEFINITIONS": _literal(DEFINITIONS),
        "THOUGHT_OF_CALLS": _literal(thoughts.call if thoughts else ""),
        "THOUGHT_OF_WORDS": _literal(thoughts.respond if thoughts else ""),
    }
    variables = _VARIABLES
    for name, text in parts.items():
        variables = variables.replace(name, text)
    yield variables
    for message in file.messages:
        yield from _message(message)
    yield "{%- set messages = rest.messages -%}{%- set tools = none -%}{%- set documents = none -%}"


def _message(message: MessageTemplate) -> Iterator[str]:
    if message.content is not None:
        yield f"{{%- set content -%}}{translated(message.content)}{{%- endset -%}}"
        yield f"{{%- set role = {_literal(message.role)} -%}}{_ADD}"
        return
    assert message.turns is not None
    texts = dict(message.turns.texts())
    yield "{%- for turn in turns -%}"
    tool_role = _literal(message.turns.tool_role)
    yield f'{{%- set role = {tool_role} if turn.role == "tool" else turn.role -%}}'
    yield "{%- set content = turn.content -%}"
    for role, text in texts.items():
        yield f"{{%- if turn.role == {_literal(role)} -%}}{{%- set content -%}}{translated(text)}{{%- endset -%}}"
        yield _ADD + "{%- endif -%}"
    yield f"{{%- if turn.role not in {_literal(list(texts))} -%}}{_ADD}{{%- endif -%}}"
    yield "{%- endfor -%}"


def _literal(value: Any) -> str:
    """A value as Jinja writes it."""
    return json.dumps(value, ensure_ascii=False)


_VARIABLES = """\
{%- set rest = namespace(notes=[], turns=[], tools=[], documents=[], messages=[]) -%}
{%- for entry in tools or [] -%}
  {%- set tool = entry.function if entry.function is defined else entry -%}
  {%- set parameters = tool.parameters or {} -%}
  {%- set properties = parameters["properties"] or {} -%}
  {%- set required = parameters["required"] or [] -%}
  {%- set found = namespace(pairs=[], optional=[]) -%}
  {%- for name, schema in properties | items -%}
    {%- set found.pairs = found.pairs + [[name, schema]] -%}
    {%- if name not in required -%}{%- set found.optional = found.optional + [name] -%}{%- endif -%}
  {%- endfor -%}
  {%- for name in DEFINITIONS -%}
    {%- if name in parameters -%}{%- set found.pairs = found.pairs + [[name, parameters[name]]] -%}{%- endif -%}
  {%- endfor -%}
  {%- set shown = dict(found.pairs) -%}
  {%- set description = tool.description or "" -%}
  {%- set brief = {"name": tool.name, "description": description, "parameters": shown} -%}
  {%- if found.optional -%}
    {%- set brief = {"name": tool.name, "description": description, "parameters": shown, "optional": found.optional} -%}
  {%- endif -%}
  {%- set rest.documents = rest.documents + [
    {"name": tool.name, "description": description, "parameters": parameters}
  ] -%}
  {%- set rest.tools = rest.tools + [
    {"name": tool.name, "description": description, "parameters": parameters, "shown": shown, "brief": brief}
  ] -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set said = namespace(words=message.content or "") -%}
  {%- if said.words is not string -%}
    {%- set said.words = "" -%}
    {%- for part in message.content -%}{%- set said.words = said.words ~ (part.text or "") -%}{%- endfor -%}
  {%- endif -%}
  {%- set words = said.words -%}
  {%- if message.role == "system" -%}
    {%- set rest.notes = rest.notes + [words] -%}
  {%- elif message.role == "assistant" -%}
    {%- set turn = namespace(calls=[], think=message.reasoning_content or message.reasoning, text=words) -%}
    {%- for call in message.tool_calls or [] -%}
      {%- set turn.calls = turn.calls + [call.function if call.function is defined else call] -%}
    {%- endfor -%}
    {%- if turn.calls or not ("<think>" in words or "<tool_call>" in words or "<response>" in words) -%}
      {%- if not turn.think -%}
        {%- set turn.think = THOUGHT_OF_CALLS if turn.calls else THOUGHT_OF_WORDS -%}
      {%- endif -%}
      {%- set parts = namespace(texts=[]) -%}
TURN_TEXT
    {%- endif -%}
    {%- set rest.turns = rest.turns + [
      {"role": "assistant", "content": turn.text, "think": turn.think, "words": words, "calls": turn.calls}
    ] -%}
  {%- else -%}
    {%- set rest.turns = rest.turns + [{"role": message.role, "content": words}] -%}
  {%- endif -%}
{%- endfor -%}
{%- set tools = rest.tools -%}
{%- set documents = rest.documents -%}
{%- set notes = rest.notes -%}
{%- set turns = rest.turns -%}"""

_TURN_TEXT = {
    "tagged": """\
      {%- if turn.think -%}{%- set parts.texts = parts.texts + ["<think> " ~ turn.think ~ " </think>"] -%}{%- endif -%}
      {%- if turn.calls -%}
        {%- set parts.texts = parts.texts + ["<tool_call>"] -%}
        {%- for call in turn.calls -%}
          {%- set given = call.arguments if call.arguments is string else call.arguments | tojson -%}
          {%- set parts.texts = parts.texts + ['{"name": ' ~ call.name | tojson ~ ', "parameters": ' ~ given ~ '}'] -%}
        {%- endfor -%}
        {%- set parts.texts = parts.texts + ["</tool_call>"] -%}
      {%- endif -%}
      {%- if words -%}{%- set parts.texts = parts.texts + ["<response> " ~ words ~ " </response>"] -%}{%- endif -%}
      {%- set turn.text = parts.texts | join("\\n") -%}""",
    "hermes": """\
      {%- if words -%}{%- set parts.texts = parts.texts + [words] -%}{%- endif -%}
      {%- for call in turn.calls -%}
        {%- set given = call.arguments if call.arguments is string else call.arguments | tojson -%}
        {%- set line = '{"name": ' ~ call.name | tojson ~ ', "arguments": ' ~ given ~ '}' -%}
        {%- set parts.texts = parts.texts + ["<tool_call>\\n" ~ line ~ "\\n</tool_call>"] -%}
      {%- endfor -%}
      {%- set turn.text = parts.texts | join("\\n") -%}
      {%- if turn.think -%}
        {%- set turn.text = "<think>\\n" ~ turn.think ~ "\\n</think>\\n\\n" ~ turn.text -%}
      {%- endif -%}""",
}
"""How an assistant's turn is written, by format: what `Format.write` does."""
