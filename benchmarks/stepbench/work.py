"""What is measured: prompts of an exact length, responses of a forced length, and the model that both sides train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rest_core.config import load

Message = dict[str, str]


@dataclass(frozen=True)
class Work:
    """One step's work: `prompts` prompts of `prompt_tokens` tokens, `group` responses each of exactly `new_tokens`.

    Where `stops`, responses end where the model ends them, and `new_tokens` is the longest.
    """

    name: str
    prompts: int
    prompt_tokens: int
    group: int
    new_tokens: int
    stops: bool = False

    @property
    def responses(self) -> int:
        return self.prompts * self.group

    @property
    def generated(self) -> int:
        """Tokens that are sampled in a step; the same are trained."""
        return self.responses * self.new_tokens

    @property
    def useful(self) -> int:
        """Tokens that an update cannot do without: every prompt once, and every response once.

        A response's last token is no input: nothing that follows it is trained.
        """
        return self.prompts * self.prompt_tokens + self.responses * (self.new_tokens - 1)

    @property
    def copied(self) -> int:
        """Tokens of an update that repeats the prompt in front of each of its responses."""
        return self.responses * (self.prompt_tokens + self.new_tokens)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# A step of training as the profile of the real model has it.
TRAINING = "training"
PROFILE = load("smollm2-135m").rl

WORKS = {
    "a": Work("a", prompts=4, prompt_tokens=163, group=4, new_tokens=64),
    "b4": Work("b4", prompts=4, prompt_tokens=750, group=4, new_tokens=390),
    "b8": Work("b8", prompts=4, prompt_tokens=750, group=8, new_tokens=390),
    TRAINING: Work(
        TRAINING,
        prompts=PROFILE.prompts_per_step,
        prompt_tokens=750,
        group=PROFILE.group_size,
        new_tokens=PROFILE.max_response_tokens,
        stops=True,
    ),
}
TITLES = {
    "a": "short prompts, G = 4",
    "b4": "ToolRL's shape, G = 4",
    "b8": "ToolRL's shape, G = 8",
    TRAINING: "profile smollm2-135m",
}

_INTRODUCTION = "You are an assistant that can call tools. Tools: "
_FORMAT = (
    "Think inside <think></think>, then answer with <tool_call>{...}</tool_call> or <response></response>. "
    "Call a tool only when all of its parameters are known. "
)
_TOOLS = (
    '{"name":"weather_now","parameters":{"place":"str","unit":"str"}} ',
    '{"name":"find_flights","parameters":{"from":"str","to":"str","day":"str"}} ',
    '{"name":"new_event","parameters":{"title":"str","start":"str","end":"str"}} ',
    '{"name":"convert_money","parameters":{"amount":"float","source":"str","target":"str"}} ',
    '{"name":"send_message","parameters":{"to":"str","subject":"str","text":"str"}} ',
    '{"name":"search_hotels","parameters":{"city":"str","arrival":"str","nights":"int","guests":"int"}} ',
    '{"name":"translate","parameters":{"text":"str","language":"str"}} ',
    '{"name":"stock_price","parameters":{"symbol":"str","exchange":"str"}} ',
    '{"name":"route","parameters":{"start":"str","goal":"str","by":"str","avoid_tolls":"bool"}} ',
    '{"name":"play_music","parameters":{"artist":"str","album":"str","room":"str"}} ',
    '{"name":"set_alarm","parameters":{"time":"str","label":"str","repeat":"bool"}} ',
    '{"name":"order_food","parameters":{"restaurant":"str","dish":"str","count":"int","address":"str"}} ',
    '{"name":"read_sensor","parameters":{"device":"str","quantity":"str","since":"str"}} ',
    '{"name":"book_table","parameters":{"restaurant":"str","people":"int","time":"str"}} ',
    '{"name":"track_parcel","parameters":{"number":"str","carrier":"str"}} ',
    '{"name":"recipe","parameters":{"dish":"str","people":"int","without":"str"}} ',
)
_QUESTIONS = (
    "How warm is it in {city} now, in celsius?",
    "Find me a flight from {city} to Oslo on the third of May.",
    "Put lunch with Ana in {city} on my calendar, tomorrow at noon.",
    "Is it warmer in {city} or in Quito today?",
)
_CITIES = ("Paris", "Lima", "Rome", "Cairo", "Delhi", "Tokyo", "Bern", "Seoul", "Dakar", "Porto", "Riga", "Turin")
_FILLER = ("Read", "the", "question", "with", "care", "and", "choose", "the", "tool", "that", "fits", "it", "best.")


def _conversation(number: int, tools: int, words: int) -> list[Message]:
    question = _QUESTIONS[number % len(_QUESTIONS)]
    city = _CITIES[number // len(_QUESTIONS) % len(_CITIES)]
    filler = " ".join(_FILLER[n % len(_FILLER)] for n in range(words))
    return [
        {"role": "system", "content": _INTRODUCTION + "".join(_TOOLS[:tools]) + _FORMAT + filler},
        {"role": "user", "content": f"Request {number + 1}: " + question.format(city=city)},
    ]


def encode(tokenizer: Any, messages: list[Message]) -> list[int]:
    """The prompt's ids, as both sides make them: the chat template with a generation prompt behind it."""
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def conversation(tokenizer: Any, number: int, tokens: int) -> list[Message]:
    """Prompt `number` with exactly `tokens` tokens: as many tools as fit, then filler words.

    Raises:
        ValueError: not even a prompt with one tool is that short.
    """

    def length(tools: int, words: int) -> int:
        return len(encode(tokenizer, _conversation(number, tools, words)))

    tools = max((n for n in range(1, len(_TOOLS) + 1) if length(n, 0) <= tokens), default=0)
    if tools == 0:
        raise ValueError(f"a prompt of {tokens} tokens is too short: the shortest has {length(1, 0)}")
    words = 0
    while length(tools, words + 1) <= tokens:
        words += 1
    messages = _conversation(number, tools, words)
    system = messages[0]
    while (now := len(encode(tokenizer, messages))) < tokens:  # the next filler word has too many tokens
        whole = system["content"]
        for piece in (" a", "a", "."):
            system["content"] = whole + piece
            if now < len(encode(tokenizer, messages)) <= tokens:
                break
        else:
            raise ValueError(f"prompt {number} cannot be brought to exactly {tokens} tokens with this tokenizer")
    return messages


def conversations(tokenizer: Any, work: Work) -> list[list[Message]]:
    """The prompts of every step, all different."""
    return [conversation(tokenizer, number, work.prompt_tokens) for number in range(work.prompts)]
