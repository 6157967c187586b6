"""Texts that are the same, or nearly: normalised text, word shingles, and an exact search by Jaccard similarity."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Shingles = frozenset[str]
Key = TypeVar("Key", bound=Hashable)

_WORDS_A_SHINGLE = 3
_WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    """`text` in lower case, compatibility forms unified, everything but words dropped, one blank between words.

    Signs and decimal points go too: "3.5%" and "3 5" are the same here. For finding copies that errs on the safe side.
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def shingles(text: str) -> Shingles:
    """Every run of three words of the normalised text; a shorter text is one shingle, an empty one none."""
    words = normalised(text).split()
    last = max(len(words) - _WORDS_A_SHINGLE, 0)
    return frozenset(" ".join(words[n : n + _WORDS_A_SHINGLE]) for n in range(last + 1) if words)


def jaccard(left: Shingles, right: Shingles) -> float:
    """|left ∩ right| / |left ∪ right|; two empty sets are equal (1)."""
    if not left and not right:
        return 1.0
    common = len(left & right)
    return common / (len(left) + len(right) - common)


class SimilarityIndex(Generic[Key]):
    """Finds the sets whose Jaccard similarity to a given one is at least `threshold`, exactly.

    Prefix filtering (Chaudhuri, Ganti, Kaushik 2006): with all shingles in one order, two sets of similarity t share
    one of the first |x| − ⌈t|x|⌉ + 1 shingles of each. In the order of rarity few sets share these, so that hardly any
    pair is compared.

    Args:
        threshold: in (0, 1].
        frequencies: how often each shingle occurs; any counts give the same result, true ones give it fast.
    """

    def __init__(self, threshold: float, frequencies: Counter[str]) -> None:
        self._threshold = threshold
        self._frequencies = frequencies
        self._sets: dict[Key, Shingles] = {}
        self._postings: dict[str, list[Key]] = defaultdict(list)

    def add(self, key: Key, members: Shingles) -> None:
        self._sets[key] = members
        for shingle in self._prefix(members):
            self._postings[shingle].append(key)

    def matches(self, members: Shingles) -> Iterator[Key]:
        """Keys of the sets that are similar enough; the empty set matches nothing."""
        seen: set[Key] = set()
        for shingle in self._prefix(members):
            for key in self._postings.get(shingle, ()):
                if key not in seen:
                    seen.add(key)
                    if jaccard(self._sets[key], members) >= self._threshold:
                        yield key

    def _prefix(self, members: Shingles) -> list[str]:
        # The tolerance keeps 0.9 · 10 = 9.000000000000002 from shortening the prefix.
        length = len(members) - math.ceil(self._threshold * len(members) - 1e-9) + 1
        return sorted(members, key=lambda shingle: (self._frequencies[shingle], shingle))[:length] if members else []


def count_shingles(sets: Iterable[Shingles]) -> Counter[str]:
    """In how many sets each shingle occurs."""
    counts: Counter[str] = Counter()
    for members in sets:
        counts.update(members)
    return counts
