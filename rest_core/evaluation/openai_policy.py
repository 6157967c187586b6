"""A model behind an OpenAI-compatible endpoint: `openai:MODEL@URL`, a vLLM server or OpenAI's own API."""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from rest_core.config import EndpointConfig, GenerationConfig
from rest_core.errors import UserError
from rest_core.evaluation.answer_journal import AnswerJournal
from rest_core.evaluation.openai_api import Endpoint, TooLong
from rest_core.evaluation.policy import Answer, Chat, Progress
from rest_core.records import Message, Tool, ToolCall
from rest_core.response import Kind, Response, parse, render
from rest_core.styles.style import Style

log = logging.getLogger(__name__)

PREFIX = "openai:"
_SPECIFICATION = re.compile(rf"{PREFIX}(?P<model>\S+)@(?P<url>https?://[^\s@?#]+)")
_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")  # what OpenAI's API refuses in a tool's name
_LONGEST_NAME = 64
_TAG = re.compile(rf"<(?=/?(?:{'|'.join(kind.value for kind in Kind)})>)")


def read_specification(text: str) -> tuple[str, str]:
    """Model and URL of `openai:MODEL@URL`.

    Raises:
        UserError: it is not of that form, or the URL holds credentials.
    """
    found = _SPECIFICATION.fullmatch(text)
    if found is None:
        raise UserError(
            "this policy is not of the form openai:MODEL@URL, such as openai:gpt-4o@https://api.openai.com/v1, with a "
            "URL that has neither a password nor a query (the key comes from OPENAI_API_KEY)"
        )
    return found["model"], found["url"]


class OpenAiPolicy:
    """`rest_core.evaluation.policy.Policy` by chat completions, several at a time.

    With `prompting: tools` a request has the tools, and the structured calls of the answer become calls, written in
    the project's own response format. With `prompting: prompt` the model gets the prompt of a style, as a local model
    does, and its text is the response.

    Args:
        model: as the endpoint calls it.
        url: up to and with /v1.
        config: prompting, parallelism, time limits.
        style: of prompts.
        journal: keeps each answer as it comes; questions that it has answers to are not sent.
    """

    def __init__(self, model: str, url: str, config: EndpointConfig, style: Style, journal: AnswerJournal) -> None:
        self.name, self._url, self._config, self._style, self._journal = model, url, config, style, journal
        self.native_tools = config.prompting == "tools"
        self.keeps_prompts = not self.native_tools and style.keeps_prompts
        self.condition = "tools of the chat-completions API" if self.native_tools else f"prompt style {style.name}"
        self.template = _TEMPLATE if self.native_tools else style.template

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        """See `rest_core.evaluation.policy.Policy`.

        Raises:
            UserError: a question cannot be answered; answers that came are kept in the journal.
        """
        keys = [self._journal.key(chat, config) for chat in chats]
        answers = {key: answer for key in keys if (answer := self._journal.get(key)) is not None}
        new = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in answers}
        done = len(chats) - len(new)
        if answers:
            log.info("%d answers are there from an earlier attempt", len(answers))
        if on_progress is not None:
            on_progress(done, len(chats))
        for number, (key, answer) in enumerate(self._answered(new, config), start=done + 1):
            answers[key] = answer
            if answer.skipped is None:  # the endpoint's limit may be another one by the next attempt
                self._journal.add(key, answer)
            if on_progress is not None:
                on_progress(number, len(chats))
        return [replace(answers[key], read=self.reader(chat)) for key, chat in zip(keys, chats, strict=True)]

    def reader(self, chat: Chat) -> Callable[[str], Response]:
        """See `rest_core.evaluation.policy.Policy`: structured calls are in the project's own format."""
        if self.native_tools or (chat.prompt is not None and self.keeps_prompts):
            return parse
        return partial(self._style.parse, tools=chat.tools)

    def _answered(self, new: Mapping[str, Chat], config: GenerationConfig) -> Iterator[tuple[str, Answer]]:
        """Ask everything; the answers as they come.

        The threads are daemons: an interrupted evaluation does not wait for the endpoint.
        """
        tasks: queue.SimpleQueue[tuple[str, Chat]] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[str, Answer] | BaseException | None] = queue.SimpleQueue()
        for task in new.items():
            tasks.put(task)

        def work() -> None:
            try:
                endpoint = Endpoint(self._url, self._config)
                while True:
                    key, chat = tasks.get_nowait()
                    results.put((key, self._answer(endpoint, chat, config)))
            except queue.Empty:
                results.put(None)
            except BaseException as error:
                with suppress(queue.Empty):  # nothing more is asked
                    while True:
                        tasks.get_nowait()
                results.put(error)

        running = min(self._config.parallel, len(new))
        for _ in range(running):
            threading.Thread(target=work, name="openai-policy", daemon=True).start()
        failure: BaseException | None = None
        while running:
            result = results.get()
            if isinstance(result, tuple):
                yield result
            else:
                running, failure = running - 1, failure or result
        if failure is not None:
            _fail(failure)

    def _answer(self, endpoint: Endpoint, chat: Chat, config: GenerationConfig) -> Answer:
        names = _Names(chat.tools) if self.native_tools else None
        body: dict[str, Any] = {
            "model": self.name,
            "messages": self._prompt(chat) if names is None else _dialogue(chat.history, names),
            "temperature": config.temperature,
            "max_tokens": config.max_response_tokens,
        }
        if config.temperature:
            body["seed"] = chat.seed % 2**31
        if names is not None and chat.tools:
            body["tools"] = names.described
        started = time.monotonic()
        try:
            completion = endpoint.complete(body)
        except TooLong as reason:
            return Answer("", 0, 0, finished=False, skipped=f"prompt is over the endpoint's limit: {reason}")
        choice, usage = completion["choices"][0], completion.get("usage")
        message = choice["message"]
        return Answer(
            text=_string(message.get("content")) if names is None else _response(message, names),
            prompt_tokens=_count(usage, "prompt_tokens"),
            response_tokens=_count(usage, "completion_tokens"),
            finished=choice.get("finish_reason") != "length",
            seconds=round(time.monotonic() - started, 3),
        )

    def _prompt(self, chat: Chat) -> list[dict[str, Any]]:
        own = chat.prompt if self.keeps_prompts else None
        rendered = own or self._style.render(chat.tools, chat.history, chat.documents)
        return [_plain(message) for message in rendered]


_TEMPLATE = (
    "The request's `tools` are the question's, `messages` its dialogue; no instructions besides. A name that the API "
    "refuses has other characters replaced by _, and is replaced back in the answer."
)


class _Names:
    """Tools as the API takes them, and their own names by those that it was given."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._given: dict[str, str] = {}
        self._own: dict[str, str] = {}
        for tool in tools:
            self.give(tool.name)
        self.described = [
            {"type": "function", "function": {"name": self.give(tool.name), **_described(tool)}} for tool in tools
        ]

    def give(self, own: str) -> str:
        """The name under which the API knows a tool, different for each."""
        if own not in self._given:
            name = stem = _NO_NAME.sub("_", own)[:_LONGEST_NAME] or "_"
            number = 1
            while name in self._own:
                number += 1
                name = f"{stem[: _LONGEST_NAME - 4]}_{number}"
            self._given[own], self._own[name] = name, own
        return self._given[own]

    def own(self, given: str) -> str:
        return self._own.get(given, given)


def _described(tool: Tool) -> dict[str, Any]:
    return {"description": tool.description, "parameters": tool.parameters}


def _dialogue(history: Sequence[Message], names: _Names) -> list[dict[str, Any]]:
    """The turns as the API has them: calls of earlier turns structured, each tool result with its call's id."""
    messages: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for turn in history:
        if turn.role == "tool" and open_calls:
            messages.append({"role": "tool", "tool_call_id": open_calls.pop(0), "content": turn.content})
        elif turn.role == "assistant" and (parsed := parse(turn.content)).calls:
            open_calls = [f"call_{len(messages)}_{number}" for number in range(len(parsed.calls))]
            calls = [_as_call(id_, call, names) for id_, call in zip(open_calls, parsed.calls, strict=True)]
            messages.append({"role": "assistant", "content": parsed.response, "tool_calls": calls})
        elif turn.role == "assistant":
            messages.append({"role": "assistant", "content": parse(turn.content).response or turn.content})
        else:
            messages.append(_plain(turn))
    return messages


def _as_call(id_: str, call: ToolCall, names: _Names) -> dict[str, Any]:
    function = {"name": names.give(call.name), "arguments": json.dumps(call.arguments)}
    return {"id": id_, "type": "function", "function": function}


def _plain(message: Message) -> dict[str, Any]:
    """A message as text. A tool's result without a structured call is a user's turn: the API wants an id for others."""
    if message.role == "tool":
        return {"role": "user", "content": f"<obs> {message.content} </obs>"}
    return {"role": message.role, "content": message.content}


def _response(message: Mapping[str, Any], names: _Names) -> str:
    """A structured answer in the project's response format. Tags in its text are text, and no calls."""
    calls, unreadable = [], []
    listed = message.get("tool_calls")
    for entry in listed if isinstance(listed, list) else []:
        function = entry.get("function") if isinstance(entry, dict) else None
        function = function if isinstance(function, dict) else {}
        name, arguments = function.get("name"), _arguments(function.get("arguments"))
        if isinstance(name, str) and arguments is not None:
            calls.append(ToolCall(names.own(name), arguments))
        else:
            unreadable.append(json.dumps({"name": _string(name), "parameters": str(function.get("arguments"))}))
    content = _string(message.get("content"))
    think = _string(message.get("reasoning_content") or message.get("reasoning"))
    text = render(think=_untagged(think) if think else None, calls=calls, response=None)
    if unreadable:
        text = "\n".join([text, "<tool_call>", *unreadable, "</tool_call>"]).lstrip("\n")
    if content or not text:
        text = "\n".join([text, render(think=None, calls=(), response=_untagged(content))]).lstrip("\n")
    return text


def _arguments(given: Any) -> dict[str, Any] | None:
    """The arguments of a call; None where they are no JSON object of ordinary values that names each key once."""
    try:
        value = given if isinstance(given, dict) else json.loads(given or "{}", object_pairs_hook=_distinct)
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _untagged(text: str) -> str:
    return _TAG.sub("&lt;", text)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _fail(failure: BaseException) -> NoReturn:
    if isinstance(failure, UserError):
        raise UserError(f"{failure}; the answers so far are kept: run the command again with the same --out") from None
    raise failure
