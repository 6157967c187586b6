"""A checkpoint is somebody else's: whatever it holds, reading it ends, in one line, and runs no code of it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rest_core import storage
from rest_core.chat import Refused, encode_prompt, with_template
from rest_core.config import ModelConfig
from rest_core.errors import UserError
from rest_core.model import loading, trial, trial_process
from rest_core.records import Message

CONFIG = ModelConfig()
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

Change = Callable[[Path], None]


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone: what passed in another is tried again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_passed", set())
    storage.cache_folder().mkdir(parents=True)
    return storage.cache_folder()


def template(text: str) -> Change:
    return lambda folder: (folder / "chat_template.jinja").write_text(text + TEMPLATE, encoding="utf-8") and None


def setting(file: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        fields = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**fields, **values}), encoding="utf-8")

    return change


def content(file: str, text: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(text) and None


def architecture(**values: Any) -> Change:
    return setting("config.json", **values)


def split_by(pattern: str) -> Change:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return setting("tokenizer.json", pre_tokenizer=split)


def growing(folder: Path) -> None:
    """Each normaliser doubles the text."""
    double = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    setting("tokenizer.json", normalizer={"type": "Sequence", "normalizers": [double] * 40})(folder)


def told(function: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(template(LOOP), "chat template takes endless computing", id="template-loops"),
        pytest.param(
            template("{% if messages | length > 5 %}" + LOOP + "{% endif %}"),
            "chat template takes endless computing",
            id="template-loops-on-long-dialogues",
        ),
        pytest.param(
            template("{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"),
            "chat template takes (more than 4 GiB|endless)",
            id="template-doubles-a-text",
        ),
        pytest.param(
            architecture(num_hidden_layers=10**7, layer_types=None),
            "config.json takes (more than 4 GiB|endless)",
            id="ten-million-layers",
        ),
        pytest.param(growing, "tokenizer takes (more than 4 GiB|endless)", id="normaliser-doubles-a-text"),
    ],
)
def test_what_does_not_end_is_stopped(copied: Path, change: Change, problem: str) -> None:
    change(copied)
    message = told(loading.load_tokenizer, copied, CONFIG)
    assert message.startswith(f"model {copied}: its ")
    assert re.search(problem, message)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("config", architecture(hidden_size="16")),
        ("config", architecture(hidden_size=10**9)),
        ("config", architecture(vocab_size=10**12)),
        ("config", architecture(hidden_size=-16)),
        ("config", architecture(num_hidden_layers=-3)),
        ("config", architecture(num_hidden_layers=0)),
        ("config", architecture(num_attention_heads=0, head_dim=None)),
        ("config", architecture(hidden_act="none such")),
        ("config", architecture(_attn_implementation="owner/kernel")),
        ("config", architecture(_attn_implementation=7)),
        ("config", architecture(rope_parameters=3)),
        ("config", architecture(rope_parameters={"rope_type": "none such", "rope_theta": 1.0})),
        ("config", architecture(dtype="float99")),
        ("config", architecture(model_type=["llama"])),
        ("config", architecture(model_type="none such")),
        ("config", architecture(quantization_config=3)),
        ("config", architecture(pad_token_id=10**9)),
        ("config", architecture(text_config=3)),
        ("config", architecture(get_text_config=3)),
        ("config", architecture(id2label=3)),
        ("config", content("config.json", b"[1]")),
        ("config", content("config.json", b"\xff")),
        ("config", content("config.json", b"[" * 100_000)),
        ("config", content("config.json", b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}")),
        ("tokenizer", content("tokenizer.json", b"[1]")),
        ("tokenizer", content("tokenizer.json", b"\xff")),
        ("tokenizer", setting("tokenizer.json", model={"type": "none such"})),
        ("tokenizer", setting("tokenizer.json", added_tokens=3)),
        ("tokenizer", setting("tokenizer.json", version="9")),
        ("tokenizer", split_by("((")),
        ("tokenizer", split_by(r"(a+)+$|(\w|\w\w)*!")),
        ("tokenizer", setting("tokenizer_config.json", tokenizer_class=3)),
        ("tokenizer", setting("tokenizer_config.json", eos_token=3)),
        ("tokenizer", setting("tokenizer_config.json", model_input_names=3)),
        ("tokenizer", setting("tokenizer_config.json", added_tokens_decoder=3)),
        ("tokenizer", setting("tokenizer_config.json", model_max_length="x")),
        ("tokenizer", content("tokenizer_config.json", b"[1]")),
        ("template", content("generation_config.json", b"[1]")),
        ("template", content("generation_config.json", b'{"eos_token_id": {"a": 1}}')),
        ("template", template("{{ 'x'.center(1100000) }}")),
        ("template", template("{{ 'x' * 999999999999999 }}")),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(copied: Path, step: str, change: Change) -> None:
    change(copied)
    message = trial_process.problem(step, str(copied), "given", CONFIG)
    assert message is not None and message.startswith(("model given: ", "tokenizer of given: ", "the chat template"))
    assert "\n" not in message and len(message) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages + 1 }}",
        "{{ 1 // 0 }}",
        "{{ range(10 ** 30) }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% include '/etc/passwd' %}",
        "{{ namespace() | tojson }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('a\nb') }}",
        "{% for %}",
    ],
)
def test_a_template_that_fails_refuses_the_messages(tiny_tokenizer: Any, copied: Path, text: str) -> None:
    template(text)(copied)
    tokenizer = loading.read_tokenizer(str(copied), copied, CONFIG)
    with pytest.raises(Refused):
        with_template(tokenizer, [{"role": "user", "content": "q"}])
    assert "refuses messages of the roles user (" in told(encode_prompt, tokenizer, [Message("user", "q")])


def test_pickled_weights_are_refused_and_not_opened(copied: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    assert "save them as safetensors" in told(loading.load_model, copied, CONFIG)
    assert not (tmp_path / "ran").exists()


def test_pickles_beside_safetensors_are_left_alone(copied: Path) -> None:
    (copied / "pytorch_model.bin").write_bytes(b"no pickle")
    assert loading.load_model(copied, CONFIG) is not None


def test_code_of_a_checkpoint_does_not_run(copied: Path, tmp_path: Path) -> None:
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    classes = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    architecture(auto_map=classes, model_type="evil")(copied)
    problems = [trial_process.problem(step, str(copied), "given", CONFIG) for step in trial.STEPS]
    assert any(problems)
    assert not (tmp_path / "ran").exists()


def test_what_has_passed_is_not_tried_again_until_it_changes(
    copied: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading.load_tokenizer(copied, CONFIG)
    assert len(list((cache / "tried").iterdir())) == 1
    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setattr(trial, "_servers", {})
    monkeypatch.setattr(trial, "_PROCESS", "no_such_module")  # would fail, were it started
    assert loading.context_length(copied, CONFIG) == 512
    template(" ")(copied)
    with pytest.raises(RuntimeError, match="no_such_module"):
        loading.load_tokenizer(copied, CONFIG)


def test_a_checkpoint_whose_code_is_trusted_is_not_tried(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_servers", {})
    monkeypatch.setattr(trial, "_PROCESS", "no_such_module")
    assert loading.context_length(copied, ModelConfig(trust_remote_code=True)) == 512


def test_a_sound_checkpoint_passes_every_step(copied: Path) -> None:
    for step in trial.STEPS:
        assert trial_process.problem(step, str(copied), "given", CONFIG) is None
