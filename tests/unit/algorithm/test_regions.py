"""Regions on sampled ids against a slow oracle: text built from labelled pieces, every byte counted by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rest_core.algorithm.regions import Region, batch_regions, decode_response, read_response, token_regions
from rest_core.chat import Opening
from rest_core.errors import UserError
from rest_core.token_bytes import TokenBytes, token_bytes

Piece = tuple[str, Region]
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=12)
SCALARS = st.integers(-99, 99) | PLAIN | st.booleans() | st.none()


def call_pieces(name: str, arguments: dict[str, Any], spelling: str, name_first: bool) -> list[Piece]:
    quoted = json.dumps(name, ensure_ascii=False)[1:-1]
    named = [('"name": "', Region.OTHER), (quoted, Region.NAME), ('"', Region.OTHER)]
    given_ = [(f'"{spelling}": ', Region.OTHER), (json.dumps(arguments, ensure_ascii=False), Region.ARGUMENTS)]
    first, second = (named, given_) if name_first else (given_, named)
    return [("{", Region.OTHER), *first, (", ", Region.OTHER), *second, ("}", Region.OTHER)]


@st.composite
def labelled_responses(draw: Any) -> list[Piece]:
    """A response as pieces of known region: any blocks in any order, with junk between and unclosed ends."""
    pieces: list[Piece] = []
    for kind in draw(st.lists(st.sampled_from(["think", "tool_call", "response", "junk"]), min_size=1, max_size=4)):
        if kind == "junk":
            pieces.append((draw(PLAIN), Region.OTHER))
            continue
        pieces.append((f"<{kind}>", Region.FORMAT))
        if kind == "tool_call":
            for _ in range(draw(st.integers(0, 3))):
                pieces.append(("\n", Region.OTHER))
                pieces += call_pieces(
                    draw(PLAIN),
                    draw(st.dictionaries(PLAIN | st.just("name"), SCALARS, max_size=3)),
                    draw(st.sampled_from(["parameters", "arguments"])),
                    draw(st.booleans()),
                )
            if draw(st.booleans()):
                pieces.append(('\n{"name": "cut", "parameters": {"a"', Region.OTHER))
            pieces.append(("\n", Region.OTHER))
        else:
            region = Region.THINK if kind == "think" else Region.RESPONSE
            pieces.append((draw(PLAIN), region))
        pieces.append((f"</{kind}>", Region.FORMAT))
    if draw(st.booleans()):
        pieces.append(("<think>never closed", Region.OTHER))
    return pieces


def oracle(pieces: list[Piece], ids: list[int], tokenizer: Any) -> list[int]:
    """Count the bytes of each token by region, one byte at a time."""
    of_byte = [region for text, region in pieces for _ in text.encode()]
    table = TokenBytes(tokenizer)
    position, regions = 0, []
    for token in ids:
        counts = [0] * len(Region)
        width = 0 if token == tokenizer.eos_token_id else len(table._bytes[token])
        for region in of_byte[position : position + width]:
            counts[region] += 1
        position += width
        regions.append(counts.index(max(counts)) if width else int(Region.OTHER))
    assert position == len(of_byte)
    return regions


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=labelled_responses())
def test_agrees_with_counting_bytes(pieces: list[Piece], tokenizer: Any) -> None:
    text = "".join(piece for piece, _ in pieces)
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert token_regions(ids, tokenizer).tolist() == oracle(pieces, ids, tokenizer)
    assert decode_response(ids, tokenizer) == text


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 379), max_size=60))
def test_any_ids_get_one_region_each(ids: list[int], tokenizer: Any) -> None:
    regions = token_regions(torch.tensor(ids, dtype=torch.int64), tokenizer)
    assert regions.shape == (len(ids),)
    assert regions.dtype == torch.int64
    assert all(0 <= code < len(Region) for code in regions.tolist())
    decode_response(ids, tokenizer).encode("utf-8")  # never a lone surrogate


OPENED = ["<think>", "<think>\n", "<think> \n\n"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=labelled_responses(), begun=st.sampled_from(OPENED), junk=st.lists(st.integers(0, 379), max_size=9))
def test_what_the_prompt_has_opened_is_read_and_has_no_token(
    pieces: list[Piece], begun: str, junk: list[int], tokenizer: Any
) -> None:
    """The regions of the sampled ids are those of the whole text less the prompt's part."""
    before = encode(begun, tokenizer)
    sampled = encode("go</think>" + "".join(piece for piece, _ in pieces), tokenizer) + junk
    response, regions = read_response(sampled, tokenizer, Opening(begun))
    whole, whole_regions = read_response(before + sampled, tokenizer, Opening())
    assert response == whole
    assert regions.tolist() == whole_regions[len(before) :].tolist()
    assert len(regions) == len(sampled)


def test_a_thought_that_the_prompt_begins(tokenizer: Any) -> None:
    made = copy.deepcopy(tokenizer)
    made.chat_template = "{{ messages[-1]['content'] }}<|im_start|>{% if add_generation_prompt %}<think>\n{% endif %}"
    said = "go </think><response>yes</response>"
    ids = [made.convert_tokens_to_ids(char.replace(" ", "Ġ")) for char in said] + [made.eos_token_id]
    response, regions = read_response(ids, made)
    assert response.well_formed and response.text == f"<think>\n{said}" == decode_response(ids, made)
    expected = ["THINK"] * 3 + ["FORMAT"] * 8 + ["FORMAT"] * 10 + ["RESPONSE"] * 3 + ["FORMAT"] * 11 + ["OTHER"]
    assert [Region(code).name for code in regions.tolist()] == expected
    mask = torch.ones(2, len(ids), dtype=torch.bool)
    both = batch_regions(torch.tensor([ids, ids]), mask, made, [Opening("<think>"), Opening()])
    assert both[0].tolist() == regions.tolist()
    assert batch_regions(torch.tensor([ids]), mask[:1], made).tolist() == [regions.tolist()]
    assert both[1].tolist() == [Region.OTHER] * 11 + regions[11:].tolist()  # nothing opened: a stray </think>
    unclosed, codes = read_response(ids[:3], made)
    assert unclosed.tags == ("<think>",) and codes.tolist() == [Region.OTHER] * 3


def encode(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def region_text(text: str, tokenizer: Any, region: Region) -> str:
    """The text of all tokens of a region, one byte a token, so that nothing straddles."""
    ids = [
        tokenizer.convert_tokens_to_ids(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(c)[0][0])
        for c in text
    ]
    regions = token_regions(ids, tokenizer).tolist()
    return "".join(char for char, code in zip(text, regions, strict=True) if code == region)


def test_every_call_of_a_block_counts_to_its_last_byte(tokenizer: Any) -> None:
    """Defects of the authors' code: only the first call is weighted, and every span loses its last token."""
    text = (
        '<tool_call>\n{"name": "aa", "parameters": {"s": "x}"}}\n{"name": "bb", "parameters": {"t": [1]}}\n</tool_call>'
    )
    assert region_text(text, tokenizer, Region.NAME) == "aabb"
    assert region_text(text, tokenizer, Region.ARGUMENTS) == '{"s": "x}"}{"t": [1]}'
    assert region_text(text, tokenizer, Region.FORMAT) == "<tool_call></tool_call>"


def test_an_inner_name_is_an_argument(tokenizer: Any) -> None:
    """Defect of the authors' code: an inner "name" key takes the name weight."""
    text = '<tool_call>{"parameters": {"name": "inner"}, "name": "outer"}</tool_call>'
    assert region_text(text, tokenizer, Region.NAME) == "outer"


def test_string_arguments_do_not_run_into_the_next_call(tokenizer: Any) -> None:
    """Defect of the authors' code: the brace search runs on when parameters are no object."""
    text = '<tool_call>\n{"name": "a", "parameters": "none"}\n{"name": "b", "parameters": {"k": 1}}\n</tool_call>'
    assert region_text(text, tokenizer, Region.ARGUMENTS) == '{"k": 1}'
    assert region_text(text, tokenizer, Region.NAME) == "b"


def test_malformed_and_unclosed_text_is_other(tokenizer: Any) -> None:
    for text in ("<think> never closed", "<tool_call>{oops}", "plain words", "</think>"):
        assert region_text(text, tokenizer, Region.OTHER) == text


def test_ids_are_never_encoded_again(tokenizer: Any) -> None:
    """Defect of the authors' code: it indexes re-tokenised text into the sampled ids.

    The same text spelled byte by byte has other ids than the tokenizer would choose; each gets its own region.
    """
    text = '<think>ab</think><tool_call>{"name": "x", "parameters": {}}</tool_call>'
    bytewise = [tokenizer.convert_tokens_to_ids(c.replace(" ", "Ġ").replace("\n", "Ċ")) for c in text]
    assert bytewise != encode(text, tokenizer)
    regions = token_regions(bytewise, tokenizer).tolist()
    assert [c for c, code in zip(text, regions, strict=True) if code == Region.THINK] == ["a", "b"]
    assert len(regions) == len(bytewise)


def test_bytes_that_are_no_text_keep_their_place(tokenizer: Any) -> None:
    half = tokenizer.convert_tokens_to_ids("Ã")  # the first byte of "é" alone
    ids = [*encode("<think>", tokenizer), half, half, *encode("</think><response>x</response>", tokenizer)]
    place = len(encode("<think>", tokenizer))
    assert token_regions(ids, tokenizer)[place : place + 2].tolist() == [Region.THINK] * 2
    assert "��" in decode_response(ids, tokenizer)


def test_only_the_end_token_is_silent(tokenizer: Any) -> None:
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids = [*encode("a", tokenizer), start, tokenizer.eos_token_id]
    assert decode_response(ids, tokenizer) == "a<|im_start|>"
    assert token_regions(ids, tokenizer)[-1] == Region.OTHER
    assert token_regions([], tokenizer).shape == (0,)


def test_ties_go_to_the_earlier_region() -> None:
    """Tokens that cover one byte each of two regions."""
    pieces = ["<tool_call>", '{"name": "', "nam", 'e"', ', "parameters": ', "{", "}}", "</tool_call>"]
    vocabulary = {"<eos>": 0} | {piece.replace(" ", "Ġ"): n + 1 for n, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    expected = {
        'e"': Region.NAME,  # a byte of NAME, a byte of OTHER
        "}}": Region.ARGUMENTS,  # a byte of ARGUMENTS, a byte of OTHER
        "nam": Region.NAME,
        "{": Region.ARGUMENTS,
        "<tool_call>": Region.FORMAT,
        "</tool_call>": Region.FORMAT,
    }
    regions = token_regions(list(range(1, len(pieces) + 1)), made).tolist()
    assert regions == [expected.get(piece, Region.OTHER) for piece in pieces]


@pytest.mark.parametrize(("piece", "expected"), [("▁city", b" city"), ("<0xC3>", b"\xc3"), ("é", "é".encode())])
def test_sentencepiece_vocabularies(piece: str, expected: bytes) -> None:
    backend = Tokenizer(models.BPE(vocab={"<eos>": 0, piece: 1}, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert token_bytes(made)._bytes[1] == expected


def test_a_tokenizer_without_bytes_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="a"))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    with pytest.raises(UserError, match=r"side by side \(ids \[0, 0\] are '<eos> <eos>'\)"):
        token_regions([1], made)
