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
        self._bytes = _spellings(tokenizer)
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
        spelled = [self._bytes.get(n, b"") for n in ids[:length]]
        ends = np.zeros(len(ids), dtype=np.int64)
        np.cumsum([len(piece) for piece in spelled], out=ends[:length])
        ends[length:] = ends[length - 1] if length else 0
        return b"".join(spelled).decode("utf-8", errors="surrogateescape"), ends


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that end a response.

    A model may stop at more ids than its tokenizer's end of sequence: `rest_core.model.loading.load_tokenizer` leaves
    those of the model's generation settings on the tokenizer, as `response_stop_ids`.
    """
    return frozenset([tokenizer.eos_token_id, *getattr(tokenizer, "response_stop_ids", ())])


def _spellings(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of every id, found between two other tokens: decoders treat the first token of a text otherwise."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(tokenizer, "it is no tokenizer of the library tokenizers (tokenizer.json)")

    def decode(ids: Sequence[int]) -> str:
        return str(backend.decode(ids, skip_special_tokens=False))

    ids = sorted(set(backend.get_vocab(with_added_tokens=True).values()))
    anchor, edge = _anchor(tokenizer, ids, decode)
    spelled: dict[int, bytes] = {}
    readable: list[int] = []
    for n in ids:
        text = decode([anchor, n, anchor])
        if not (text.startswith(edge) and text.endswith(edge) and len(text) >= 2 * len(edge)):
            raise _refusal(tokenizer, f"id {n} changes its neighbours: {edge!r} twice, it between, is {text!r}")
        text = text[len(edge) : len(text) - len(edge)]
        if _UNREADABLE in text:
            spelled[n] = _raw_bytes(tokenizer, n, backend.id_to_token(n), text)
        else:
            spelled[n] = text.encode()
            readable.append(n)
    _check_in_a_row(tokenizer, [anchor, *readable, anchor], spelled)
    return spelled


def _anchor(tokenizer: Any, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[int, str]:
    """An id that is spelled alike wherever it stands, and its text."""
    for n in ids:
        text = decode([n, n, n])
        third = text[: len(text) // 3]
        if third and third * 3 == text and _UNREADABLE not in third:
            return n, third
    example = f"id {ids[0]} three times is {decode([ids[0]] * 3)!r}" if ids else "there are none"
    raise _refusal(tokenizer, f"its decoder does not write tokens side by side ({example})")


def _raw_bytes(tokenizer: Any, n: int, piece: str, text: str) -> bytes:
    """The bytes of a piece that are no UTF-8 by themselves, which the decoder shows as `text`.

    There are two ways to write such bytes in a vocabulary: sentencepiece's byte tokens and the byte-level alphabet.
    A piece may also hold U+FFFD itself.
    """
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


def _check_in_a_row(tokenizer: Any, ids: Sequence[int], spelled: dict[int, bytes]) -> None:
    """Refuse a tokenizer in which a row of ids is not the texts of its ids side by side."""
    texts = [spelled[n].decode() for n in ids]
    expected = "".join(texts)
    # What a clean-up of spaces would make of the text is not what the model has written.
    found = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if found == expected:
        return
    place = 0
    for n, text in zip(ids, texts, strict=True):
        there = found[place : place + len(text)]
        if there != text:
            raise _refusal(tokenizer, f"id {n} is {text!r} by itself and {there!r} in a row with others")
        place += len(text)
    raise _refusal(tokenizer, f"it adds {found[place:][:20]!r} to the end of a text")


def _refusal(tokenizer: Any, why: str) -> UserError:
    return UserError(
        f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r}: {why}; token regions need the bytes of each token, "
        "choose a model with a byte-level BPE or sentencepiece tokenizer"
    )


_CACHE: weakref.WeakKeyDictionary[Any, TokenBytes] = weakref.WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The table of a tokenizer, built once (about 0.4 s for 50,000 pieces)."""
    table = _CACHE.get(tokenizer)
    if table is None:
        table = _CACHE[tokenizer] = TokenBytes(tokenizer)
    return table
