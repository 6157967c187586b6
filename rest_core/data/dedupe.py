"""Which samples repeat others, and which repeat evaluation questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rest_core.data.prompts import user_turns
from rest_core.data.similarity import Shingles, SimilarityIndex, count_shingles, jaccard, normalised, shingles
from rest_core.data.tools import same_name
from rest_core.records import Sample
from rest_core.response import Response

EXACT, NEAR = "exact duplicate", "near duplicate"


@dataclass(frozen=True)
class Traits:
    """The traits by which samples are compared.

    `dialogue` and `answer` are shingles of the prompt's dialogue and of the reference without its thoughts; `identity`
    hashes normalised dialogue, tools and answer; `opening` is the normalised first user turn, which the steps of one
    dialogue share; `calls` are the answer's to a single user turn, None where one of them has no arguments or there is
    none; `questions` are the user's turns, all together and the last alone.
    """

    identity: str
    dialogue: Shingles
    answer: Shingles
    opening: str
    calls: str | None
    questions: tuple[str, ...]


def traits(sample: Sample, reference: Response) -> Traits:
    """The traits of a sample and its parsed reference."""
    dialogue = "\n".join(message.content for message in sample.prompt if message.role != "system")
    calls = [json.dumps([same_name(call.name), call.arguments], sort_keys=True) for call in reference.calls]
    answer = "\n".join([*calls, reference.response or ""])
    tools = sorted(json.dumps([tool.name, tool.description, tool.parameters], sort_keys=True) for tool in sample.tools)
    turns = user_turns(sample.prompt)
    single = len(turns) == 1 and all(message.role in ("system", "user") for message in sample.prompt)
    telling = single and calls and all(call.arguments for call in reference.calls)
    # The answer is compared with its signs: −5 and 5 are different calls.
    content = json.dumps([normalised(dialogue), tools, " ".join(answer.split())])
    return Traits(
        identity=hashlib.sha256(content.encode()).hexdigest(),
        dialogue=shingles(dialogue),
        answer=shingles(answer),
        opening=normalised(turns[0]),
        calls="\n".join(calls) if telling else None,
        questions=tuple(dict.fromkeys((normalised(" ".join(turns)), normalised(turns[-1])))),
    )


def duplicates(pool: Sequence[Traits], threshold: float) -> dict[int, str]:
    """The members of `pool` that repeat an earlier kept one: position → EXACT or NEAR.

    Near means that both dialogue and answer are at least `threshold` similar: the steps of a long dialogue differ
    little in their history, and yet each has its own answer. 1 finds exact copies only.
    """
    found: dict[int, str] = {}
    identities: set[str] = set()
    index: SimilarityIndex[int] = SimilarityIndex(threshold, count_shingles(member.dialogue for member in pool))
    for place, member in enumerate(pool):
        if member.identity in identities:
            found[place] = EXACT
        elif threshold < 1 and any(
            jaccard(pool[other].answer, member.answer) >= threshold for other in index.matches(member.dialogue)
        ):
            found[place] = NEAR
        else:
            identities.add(member.identity)
            index.add(place, member.dialogue)
    return found


class EvaluationOverlap:
    """Finds the evaluation set that a sample's question occurs in, literally after normalising or nearly.

    Args:
        questions: the user's turns of every evaluation item, by the name of its set.
        threshold: Jaccard similarity of word shingles from which two questions count as the same.
    """

    def __init__(self, questions: Mapping[str, Sequence[str]], threshold: float) -> None:
        self._exact: dict[str, str] = {}
        sets: dict[tuple[str, int], Shingles] = {}
        for name, texts in questions.items():
            for number, text in enumerate(texts):
                self._exact.setdefault(normalised(text), name)
                sets[name, number] = shingles(text)
        self._index: SimilarityIndex[tuple[str, int]] = SimilarityIndex(threshold, count_shingles(sets.values()))
        for key, members in sets.items():
            self._index.add(key, members)

    def find(self, member: Traits) -> str | None:
        """The name of the first evaluation set with this question, None where there is none."""
        for question in member.questions:
            if question and question in self._exact:
                return self._exact[question]
            if match := next(iter(self._index.matches(shingles(question))), None):
                return match[0]
        return None
