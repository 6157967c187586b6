"""The table of bytes against what each kind of tokenizer decodes itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rest_core.algorithm.regions import read_response
from rest_core.errors import UserError
from rest_core.token_bytes import TokenBytes

WORDS = ["▁", "▁city", "city", "é", "▁é", "☃", "{", "}", ":", '"', ".", "▁.", "ab", "a", "b", "�", "▁�"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrapped(backend: Tokenizer, **settings: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", **settings)


def pieces(model: Any) -> Tokenizer:
    """A backend of sentencepiece's kind, without a decoder yet."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    return backend


def bpe() -> Any:
    vocabulary = {piece: n for n, piece in enumerate(["<eos>", "<s>", *BYTES, *WORDS])}
    return models.BPE(vocabulary, [], byte_fallback=True)


def llama_2() -> Any:
    backend = pieces(bpe())
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend, clean_up_tokenization_spaces=False)


def gemma() -> Any:
    """Runs of spaces are added tokens that are not special, spelled with U+2581."""
    backend = pieces(bpe())
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken("▁" * n, normalized=True) for n in (2, 3)])
    return wrapped(backend)


def unigram(replacement: str, prepend_scheme: str) -> Any:
    words = [piece.replace("▁", replacement) for piece in WORDS]
    backend = Tokenizer(models.Unigram([("<eos>", 0.0), *((word, -1.0) for word in words)], unk_id=0))
    backend.decoder = decoders.Metaspace(replacement=replacement, prepend_scheme=prepend_scheme)  # type: ignore[arg-type]
    return wrapped(backend, clean_up_tokenization_spaces=True)  # which " ." would not survive


def byte_level(**gaps: int) -> Any:
    """Byte-level BPE as Qwen has it; `gaps` are further pieces at ids of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: n for n, char in enumerate(alphabet)} | {"Ġcity": 256, "âĺ": 257, "<eos>": 258} | gaps
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("☃☃", normalized=True)])
    return wrapped(backend)


KINDS: dict[str, Callable[[], Any]] = {
    "llama 2": llama_2,
    "gemma": gemma,
    "metaspace": lambda: unigram("▁", "always"),
    "metaspace, another character": lambda: unigram("_", "never"),
    "byte-level": byte_level,
    "byte-level with gaps": lambda: byte_level(sky=400, Ġblue=900),
}
MADE = {name: make() for name, make in KINDS.items()}
TABLES = {name: TokenBytes(made) for name, made in MADE.items()}


def spelled(kind: str, *named: str) -> str:
    made = MADE[kind]
    return TABLES[kind].text([made.convert_tokens_to_ids(piece) for piece in named])[0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_row_of_ids_is_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    made = MADE[kind]
    known = sorted(made.get_vocab().values())
    ids = data.draw(st.lists(st.sampled_from(known), max_size=30))
    start = made.convert_tokens_to_ids("a")  # decoders treat a text's first token otherwise
    text, ends = TABLES[kind].text([*ids, start])
    decoded = made.decode([start, *ids, start], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):  # else the ids spell no UTF-8
        assert decoded == "a" + text
    assert ends[-1] == len(text.encode("utf-8", "surrogateescape"))


def test_llama_2_spells_spaces_bytes_and_letters() -> None:
    assert spelled("llama 2", "▁city", "<0xC3>", "<0xA9>", "é", "<s>") == " cityéé<s>"
    assert spelled("llama 2", "<0xC3>") == "\udcc3"


def test_gemma_runs_of_spaces_are_spaces() -> None:
    assert spelled("gemma", "{", "▁▁", '"', "▁▁▁", "}") == '{  "   }'


def test_an_indented_call_is_read_with_gemma() -> None:
    call = {"name": "a", "parameters": {}}
    made = gemma()
    text = f"<tool_call>\n{json.dumps(call, indent=2)}\n</tool_call>"
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert made.convert_tokens_to_ids("▁▁") in ids
    assert [found.name for found in read_response(ids, made)[0].calls] == ["a"]


def test_another_character_stands_for_a_space() -> None:
    assert spelled("metaspace, another character", "_city", "_.", "é") == " city .é"


def test_ids_above_and_inside_gaps() -> None:
    table, made = TABLES["byte-level with gaps"], MADE["byte-level with gaps"]
    assert len(made) < 400  # what the length of a tokenizer does not say
    assert table.text([400, 900])[0] == "sky blue"
    text, ends = table.text([400, 500, 10**6, -1, 900])
    assert text == "sky blue" and ends.tolist() == [3, 3, 3, 3, 8]


def test_bytes_of_an_unfinished_character_are_kept() -> None:
    made, table = MADE["byte-level"], TABLES["byte-level"]
    text, ends = table.text([made.convert_tokens_to_ids(piece) for piece in ("âĺ", "ĥ", "<think>", "☃☃")])
    assert text == "☃<think>☃☃" and ends.tolist() == [2, 3, 10, 16]


def refused(backend: Tokenizer) -> str:
    with pytest.raises(UserError) as caught:
        TokenBytes(wrapped(backend, name_or_path="owner/model"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_words_with_spaces_put_between_them_are_refused() -> None:
    backend = Tokenizer(models.WordPiece({"<eos>": 0, "a": 1, "##b": 2}, unk_token="<eos>"))
    backend.decoder = decoders.WordPiece()
    message = refused(backend)
    assert message.startswith("tokenizer 'owner/model': its decoder does not write tokens side by side")
    assert "(ids [0, 0] are '<eos> <eos>')" in message and message.endswith("sentencepiece tokenizer")


def test_a_decoder_that_looks_across_tokens_is_refused_with_the_id() -> None:
    backend = pieces(bpe())
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("ba", "x")]
    )
    place = backend.token_to_id("ab")  # before "a" in the vocabulary, and in the row
    assert f"id {place} is 'ab' by itself and 'ax' in a row with others" in refused(backend)


def test_a_decoder_that_swallows_is_refused_with_the_id() -> None:
    backend = pieces(bpe())
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("s>☃", "")])
    mark, place = backend.token_to_id("<eos>"), backend.token_to_id("☃")
    message = refused(backend)
    assert f"does not write tokens side by side (ids [{mark}, {place}, {mark}] are '<eo<eos>')" in message


def test_a_mark_may_stand_in_another_piece() -> None:
    backend = pieces(models.BPE({"<eos>": 0, "x<eos>": 1, "a": 2}, []))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    table = TokenBytes(wrapped(backend, unk_token="<unk>"))
    assert table.text([1, 2, 0, 2])[0] == "x<eos>a<eos>a"


def test_a_piece_whose_bytes_nobody_knows_is_refused() -> None:
    backend = pieces(bpe())
    backend.decoder = decoders.Sequence([decoders.Replace("☃", "��"), decoders.ByteFallback(), decoders.Fuse()])
    place = backend.token_to_id("☃")
    assert f"id {place}, the piece '☃', is '��' in its decoder and '☃' by its bytes" in refused(backend)


def test_a_tokenizer_of_another_library_is_refused() -> None:
    class Slow:
        name_or_path = "owner/slow"

    with pytest.raises(UserError, match=r"'owner/slow': it is no tokenizer of the library tokenizers"):
        TokenBytes(Slow())
