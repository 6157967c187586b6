"""The bytes of every token of a vocabulary, so that sampled ids are mapped to text without encoding anything.

Regions and rewards are computed on the text that the sampled ids spell, and each token covers exactly its own bytes
of that text. Re-encoding the text would give other ids wherever the tokenizer does not round-trip.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rest_core.errors import UserError

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNREADABLE = "\ufffd"  # what decoders write for bytes that are no UTF-8


def _gpt2_byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level BPE vocabularies: printable Latin-1 stands for itself, the rest is moved up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    moved = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + n): byte for n, byte in enumerate(moved)})
    return alphabet


_ALPHABET = _gpt2_byte_alphabet()


class TokenBytes:
    """Id → bytes for one tokenizer: what its own decoder makes of each id in the middle of a text.

    `end_ids` are the ids that end a response (end of sequence, padding): they stand for no text. Every other special
    token stands for its own spelling, so that a model which writes chat markup is seen to do so. An id that the
    vocabulary lacks stands for no text either: a model's may be padded beyond the tokenizer's, and have gaps.

    Raises:
        UserError: the tokenizer does not spell its ids one by one, so that a token has no bytes of its own.
    """

    def __init__(self, tokenizer: Any) -> None:
        spelled = _spellings(tokenizer)
        self._none = max(spelled) + 1  # stands for every id beyond the vocabulary
        self._bytes = [spelled.get(n, b"") for n in range(self._none + 1)]
        self._lengths = np.array([len(piece) for piece in self._bytes], dtype=np.int64)
        self.end_ids = stop_ids(tokenizer) | {tokenizer.pad_token_id}

    def text(self, ids: Sequence[int]) -> tuple[str, np.ndarray]:
        """Text of sampled ids, and where each token's bytes end.

        Returns:
            The text of `ids` less the end tokens behind it, UTF-8 with surrogateescape (bytes that are no UTF-8 become
            lone surrogates, so that every byte keeps its place), and the end of every token in bytes, (T,) int64.
        """
        length = len(ids)
        while length and ids[length - 1] in self.end_ids:
            length -= 1
        known = np.array(ids[:length], dtype=np.int64)
        np.minimum(known, self._none, out=known)
        ends = np.zeros(len(ids), dtype=np.int64)
        self._lengths[known].cumsum(out=ends[:length])
        ends[length:] = ends[length - 1] if length else 0
        spelled = b"".join(map(self._bytes.__getitem__, known.tolist()))
        return spelled.decode("utf-8", errors="surrogateescape"), ends


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that end a response.

    A model may stop at more ids than its tokenizer's end of sequence: `rest_core.model.loading.load_tokenizer` leaves
    those of the model's generation settings on the tokenizer, as `response_stop_ids`.
    """
    return frozenset([tokenizer.eos_token_id, *getattr(tokenizer, "response_stop_ids", ())])


def _spellings(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of every id, found between two marks: decoders treat the first token of a text otherwise."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(tokenizer, "it is no tokenizer of the library tokenizers (tokenizer.json)")
    ids = set(backend.get_vocab(with_added_tokens=True).values())
    mark, texts = _texts(tokenizer, ids, lambda row: str(backend.decode(row, skip_special_tokens=False)))
    unreadable = {n: text for n, text in texts.items() if _UNREADABLE in text}
    readable = [n for n in sorted(ids) if n not in unreadable]
    _check_in_a_row(tokenizer, [mark, *readable, mark], texts)
    spelled = {n: text.encode() for n, text in texts.items()}
    return spelled | {n: _raw_bytes(tokenizer, n, backend.id_to_token(n), text) for n, text in unreadable.items()}


def _texts(tokenizer: Any, ids: set[int], decode: Callable[[Sequence[int]], str]) -> tuple[int, dict[int, str]]:
    """A mark, and the text of every id between two of it: all in one go, which costs less than one by one."""
    named = [tokenizer.eos_token_id, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]
    marks = list(dict.fromkeys(n for n in named if n in ids))
    example: list[int] = []
    for mark in marks:
        twice = decode([mark, mark])
        edge = twice[: len(twice) // 2]
        if not edge or edge + edge != twice or _UNREADABLE in edge or twice.find(edge, 1) != len(edge):
            example = [mark, mark]
            continue  # not spelled alike everywhere, or not to be found again: it ends as it begins
        others = list(ids - {mark})
        row = [mark] * (2 * len(others) + 1)
        row[1::2] = others
        parts = decode(row).split(edge)
        if len(parts) == len(others) + 2 and not parts[0] and not parts[-1]:
            return mark, {mark: edge, **dict(zip(others, parts[1:-1], strict=True))}
        rows = ([mark, n, mark] for n in others)
        example = next((row for row in rows if decode(row).count(edge) != 2), [mark, mark])
    raise _refusal(tokenizer, f"its decoder does not write tokens side by side (ids {example} are {decode(example)!r})")


def _raw_bytes(tokenizer: Any, n: int, piece: str, text: str) -> bytes:
    """The bytes of a piece that are no UTF-8 by themselves, which the decoder shows as `text`.

    There are two ways to write such bytes in a vocabulary: sentencepiece's byte tokens and the byte-level alphabet.
    A piece may also hold U+FFFD itself.
    """
    if _UNREADABLE in piece:
        return text.encode()
    fallback = _BYTE_FALLBACK.fullmatch(piece)
    codes = [_ALPHABET.get(char) for char in piece]
    if fallback is not None:
        found = bytes([int(fallback[1], 16)])
    elif None not in codes:
        found = bytes(code for code in codes if code is not None)
    else:
        found = piece.encode()
    shown = found.decode("utf-8", errors="replace")
    if shown != text:
        raise _refusal(tokenizer, f"id {n}, the piece {piece!r}, is {text!r} in its decoder and {shown!r} by its bytes")
    return found


def _check_in_a_row(tokenizer: Any, ids: Sequence[int], texts: dict[int, str]) -> None:
    """Refuse a tokenizer in which a row of ids is not the texts of its ids side by side."""
    # What a clean-up of spaces would make of the text is not what the model has written.
    found = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if found == "".join([texts[n] for n in ids]):
        return
    place = 0
    for n in ids:
        there = found[place : place + len(texts[n])]
        if there != texts[n]:
            raise _refusal(tokenizer, f"id {n} is {texts[n]!r} by itself and {there!r} in a row with others")
        place += len(there)
    raise _refusal(tokenizer, f"it adds {found[place:][:20]!r} to the end of a text")


def _refusal(tokenizer: Any, why: str) -> UserError:
    return UserError(
        f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r}: {why}; token regions need the bytes of each token, "
        "choose a model with a byte-level BPE or sentencepiece tokenizer"
    )


_CACHE: weakref.WeakKeyDictionary[Any, TokenBytes] = weakref.WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The table of a tokenizer, built once (about 0.3 s for 50,000 pieces)."""
    table = _CACHE.get(tokenizer)
    if table is None:
        table = _CACHE[tokenizer] = TokenBytes(tokenizer)
    return table
