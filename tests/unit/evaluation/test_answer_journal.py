from dataclasses import replace
from pathlib import Path

import pytest

from rest_core.config import GenerationConfig
from rest_core.errors import UserError
from rest_core.evaluation.answer_journal import AnswerJournal, Remembering
from rest_core.evaluation.policy import Answer, Chat
from rest_core.records import Message
from rest_core.styles.formats import Hermes

LIMITS = GenerationConfig()


def chat(text: str) -> Chat:
    return Chat((), (Message("user", text),))


class Echo:
    name, condition, template, native_tools, keeps_prompts = "echo", "none", "", False, True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def respond(self, chats, config, on_progress=None):
        self.asked += [chat.history[-1].content for chat in chats]
        on_progress(len(chats), len(chats))
        return [Answer(chat.history[-1].content, 1, 2, finished=True, read=self.reader(chat)) for chat in chats]

    def reader(self, chat):
        return Hermes().parse


def remembered(folder: Path, echo: Echo, texts: list[str], **identity: str) -> list[str]:
    policy = Remembering(echo, AnswerJournal(folder, identity))
    return [answer.text for answer in policy.respond([chat(text) for text in texts], LIMITS)]


def test_a_question_is_put_once_whoever_asks_and_in_whatever_order(tmp_path: Path) -> None:
    echo = Echo()
    assert remembered(tmp_path, echo, ["a", "b", "a"], model="m") == ["a", "b", "a"]
    assert remembered(tmp_path, echo, ["c", "a", "\ud800"], model="m") == ["c", "a", "\ud800"]
    assert remembered(tmp_path, echo, ["\ud800", "b"], model="m") == ["\ud800", "b"]
    assert echo.asked == ["a", "b", "c", "\ud800"]
    remembered(tmp_path, echo, ["a"], model="another")
    assert echo.asked[-1] == "a"


@pytest.mark.parametrize(("temperature", "asked"), [(0, 1), (0.5, 2)])
def test_a_seed_makes_another_question_only_where_answers_are_sampled(
    tmp_path: Path, temperature: float, asked: int
) -> None:
    echo, sampling = Echo(), GenerationConfig(temperature=temperature)
    chats = [replace(chat("a"), seed=seed) for seed in (1, 2)]
    assert len(Remembering(echo, AnswerJournal(tmp_path, {})).respond(chats, sampling)) == 2
    assert len(echo.asked) == asked


def test_progress_counts_what_is_known(tmp_path: Path) -> None:
    echo, seen = Echo(), []
    remembered(tmp_path, echo, ["a"])
    policy = Remembering(echo, AnswerJournal(tmp_path, {}))
    policy.respond([chat("a"), chat("b")], LIMITS, lambda *progress: seen.append(progress))
    assert seen == [(1, 2), (2, 2)]


def test_known_answers_are_read_as_the_policy_reads_them(tmp_path: Path) -> None:
    said = '<tool_call>{"id": "1", "name": "f", "arguments": {}}</tool_call>'  # an id is read in this format alone
    for _ in range(2):
        (answer,) = Remembering(Echo(), AnswerJournal(tmp_path, {})).respond([chat(said)], LIMITS)
        assert [call.name for call in answer.parsed.calls] == ["f"]


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    echo = Echo()
    remembered(tmp_path, echo, ["a", "b"])
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    assert remembered(tmp_path, echo, ["a", "b"]) == ["a", "b"]
    assert echo.asked == ["a", "b", "b"]
    assert "the last line is incomplete" in caplog.text


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"{}", b'{"key": "k", "text": "t"}', b'{"key": "k", "surprise": 1}', b"\xff", b"[" * 100_000],
)
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UserError, match=r"x\.jsonl: line 1 is no answer"):
        AnswerJournal(tmp_path, {})


def test_it_keeps_as_many_prompts_as_the_policy_behind_it(tmp_path: Path) -> None:
    class Keeping(Echo):
        def together(self, chats, config):
            return min(1, sum(1 for _ in chats))

    chats = [chat("a"), chat("b")]
    for policy, count in ((Echo(), 2), (Keeping(), 1)):
        assert Remembering(policy, AnswerJournal(tmp_path, {})).together(chats, LIMITS) == count
