"""Random edits of files: of bytes, of text, and of the structure of JSON and YAML."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEXTS = (
    *("", " " * 2000, "\x00", "\ud800", "é" * 500, "a" * 50_000, "\n\n", "\\", '"', "'", "{", "[{" * 2000, "[" * 5000),
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "<user>" * 500,
        "<tools>",
        "[f(",
        "[f(" + " " * 3000 + "x)]",
        "1/0",
        "9**9",
    ),
    *(
        "0x" + "f" * 5000,
        "9" * 5000,
        "1e999",
        "NaN",
        "-Infinity",
        "1+2j",
        "b'x'",
        "{1, 2}",
        "lambda: 0",
        "%s%n",
        "{{7*7}}",
    ),
    *("../guarded/secret.txt", "../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x"),
    *(
        "s3://bucket/key",
        "~",
        ".",
        "/",
        _LOOP,
        "{{ 'x' * 10**9 }}",
        "following tools:\n" * 200,
        "2026-02-30",
        "!!python/x",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, 5e-324, float("nan"), float("inf")),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, "x", 0.5, ["x", 1, {"a": None}]),
    *TEXTS,
)


def _deep(rng: Random) -> Any:
    value: Any = rng.choice(("x", 1, None))
    for _ in range(rng.choice((3, 40, 70, 900))):
        value = [value] if rng.random() < 0.5 else {rng.choice(("a", "function", "properties")): value}
    return value


def value(rng: Random) -> Any:
    """Any value that a file may have somewhere."""
    return _deep(rng) if rng.random() < 0.05 else copy.deepcopy(rng.choice(VALUES))


def in_structure(rng: Random, whole: Any) -> Any:
    """A copy of a value of JSON in which one place is changed."""
    whole = copy.deepcopy(whole)
    places = _places(whole)
    if not places:
        return value(rng)
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, other_key = rng.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    elif kind == 2:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    elif kind == 3 and isinstance(holder, dict):
        holder[rng.choice([*holder, "x", "__class__", ""])] = holder.pop(key)
    elif kind == 4 and isinstance(holder[key], str):
        holder[key] = of_text(rng, holder[key])
    else:
        holder[key] = value(rng)
    return whole


def _places(whole: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting, seen = [whole], set()  # YAML's aliases share a holder, as often as they like
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return found


def of_text(rng: Random, text: str) -> str:
    """A text in which a span is left out, doubled, moved or replaced."""
    first, last = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    last = min(last, first + rng.choice((1, 5, 50, 100_000)))
    before, span, after = text[:first], text[first:last], text[last:]
    return rng.choice(
        [
            lambda: before + after,
            lambda: before + span * rng.choice((2, 3, 200)) + after,
            lambda: before,
            lambda: before + rng.choice(TEXTS) + after,
            lambda: after + span + before,
            lambda: before + span.swapcase()[::-1] + after,
        ]
    )()


def of_bytes(rng: Random, content: bytes) -> bytes:
    """Bytes of which some are flipped, left out, inserted or cut off."""
    data = bytearray(content or b"x")
    kind, place = rng.randrange(5), rng.randrange(len(data))
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place : place + rng.choice((1, 4, 100))]
    elif kind == 3:
        data[place:place] = rng.choice((b"\xff", b"\x00" * 8, b"\xff" * 8, b"\xed\xa0\x80", b"\xef\xbb\xbf", data[:50]))
    else:
        data[place : place + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff"))
    return bytes(data)


def of_json(rng: Random, content: bytes) -> bytes:
    return json.dumps(in_structure(rng, json.loads(content)), ensure_ascii=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def of_json_lines(rng: Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = of_json(rng, lines[place]) + b"\n"
    return b"".join(lines)


def of_yaml(rng: Random, content: bytes) -> bytes:
    written: str = yaml.safe_dump(in_structure(rng, yaml.safe_load(content)), allow_unicode=True)
    return written.encode("utf-8", "surrogatepass")


def of_safetensors(rng: Random, content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = of_json(rng, content[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


Change = Callable[[Random, bytes], bytes]


def edited(rng: Random, content: bytes, structural: Change | None) -> bytes:
    """Content after one to three edits, of structure or of its bytes and text."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.random()
        try:
            if structural is not None and kind < 0.6:
                content = structural(rng, content)
            elif structural is not None and kind < 0.8:
                content = of_text(rng, content.decode("utf-8")).encode("utf-8", "surrogatepass")
            else:
                content = of_bytes(rng, content)
        except (ValueError, RecursionError, yaml.YAMLError, IndexError):  # an edit before has broken the structure
            content = of_bytes(rng, content)
    return content
