"""YAML from users: whatever it is, one line says what is wrong, soon and without much memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.platform import load_platform
from rest_core.ablation.settings import parse_schemes
from rest_core.config import load
from rest_core.errors import UserError
from rest_core.styles.template_file import read_template_file
from rest_core.yaml_text import parse_yaml, read_yaml

# Nine aliases a level, nine levels: 387 million values.
LEVELS = ", ".join(f"&b{level} [{', '.join([f'*b{level - 1}' if level else 'l'] * 9)}]" for level in range(9))
BOMB = f"[{LEVELS}]"
CHAIN = f"[&b0 [1], {', '.join(f'&b{level} [*b{level - 1}]' for level in range(1, 3000))}]"
MERGES = "{a0: &b0 {k: 1}, " + ", ".join(
    f"a{level}: &b{level} {{<<: [{', '.join([f'*b{level - 1}'] * 9)}]}}" for level in range(1, 12)
)
DEEP = "[" * 20_000
HOSTILE = {
    BOMB: "more than 50000 values",
    MERGES + "}": "more than 50000 values",
    CHAIN: "nested too deeply",
    DEEP: "nested too deeply",
    "{a: " * 20_000: "nested too deeply",
    "- " * 20_000: "nested too deeply",
    "[" + "a," * 60_000 + "]": "more than 50000 values",
    "&a [*a]": "an alias stands for what it is part of",
    "9" * 5000: "a number of 5000 characters",
    "0x" + "f" * 100_000: "a number of 100002 characters",
    "1:" * 2000 + "1": "a number of 4001 characters",
    "a" * 200_000: "longer than 128 KiB",
    "{a: 1, a: 2}": "the key 'a' stands twice",
    "2024-99-99": "month must be in 1..12",
    "!!int ''": "another form than its tag says",
    "!!timestamp x": "another form than its tag says",
    "!!python/object/apply:os.system [x]": "not valid YAML",
    "a: \x00": "not valid YAML",
    "a: b: c": "line 1, column 5",
    "--- a\n--- b": "a single document",
}


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:12] for text in HOSTILE])
def test_hostile_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=HOSTILE[text]) as caught:
        parse_yaml(text, where="here")
    assert str(caught.value).startswith("here: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@settings(deadline=None)
@given(st.text("[]{}&*ab<:,-? \n'\"|>!%#@`0x1.e~", max_size=60))
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, where="here")
    except UserError as problem:
        assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"model: \xff\n", "not UTF-8 text .byte 7.; save it as UTF-8"),
        ("model: {source: x}".encode("utf-16"), "not UTF-8 text"),
        ("model: {source: x}".encode("utf-16-le"), "not valid YAML"),
        ("ä".encode() * 65_536 + b"x", "longer than 128 KiB"),
    ],
)
def test_a_file_of_another_encoding_or_size_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    for read in (read_yaml, load_platform, read_template_file, lambda path: load(str(path))):
        with pytest.raises(UserError, match=problem) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("rl:\r\n  steps: 3\r\n".encode("utf-8-sig"))
    assert load(str(path)).rl.steps == 3


def test_anchors_are_shared_as_yaml_has_them() -> None:
    text = "a: &one {count: 1}\nb: *one\nc: {<<: *one, resource: gpu}"
    assert parse_yaml(text, where="") == {"a": {"count": 1}, "b": {"count": 1}, "c": {"count": 1, "resource": "gpu"}}
    assert parse_yaml("", where="") is None


@pytest.mark.parametrize("text", [BOMB, DEEP, "9" * 5000, "'", "2024-99-99"])
def test_an_option_is_read_like_a_file(text: str) -> None:
    with pytest.raises(UserError, match=r"^--set 'rl.steps': ") as caught:
        load("tiny", (f"rl.steps={text}",))
    assert len(str(caught.value)) < 300
    with pytest.raises(UserError, match=r"^scheme .x=") as caught:
        parse_schemes([f"x={text}"])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a value", f"rl: {{steps: [{', '.join(['[a, b]'] * 10_000)}]}}"),
        ("a text", f"rl: {{steps: {'x' * 100_000}}}"),
        ("a key", f"rl: {{{'x' * 1000}: 1}}"),
        ("a tag", f"rl: {{weights: {{scheme: {'x' * 100_000}}}}}"),
    ],
)
def test_a_message_shows_the_beginning_of_a_value(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"^profile large: ") as caught:
        load(str(path))
    assert len(str(caught.value)) < 1100 and "\n" not in str(caught.value)


def test_a_message_shows_no_password() -> None:
    address = f"http://me:{'pa/ss@' * 40}@host"
    for override in (f"tracking.uri={{a: '{address}'}}", f"rl.steps='{address}'", f"rl.steps=[[['{address}']]]"):
        with pytest.raises(UserError) as caught:
            load("tiny", (override,))
        assert "pa/ss" not in str(caught.value)


def test_a_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(f"launch: {{train_job: {{nodes: 1, runtime: r, tolerations: [{{a: {BOMB}}}]}}}}", encoding="utf-8")
    program = """
        import resource, sys
        from rest_core.config import load
        from rest_core.errors import UserError
        try:
            load(sys.argv[1])
        except UserError as problem:
            print(problem)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    assert "more than 50000 values" in done.stdout, done.stderr
