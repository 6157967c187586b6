"""The bytes of every token of a vocabulary, so that sampled ids are mapped to text without encoding anything.

Regions and rewards are computed on the text that the sampled ids spell, and each token covers exactly its own bytes
of that text. Re-encoding the text would give other ids wherever the tokenizer does not round-trip.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_core.errors import UserError

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # how sentencepiece vocabularies write a space


def _gpt2_byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level BPE vocabularies: printable Latin-1 stands for itself, the rest is moved up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    moved = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + n): byte for n, byte in enumerate(moved)})
    return alphabet


class TokenBytes:
    """Id → bytes for one tokenizer: byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM …) or sentencepiece with fallback.

    `end_ids` are the ids that end a response (end of sequence, padding): they stand for no text. Every other special
    token stands for its own spelling, so that a model which writes chat markup is seen to do so.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        spell = _speller(tokenizer)
        self._bytes: list[bytes] = [
            added[n].encode() if n in added else (spell(piece) if piece is not None else b"")
            for n, piece in enumerate(pieces)
        ]
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
        try:
            spelled = [self._bytes[n] for n in ids[:length]]
        except IndexError:
            # A model's vocabulary may be padded beyond the tokenizer's: such ids stand for no text.
            spelled = [self._bytes[n] if n < len(self._bytes) else b"" for n in ids[:length]]
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


def _speller(tokenizer: Any) -> Any:
    """The function from a vocabulary piece to its bytes, chosen by the tokenizer's own decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = repr(backend.decoder) if backend is not None else ""
    if "ByteLevel" in decoder:
        alphabet = _gpt2_byte_alphabet()

        def byte_level(piece: str) -> bytes:
            # A piece with a character outside the alphabet is no byte-level piece: it stands for itself.
            codes = [alphabet.get(char) for char in piece]
            return piece.encode() if None in codes else bytes(code for code in codes if code is not None)

        return byte_level
    if "ByteFallback" in decoder or _SPACE in decoder:

        def sentencepiece(piece: str) -> bytes:
            match = _BYTE_FALLBACK.fullmatch(piece)
            return bytes([int(match[1], 16)]) if match else piece.replace(_SPACE, " ").encode()

        return sentencepiece
    raise UserError(
        f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r}: its decoder is neither byte-level BPE nor "
        "sentencepiece; token regions need the bytes of each token, choose a model with such a tokenizer"
    )


_CACHE: weakref.WeakKeyDictionary[Any, TokenBytes] = weakref.WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The table of a tokenizer, built once (about 0.1 s for 50,000 pieces)."""
    table = _CACHE.get(tokenizer)
    if table is None:
        table = _CACHE[tokenizer] = TokenBytes(tokenizer)
    return table
