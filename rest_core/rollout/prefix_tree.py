"""Keys and values of token sequences that may come again: a radix tree within a memory budget.

A dialogue's next prompt begins with its last one, and dialogues with the same tools begin alike. The tree keeps what
was computed for a sequence, each shared beginning once, and gives the longest beginning that it knows of another.

When the budget is spent, sequences are dropped that were used neither since `begin` was last called nor in the round
before; if there are none, a new sequence is not kept. Dropping the least recently used instead would help nobody:
dialogues come in turns, and each would be dropped just before its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

_BLOCK = 64  # tokens
Layers = list[tuple[Tensor, Tensor]]
"""Keys and values (heads, tokens, size) of every layer."""


class Node:
    """A run of tokens after those of its ancestors."""

    __slots__ = ("children", "ids", "layers", "parent", "used")

    def __init__(self, ids: list[int], layers: Layers, parent: Node | None) -> None:
        self.ids, self.layers, self.parent = ids, layers, parent
        self.children: dict[int, Node] = {}  # by their first ids
        self.used = 0


class PrefixTree:
    """See the module. `limit` is the memory in bytes; `computed` and `reused` count prompt tokens."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.computed = self.reused = 0
        self._call = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything, as when the weights change."""
        self._root = Node([], [], None)
        self._bytes = 0

    def begin(self) -> None:
        """A call of many sequences begins."""
        self._call += 1

    def match(self, ids: Sequence[int]) -> list[tuple[Node, int]]:
        """The longest known beginning of `ids`: its nodes, and how many tokens of each are meant."""
        node, done, path = self._root, 0, []
        while done < len(ids) and (child := node.children.get(ids[done])) is not None:
            shared = _common(child.ids, ids, done)
            child.used = self._call
            path.append((child, shared))
            done += shared
            if shared < len(child.ids):
                break
            node = child
        return path

    def insert(self, ids: Sequence[int], layers: Callable[[int, int], Layers]) -> bool:
        """Keep a sequence; False where there is no memory for it.

        Args:
            layers: (first, end) → keys and values of these tokens, of which a copy is kept.
        """
        path = self.match(ids)
        done = matched(path)
        if done == len(ids):
            return True
        node, shared = path[-1] if path else (self._root, 0)
        tensors = layers(done, len(ids))
        size = _size(tensors)
        if not self._make_room(size):
            return False
        if shared < len(node.ids):
            self._split(node, shared)
        # A copy: the tensors are views of what is overwritten next.
        child = Node(list(ids[done:]), [(keys.clone(), values.clone()) for keys, values in tensors], node)
        child.used = self._call
        node.children[child.ids[0]] = child
        self._bytes += size
        return True

    def has_room(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens might be kept; true as long as nothing is known about their size."""
        if not self._root.children:
            return True
        some = next(iter(self._root.children.values()))
        return self._make_room(_size(some.layers) * tokens // len(some.ids))

    def _make_room(self, size: int) -> bool:
        if self._bytes + size > self.limit:
            stale = [node for node in self._leaves(self._root) if node.used < self._call - 1]
            for node in sorted(stale, key=lambda leaf: leaf.used):
                if self._bytes + size <= self.limit:
                    break
                self._drop(node)
        return self._bytes + size <= self.limit

    def _leaves(self, node: Node) -> Iterator[Node]:
        stack = list(node.children.values())
        while stack:
            node = stack.pop()
            if not node.children:
                yield node
            stack += node.children.values()

    def _drop(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.ids[0]]
        self._bytes -= _size(node.layers)

    def _split(self, node: Node, at: int) -> None:
        """`node` keeps its first `at` tokens; a new child has the others, and the children."""
        # Copies: as views both halves would hold all of the memory until the last of them is dropped.
        tail = Node(node.ids[at:], [(k[:, at:].clone(), v[:, at:].clone()) for k, v in node.layers], node)
        tail.children, tail.used = node.children, node.used
        for child in tail.children.values():
            child.parent = tail
        node.ids, node.children = node.ids[:at], {tail.ids[0]: tail}
        node.layers = [(k[:, :at].clone(), v[:, :at].clone()) for k, v in node.layers]


def matched(path: Sequence[tuple[Node, int]]) -> int:
    """Tokens of a path."""
    return sum(count for _, count in path)


def shared_beginnings(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Of each sequence, how many of its first tokens another one has as well."""
    order = sorted(range(len(sequences)), key=lambda n: list(sequences[n]))
    shared = [0] * len(sequences)
    for one, other in pairwise(order):
        common = _common(sequences[one], sequences[other], 0)
        shared[one], shared[other] = max(shared[one], common), max(shared[other], common)
    return shared


def together(sequences: Iterable[Sequence[int]], tokens: int) -> int:
    """How many of the sequences, from the first on, a tree of so many tokens keeps at a time; at least one.

    What they have in common is counted once, in blocks of 64 tokens.
    """
    known: set[int] = set()
    kept = count = 0
    for count, ids in enumerate(sequences):
        beginning = 0
        for start in range(0, len(ids), _BLOCK):
            block = tuple(ids[start : start + _BLOCK])
            beginning = hash((beginning, block))
            kept += 0 if beginning in known else len(block)
            known.add(beginning)
        if kept > tokens and count:
            return count
    return count + 1


def _common(run: Sequence[int], ids: Sequence[int], start: int) -> int:
    """How many tokens of `run` are those of `ids` from `start` on."""
    end = min(len(run), len(ids) - start)
    if run[:end] == ids[start : start + end]:
        return end
    return next(n for n in range(end) if run[n] != ids[start + n])


def _size(layers: Layers) -> int:
    return sum(tensor.nbytes for pair in layers for tensor in pair)
