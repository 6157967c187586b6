"""The loop of a tool-use dialogue, over many environments at once.

A turn begins with the user's messages. Then the policy responds, its calls are executed, their results join the
history, and it responds again, until a response without a call ends the turn. All live dialogues advance together: a
wave is one step of each, and one call of `Policy.respond`, so that batches are full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rest_core.config import GenerationConfig
from rest_core.environments.environment import Environment, EnvironmentFailed, Stop
from rest_core.evaluation.policy import Answer, Chat, KeepsPrompts, Policy
from rest_core.records import Message, ToolCall
from rest_core.seeds import derive

DialogueProgress = Callable[[int, int, int], None]
"""Called with the number of dialogues that have ended, of all dialogues, and of all steps so far."""

SHOWN_CHARACTERS = 2000  # of a result, in files: a file that a tool printed may be long


@dataclass(frozen=True)
class Step:
    """One response of a dialogue and the results of its calls."""

    chat: Chat  # that the policy answered
    answer: Answer
    results: tuple[str, ...] = ()  # of each call; none where there is no call or it was not executed

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return self.answer.parsed.calls

    def to_json(self) -> dict[str, Any]:
        """For files; long results are shortened."""
        return {
            "response": self.answer.text,
            "calls": [asdict(call) for call in self.calls],
            "results": [_shortened(result) for result in self.results],
            "prompt_tokens": self.answer.prompt_tokens,
            "response_tokens": self.answer.response_tokens,
        }


@dataclass
class Dialogue:
    """One dialogue: its environment, and everything that was sampled in it."""

    environment: Environment
    seed: int = 0
    turns: list[list[Step]] = field(default_factory=list)  # each turn that was begun
    history: list[Message] = field(default_factory=list)
    stop: Stop | None = None  # None while it is live
    error: str | None = None  # why it stopped early, for people

    @property
    def steps(self) -> list[Step]:
        return [step for turn in self.turns for step in turn]

    def begin_turn(self, said: str = "") -> None:
        """Take the user's next messages; without any the dialogue is complete.

        Args:
            said: the response that ended the turn before.
        """
        try:
            messages = self.environment.user_turn(said)
        except EnvironmentFailed as error:
            self.stop, self.error = "failed", str(error)
            return
        if messages is None:
            self.stop = "completed"
            return
        self.turns.append([])
        self.history += messages

    def chat(self) -> Chat:
        """The chat for the next step; its seed depends on the dialogue's seed and the step's number alone."""
        seed = derive(self.seed, "step", len(self.steps))
        return Chat(
            self.environment.tools,
            tuple(self.history),
            documents=self.environment.documents,
            seed=seed,
            continues=True,
        )

    def advance(self, chat: Chat, answer: Answer, max_steps: int) -> None:
        """Add the step that `answer` makes."""
        if answer.skipped is not None:
            self._end(Step(chat, answer), "prompt_too_long", answer.skipped)
            return
        self.history.append(Message("assistant", answer.text))
        if not answer.parsed.calls:
            self.turns[-1].append(Step(chat, answer))
            self.begin_turn(answer.text)
            return
        try:
            results = self.environment.step(answer.parsed.calls)
        except EnvironmentFailed as error:
            self._end(Step(chat, answer), "failed", str(error))
            return
        self.history += [Message("tool", result) for result in results]
        step = Step(chat, answer, tuple(results))
        if len(self.turns[-1]) + 1 >= max_steps:
            self._end(step, "step_limit", f"{max_steps} steps in one turn")
        else:
            self.turns[-1].append(step)

    def _end(self, step: Step, stop: Stop, error: str) -> None:
        self.turns[-1].append(step)
        self.stop, self.error = stop, error


def run_dialogues(
    environments: Sequence[Environment],
    policy: Policy,
    config: GenerationConfig,
    *,
    max_steps: int,
    seeds: Sequence[int] | None = None,
    on_progress: DialogueProgress | None = None,
) -> list[Dialogue]:
    """Have the policy act in every environment until each dialogue has ended; in their order.

    All dialogues that have not ended advance together, a step at a time, or, with a local policy on a CPU, as many as
    it keeps the prompts of; the others wait until some have ended.

    Args:
        config: limits of each step's prompt and response, and how responses are sampled.
        max_steps: a turn with this many steps with calls ends its dialogue; calls of the last step are executed.
        seeds: one a dialogue, needed where responses are sampled.
    """
    dialogues = [Dialogue(environment, seed) for environment, seed in _paired(environments, seeds)]
    for dialogue in dialogues:
        dialogue.begin_turn()
    live = [dialogue for dialogue in dialogues if dialogue.stop is None]
    steps = 0
    while live:
        ended = len(dialogues) - len(live)

        def advance(done: int, of: int, ended: int = ended, steps: int = steps) -> None:
            if on_progress is not None:
                on_progress(ended, len(dialogues), steps + done)

        wave = live
        if isinstance(policy, KeepsPrompts):
            wave = live[: policy.together((dialogue.chat() for dialogue in live), config)]
        chats = [dialogue.chat() for dialogue in wave]
        for dialogue, chat, answer in zip(wave, chats, policy.respond(chats, config, advance), strict=True):
            dialogue.advance(chat, answer, max_steps)
        steps += len(wave)
        live = [dialogue for dialogue in live if dialogue.stop is None]
    if on_progress is not None:
        on_progress(len(dialogues), len(dialogues), steps)
    return dialogues


def _paired(environments: Sequence[Environment], seeds: Sequence[int] | None) -> list[tuple[Environment, int]]:
    return list(zip(environments, seeds if seeds is not None else [0] * len(environments), strict=True))


def _shortened(text: str) -> str:
    more = len(text) - SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:SHOWN_CHARACTERS]}… ({more} more characters)"
