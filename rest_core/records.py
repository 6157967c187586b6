"""The nouns of the project: what a tool, a call, a sample and a rollout are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One chat message; `content` is plain text."""

    role: Role
    content: str


@dataclass(frozen=True)
class Tool:
    """A callable that the model may use.

    `parameters` is a JSON schema of type "object": {"type": "object", "properties": {name: schema},
    "required": [names]}. Readers of other dialects (BFCL's "dict", ToolRL's bare properties) convert to it.
    """

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """One call: a tool's name and its arguments, a JSON object."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """Where a sample stands in the data it was read from, for messages: the record, and its fields as spelled there."""

    where: str  # "calls.jsonl: line 12"
    prompt: str  # "messages"
    tools: str  # "functions"
    answer: str  # "messages[3]"
    calls: tuple[str, ...] = ()  # of each call in the answer: "messages[3].tool_calls[0]"


@dataclass(frozen=True)
class Sample:
    """One single-step training or evaluation sample: a prompt, and the response that is wanted.

    `prompt` is the complete chat up to the turn that is to be generated, format instructions included; the
    tokenizer's chat template turns it into text. `reference` is a response in the project's own format
    (`rest_core.response`), so that the reference answer is read by the same parser as a model's response.
    """

    id: str  # unique within a dataset: "<source>/<n>"
    source: str  # the reader's name, e.g. "toolrl-rl"
    prompt: tuple[Message, ...]
    tools: tuple[Tool, ...]
    reference: str
    origin: Origin | None = field(default=None, compare=False)  # lost when a dataset is written


@dataclass
class Rollout:
    """One sampled response: exactly the ids that the engine sampled, with their log-probs.

    `response_ids` and `logps` have the same length T. `entropies` (nats, full vocabulary) is None where the
    engine cannot give it. `finished` is False for a response cut off at the length limit. `policy_version`
    counts optimizer updates: training asserts that a rollout belongs to the policy that it trains.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logps: list[float]
    finished: bool
    policy_version: int
    entropies: list[float] | None = None
