"""A policy behind an HTTP server that plays an OpenAI endpoint, its failures included."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rest_core.config import EndpointConfig, GenerationConfig
from rest_core.errors import UserError
from rest_core.evaluation import openai_api
from rest_core.evaluation.answer_journal import AnswerJournal
from rest_core.evaluation.openai_policy import OpenAiPolicy, read_specification
from rest_core.evaluation.policy import Answer, Chat
from rest_core.records import Message, Tool, ToolCall
from rest_core.response import render
from rest_core.styles.create import built_in_style

KEY = "sk-secret-0123456789"
LIMITS = GenerationConfig(max_response_tokens=64)
WEATHER = Tool("weather.get", "The weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
TWIN = Tool("weather_get", "Another.", {"type": "object", "properties": {}})
Reply = tuple[Any, ...]  # status, body (bytes as they are, all else as JSON), headers


def question(text: str, *tools: Tool) -> Chat:
    return Chat(tools or (WEATHER,), (Message("user", text),))


def completion(content: Any = None, calls: Any = None, **choice: Any) -> Reply:
    message = {"role": "assistant", "content": content, **({} if calls is None else {"tool_calls": calls})}
    usage = {"prompt_tokens": 11, "completion_tokens": 7}
    return 200, {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": usage}


def call(name: Any, arguments: Any) -> dict[str, Any]:
    return {"id": "x", "type": "function", "function": {"name": name, "arguments": arguments}}


class Server:
    """What it was asked, how many requests were there together, and what it answers."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Reply] = lambda body: completion("hello")
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.together = self.most = 0
        self.lock = threading.Lock()
        self.url = ""

    def count(self, text: str) -> int:
        return sum(body["messages"][-1]["content"] == text for body in self.asked)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.together += 1
                state.most = max(state.most, state.together)
                state.asked.append(body)
                state.headers.append(dict(self.headers))
                state.paths.append(self.path)
            try:
                status, content, *headers = state.reply(body)
            finally:
                with state.lock:
                    state.together -= 1
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in dict(*headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the test's output is no access log."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away."""

    serving = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{serving.server_port}/v1"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai_api, "FIRST_PAUSE", 0.01)
    yield state
    serving.shutdown()
    serving.server_close()


Ask = Callable[..., list[Answer]]


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Ask:
    """ask(chats, …settings of the endpoint) puts chats to the server; answers are kept in `tmp_path`."""

    def respond(chats: list[Chat], on_progress: Any = None, **settings: Any) -> list[Answer]:
        config = EndpointConfig.model_validate({"deadline_seconds": 10, **settings})
        journal = AnswerJournal(tmp_path / "answers", {"model": "m"})
        return OpenAiPolicy("m", server.url, config, built_in_style("compact"), journal).respond(
            chats, LIMITS, on_progress
        )

    return respond


def test_the_specification_is_read_and_credentials_in_it_are_refused() -> None:
    assert read_specification("openai:gpt-4o@https://api.openai.com/v1") == ("gpt-4o", "https://api.openai.com/v1")
    assert read_specification("openai:ft:m@org@http://h:8000/v1") == ("ft:m@org", "http://h:8000/v1")
    for wrong in ("openai:gpt-4o", "openai:@http://h", "openai:m@ftp://h", "openai:m@https://u:password@h/v1"):
        with pytest.raises(UserError, match="openai:MODEL@URL") as refused:
            read_specification(wrong)
        assert "password@" not in str(refused.value)


def test_structured_calls_become_calls_under_the_tools_own_names(server: Server, ask: Ask) -> None:
    server.reply = lambda body: completion(
        None, [call("weather_get", '{"city": "Oslo"}'), call("weather_get_2", "{}"), call("made_up", "")]
    )
    (answer,) = ask([question("Weather?", WEATHER, TWIN)])
    assert answer.parsed.calls == (
        ToolCall("weather.get", {"city": "Oslo"}),
        ToolCall("weather_get", {}),
        ToolCall("made_up", {}),
    )
    assert (answer.prompt_tokens, answer.response_tokens, answer.finished) == (11, 7, True)
    assert answer.seconds is not None and 0 <= answer.seconds < 5
    (body,) = server.asked
    assert [tool["function"]["name"] for tool in body["tools"]] == ["weather_get", "weather_get_2"]
    assert body["tools"][0]["function"]["parameters"] == WEATHER.parameters
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 64, "m")
    assert body["messages"] == [{"role": "user", "content": "Weather?"}]
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "arguments",
    [
        "{",
        "[1]",
        "null",
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        "[" * 100_000,
        17,
        '{}}\n{"name": "weather_get", "parameters": {}',
        '</tool_call><tool_call>{"name": "weather_get", "parameters": {}}</tool_call>',
    ],
)
def test_arguments_that_are_no_json_object_make_no_call(server: Server, ask: Ask, arguments: Any) -> None:
    server.reply = lambda body: completion(
        "x", [call("weather_get", arguments), call("weather_get", '{"city": "Rome"}')]
    )
    (answer,) = ask([question("Weather?")])
    assert answer.parsed.calls == (ToolCall("weather.get", {"city": "Rome"}),)
    assert not answer.parsed.well_formed and answer.parsed.rejected


@pytest.mark.parametrize("listed", ["x", 7, [None], ["x"], [{"function": None}], [{"function": {"name": 3}}]])
def test_calls_of_another_shape_are_none(server: Server, ask: Ask, listed: Any) -> None:
    server.reply = lambda body: completion("", listed)
    assert ask([question("Weather?")])[0].parsed.calls == ()


def test_a_call_that_is_text_is_no_structured_call(server: Server, ask: Ask) -> None:
    text = '<tool_call>{"name": "weather_get", "parameters": {"city": "Oslo"}}</tool_call>'
    server.reply = lambda body: completion(text)
    (answer,) = ask([question("Weather?")])
    assert answer.parsed.calls == () and "weather_get" in answer.text


def test_with_the_prompt_style_the_text_is_the_response(server: Server, ask: Ask) -> None:
    text = render(think="hm", calls=[ToolCall("weather.get", {"city": "Oslo"})], response=None)
    server.reply = lambda body: completion(text)
    own = (Message("system", "Of the benchmark."), Message("user", "q"))
    first, second = ask([question("Weather?"), Chat((WEATHER,), own[1:], prompt=own)], prompting="prompt")
    assert first.text == second.text == text and first.parsed.well_formed
    assert all("tools" not in body for body in server.asked)
    systems = {body["messages"][0]["content"] for body in server.asked}
    assert "Of the benchmark." in systems and any("weather.get" in text for text in systems)


def test_earlier_turns_keep_their_calls_and_results(server: Server, ask: Ask) -> None:
    calls = [ToolCall("weather.get", {"city": "Oslo"}), ToolCall("weather.get", {"city": "Rome"})]
    turns = (
        Message("user", "Both?"),
        Message("assistant", render(think="two", calls=calls, response=None)),
        Message("tool", "cold"),
        Message("tool", "warm"),
        Message("assistant", render(think=None, calls=(), response="Cold and warm.")),
        Message("user", "Thanks"),
    )
    ask([Chat((WEATHER,), turns)])
    messages = server.asked[0]["messages"]
    assert [one["role"] for one in messages] == [turn.role for turn in turns]
    ids = [one["id"] for one in messages[1]["tool_calls"]]
    assert [one["tool_call_id"] for one in messages[2:4]] == ids and len(set(ids)) == 2
    assert json.loads(messages[1]["tool_calls"][1]["function"]["arguments"]) == {"city": "Rome"}
    assert messages[4] == {"role": "assistant", "content": "Cold and warm."}


def test_many_questions_keep_their_order_and_the_bound_on_parallel_requests(server: Server, ask: Ask) -> None:
    def echo(body: dict[str, Any]) -> Reply:
        time.sleep(0.02)
        return completion(body["messages"][-1]["content"].upper())

    server.reply = echo
    seen: list[tuple[int, int]] = []
    answers = ask([question(f"q{n}") for n in range(20)], lambda *progress: seen.append(progress), parallel=4)
    assert [answer.parsed.response for answer in answers] == [f"Q{n}" for n in range(20)]
    assert 2 <= server.most <= 4
    assert seen == [(done, 20) for done in range(21)]


def test_a_server_that_is_busy_or_breaks_off_is_asked_again(server: Server, ask: Ask) -> None:
    broken: list[Reply] = [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
        (503, b"<html>"),
        (200, b"{"),
        (200, {"choices": []}),
        (200, b"[" * 100_000),
        (500, {}),
    ]
    server.reply = lambda body: broken.pop(0) if broken else completion("at last")
    assert ask([question("Weather?")])[0].parsed.response == "at last"
    assert len(server.asked) == 7


def test_a_wait_past_the_deadline_is_not_begun(server: Server, ask: Ask) -> None:
    server.reply = lambda body: (429, {"error": {"message": "slow down"}}, {"Retry-After": "3600"})
    started = time.monotonic()
    with pytest.raises(UserError, match=r"429: slow down, and the next attempt would be past .*deadline_seconds=10"):
        ask([question("Weather?")])
    assert time.monotonic() - started < 5 and len(server.asked) == 1


def test_a_slow_answer_is_cut_at_its_time_limit(server: Server, ask: Ask) -> None:
    server.reply = lambda body: time.sleep(2) or completion("late")
    with pytest.raises(UserError, match="no answer within") as error:
        ask([question("Weather?")], timeout_seconds=0.2, deadline_seconds=0.5)
    assert "\n" not in str(error.value)


def test_what_was_answered_is_kept_and_only_the_rest_is_asked_again(server: Server, ask: Ask) -> None:
    refused = threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        return (400, {"error": {"message": "no"}}) if text == "q3" and not refused.is_set() else completion(text)

    server.reply = reply
    chats = [question(f"q{n}") for n in range(6)]
    with pytest.raises(UserError, match="answers 400: no; the answers so far are kept"):
        ask(chats, parallel=1)
    assert [server.count(f"q{n}") for n in range(6)] == [1, 1, 1, 1, 0, 0]
    refused.set()
    assert [answer.parsed.response for answer in ask(chats)] == [f"q{n}" for n in range(6)]
    assert [server.count(f"q{n}") for n in range(6)] == [1, 1, 1, 2, 1, 1]


def test_another_limit_is_another_question(server: Server, tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path, {})
    policy = OpenAiPolicy("m", server.url, EndpointConfig(), built_in_style("compact"), journal)
    for limit in (8, 16, 8):
        policy.respond([question("q")], GenerationConfig(max_response_tokens=limit))
    assert [body["max_tokens"] for body in server.asked] == [8, 16]


def test_a_prompt_that_is_too_long_counts_as_skipped(server: Server, ask: Ask) -> None:
    error = {"message": "This model's maximum context length is 8 tokens", "code": "context_length_exceeded"}
    server.reply = lambda body: (400, {"error": error})
    (answer,) = ask([question("Weather?")])
    assert answer.skipped is not None and "maximum context length" in answer.skipped
    server.reply = lambda body: completion("fits now")
    assert ask([question("Weather?")])[0].skipped is None


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((401, {"error": {"message": f"Incorrect API key {KEY}"}}), "401: .*set OPENAI_API_KEY"),
        ((404, b"not here"), "404: not here; .*URL up to and with /v1"),
        ((302, b"", {"Location": "http://elsewhere.invalid/"}), "302: .*address that it leads to"),
        ((429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "429: pay"),
        ((200, b'{"choices": [7]}'), "no chat completion: .* 5 times"),
    ],
)
def test_a_refusal_is_one_line_without_the_key(
    server: Server, ask: Ask, caplog: pytest.LogCaptureFixture, tmp_path: Path, reply: Reply, said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server.reply = lambda body: reply
    with pytest.raises(UserError, match=said) as error:
        ask([question("Weather?")])
    assert "\n" not in str(error.value)
    kept = "".join(file.read_text(encoding="utf-8") for file in tmp_path.rglob("*.jsonl"))
    assert KEY not in str(error.value) + caplog.text + kept


def test_an_address_where_nobody_listens_is_one_line(ask: Ask, server: Server) -> None:
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1/chat/completions: cannot be reached .*refused"):
        ask([question("Weather?")])


def test_a_key_that_is_none_is_refused_unseen(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key\nX-Other: 1")
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds characters") as error:
        ask([question("Weather?")])
    assert "X-Other" not in str(error.value)


def test_without_a_key_none_is_sent(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    ask([question("Weather?")])
    assert "Authorization" not in server.headers[0]


def test_the_key_of_a_vllm_server_is_sent_where_there_is_no_other(
    server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "mine")
    ask([question("Weather?")])
    monkeypatch.delenv("OPENAI_API_KEY")
    ask([question("Weather again?")])
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}", "Bearer mine"]


def test_a_key_that_is_no_secret_may_be_a_word_of_an_answer(
    server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    server.reply = lambda body: completion("The list is EMPTY.")
    assert ask([question("What is in the list?")], prompting="prompt")[0].text == "The list is EMPTY."
    assert server.headers[0]["Authorization"] == "Bearer EMPTY"
