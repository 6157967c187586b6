"""Answers that are kept as they come, so that no model answers a question twice: not after a failure, nor in another
run."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from rest_core.config import GenerationConfig
from rest_core.disk import disk_errors
from rest_core.errors import UserError
from rest_core.evaluation.measurement import limits
from rest_core.evaluation.policy import Answer, Chat, KeepsPrompts, Policy, Progress
from rest_core.response import Response

log = logging.getLogger(__name__)

_FIELDS = {field.name for field in fields(Answer) if field.compare}  # the others belong to the policy


class AnswerJournal:
    """Answers in a directory, by the hash of everything that decides them.

    Every process appends to a file of its own, because the directory may lie on a volume that several pods share.

    Args:
        directory: holds the files; it is made with the first answer.
        identity: what decides the answers besides chat and limits: model, prompting, versions.

    Raises:
        UserError: a file there is no journal.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self._directory, self._identity = directory, dict(identity)
        self._lock = threading.Lock()
        self._file = directory / f"{secrets.token_hex(4)}.jsonl"
        self._answers: dict[str, Answer] = {}
        for file in sorted(directory.glob("*.jsonl")):
            self._answers |= _read(file)

    def key(self, chat: Chat, config: GenerationConfig) -> str:
        if not config.temperature:
            chat = replace(chat, seed=0)  # nothing is sampled
        asked = {"chat": asdict(chat), "limits": limits(config), "identity": self._identity}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is in the file when this returns."""
        line = json.dumps({"key": key, **{name: getattr(answer, name) for name in _FIELDS}}, sort_keys=True)
        with self._lock, disk_errors(self._file):
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
            self._answers[key] = answer


def _read(file: Path) -> dict[str, Answer]:
    *lines, rest = file.read_bytes().split(b"\n")
    if rest:
        log.warning("%s: the last line is incomplete; that question is asked again", file)
    answers = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            key = values.pop("key")
            answers[key] = Answer(**values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(f"{file}: line {number} is no answer of an evaluation; remove the file") from None
    return answers


class Remembering:
    """`Policy` that answers from a journal, and asks another policy only the questions that are not there."""

    def __init__(self, policy: Policy, journal: AnswerJournal) -> None:
        self._policy, self._journal = policy, journal
        self.name, self.condition, self.template = policy.name, policy.condition, policy.template
        self.native_tools, self.keeps_prompts = policy.native_tools, policy.keeps_prompts

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        """See `rest_core.evaluation.policy.Policy`."""
        keys = [self._journal.key(chat, config) for chat in chats]
        new = {key: chat for key, chat in zip(keys, chats, strict=True) if self._journal.get(key) is None}
        known = len(chats) - len(new)
        log.info("%s: %d of %d answers are missing in the cache", self.name, len(new), len(chats))

        def advance(done: int, _: int) -> None:
            if on_progress is not None:
                on_progress(known + done, len(chats))

        advance(0, 0)
        if new:
            for key, answer in zip(new, self._policy.respond(list(new.values()), config, advance), strict=True):
                self._journal.add(key, answer)
        return [
            replace(known_answer, read=self.reader(chat))
            for key, chat in zip(keys, chats, strict=True)
            if (known_answer := self._journal.get(key)) is not None
        ]

    def together(self, chats: Iterable[Chat], config: GenerationConfig) -> int:
        """See `rest_core.evaluation.policy.KeepsPrompts`."""
        if isinstance(self._policy, KeepsPrompts):
            return self._policy.together(chats, config)
        return sum(1 for _ in chats)

    def reader(self, chat: Chat) -> Callable[[str], Response]:
        """See `rest_core.evaluation.policy.Policy`."""
        return self._policy.reader(chat)
