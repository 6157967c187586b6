"""The readers of BFCL's answer formats against the official decoder, which runs code: in a process of its own."""

import importlib.util
import json
import time
from pathlib import Path

import format_answers
import official_bfcl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.evaluation.bfcl.formats import FORMATS, parse, unreadable
from rest_core.records import ToolCall

needs_bfcl = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
ONE_OF_EACH = [
    f"format_{written}{tag}_json"
    for written in ("python", "json", "verbose_xml", "concise_xml")
    for tag in ("", "_tag")
]

TEXTS = json.loads(Path(__file__).with_name("format_texts.json").read_text(encoding="utf-8"))


def cases():
    for name in ONE_OF_EACH:
        tag = "_tag" in name
        for text in TEXTS[name.removeprefix("format_").removesuffix("_json").removesuffix("_tag").rpartition("_")[2]]:
            yield from ((name, one) for one in ((text, f"<TOOLCALL> {text} </TOOLCALL>") if tag else (text,)))
        for kind in format_answers.KINDS:
            yield name, format_answers.answer("parallel_multiple_12", name, kind)
            yield name, format_answers.answer("simple_python_94", name, kind)


@needs_bfcl
def test_calls_are_those_of_the_official_decoder(tmp_path):
    texts = list(dict.fromkeys(cases()))
    official = official_bfcl.decode(tmp_path, [(FORMATS[name], text) for name, text in texts])
    assert len(texts) > 500 and 0.2 < sum(one is None for one in official) / len(texts) < 0.6
    different = []
    for (name, text), theirs in zip(texts, official, strict=True):
        response = parse(text, name)
        failed = unreadable(response)
        if failed is not None and failed.error_type == "ast_decoder:decoder_wrong_output_format":
            assert theirs in ("[{'f': [1]}]", "[{'f': None}]")
            continue
        ours = None if failed else repr([{call.name: call.arguments} for call in response.calls])
        # Names are always texts here, and are not the function's either way.
        if ours != (theirs and theirs.replace("{None: ", "{'None': ").replace("{5: ", "{'5': ")):
            different.append((name, text, ours, theirs))
    assert different == []


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_thoughts_do_not_count_and_calls_are_read(name):
    call = ToolCall("a.b", {"x": [1, "two"], "y": {"z": 2.5}, "w": "<'\"&>"})
    text = format_answers.text_of([call], name)
    assert parse(f"<think>[f(a=1)] {text}</think>\n\n{text}", name).calls == (call,)
    assert parse(text, name).well_formed and not parse("Sorry.", name).well_formed


def test_nothing_of_an_answer_is_run(tmp_path):
    canary = tmp_path / "canary"
    run = f"open({str(canary)!r}, 'w')"
    for text in (f"[f(a={run} + 1)]", f"[f(a=1 + {run})]", f"[f(a=[{run}][0])]", f"[f(a=-{run})]", f"[{run}]"):
        parse(text, "format_python_json")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("{1, 2}", None),
        ("{1: 'a'}", ("{1: 'a'}",)),
        ("b'x'", ("b'x'",)),
        ("2j", ("2j",)),
        ("9**9**9", None),
        ("2**64*'x'", None),
        ("'%99999999d' % 1", None),
        ("-'x'", None),
    ],
)
def test_values_that_no_answer_has(value, read):
    response = parse(f"[f(a={value})]", "format_python_json")
    assert [call.arguments["a"] for call in response.calls] == ([] if read is None else [read])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "(" * 100_000,
        "[{" * 50_000,
        '[{"a":1},' * 30_000,
        "<functions>" * 20_000,
        "<TOOLCALL>" * 20_000,
        "<functions>" + "<a>" * 50_000 + "</functions>",
        "[f(a=" + "-" * 50_000 + "1)]",
        "[f(a=" + "1+" * 50_000 + "1)]",
        "[f(a=" + "9" * 5_000 + ")]",
        "[f(a=" + "9" * 4_000 + "*9" * 300 + ")]",
        "\ud800\x00[f(a=1)]",
        '[f(a="\ud800")]',
    ],
)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_hostile_texts_take_no_time(name, text):
    begun = time.monotonic()
    parse(text, name)
    assert time.monotonic() - begun < 3


@given(st.text(alphabet="[]{}()<>/fa=1,.'\"-*: \\\n", max_size=60), st.sampled_from(ONE_OF_EACH))
def test_any_text_is_read(text, name):
    assert parse(text, name).text == text
