from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rest_core import storage
from rest_core.config import LoraConfig, ModelConfig
from rest_core.errors import UserError
from rest_core.model import loading
from rest_core.token_bytes import stop_ids, token_bytes

CONFIG = ModelConfig()


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copied"))


def told(function: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_and_a_hub_id_stand_for_themselves(tiny_checkpoint: Path) -> None:
    assert loading.resolve(tiny_checkpoint) == str(tiny_checkpoint)
    assert loading.resolve("owner/name") == "owner/name"


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.Q4.gguf").write_bytes(b"GGUF")
    assert "dequantize=True" in told(loading.resolve, tmp_path)
    assert "dequantize=True" in told(loading.resolve, tmp_path / "model.Q4.gguf")
    assert "dequantize=True" in told(loading.resolve, "owner/model.gguf")


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_a_model_that_is_not_there(source: str) -> None:
    assert f"model {source!r} is not there" in told(loading.resolve, source)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    assert told(loading.resolve, tmp_path).startswith(f"{tmp_path}: no config.json")


def test_an_unknown_embedded_model_gets_its_nearest_match() -> None:
    assert "did you mean 'embedded:smollm2-135m-instruct'?" in told(loading.resolve, "embedded:smollm-135m")


def test_a_checkpoint_on_s3_is_fetched(
    tiny_checkpoint: Path, tmp_path: Path, empty_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    empty_s3.create_bucket(Bucket="models")
    storage.upload_folder(tiny_checkpoint, "s3://models/tiny")
    folder = Path(loading.resolve("s3://models/tiny"))
    assert "no such bucket or object" in told(loading.resolve, "s3://elsewhere/tiny")
    assert folder.is_relative_to(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (tiny_checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_weights_are_one_line(copied: Path, share: float) -> None:
    weights = copied / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * share)])
    assert told(loading.load_model, copied, CONFIG).startswith(f"model {copied}: ")


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("num_hidden_layers", 3, "9 weights are not in the checkpoint (first: model.layers.2."),
        ("intermediate_size", 48, "6 weights are of another shape than config.json says"),
        ("model_type", "t5", "T5Config"),
        ("model_type", "no-such-thing", "no-such-thing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_description(copied: Path, setting: str, value: Any, problem: str) -> None:
    described = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**described, setting: value}))
    assert problem in told(loading.load_model, copied, CONFIG)


def test_a_checkpoint_without_weights_or_tokenizer(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    assert told(loading.load_model, copied, CONFIG).startswith(f"model {copied}: ")
    (copied / "tokenizer.json").write_text('{"vers')
    assert told(loading.load_tokenizer, copied, CONFIG).startswith(f"tokenizer of {copied}: ")


def test_a_quantised_checkpoint_cannot_be_trained(tiny_model: Any) -> None:
    tiny_model.config.quantization_config = {"quant_method": "x"}
    assert "quantised" in told(loading._require_trainable, tiny_model, "owner/name")
    del tiny_model.config.quantization_config
    tiny_model.lm_head.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    assert "quantised" in told(loading._require_trainable, tiny_model, "owner/name")


@pytest.mark.parametrize(("attribute", "problem"), [("chat_template", "no chat template"), ("eos_token", "no end-of")])
def test_a_tokenizer_must_speak_in_turns(tiny_tokenizer: Any, copied: Path, attribute: str, problem: str) -> None:
    lacking = copy.deepcopy(tiny_tokenizer)
    setattr(lacking, attribute, None)
    shutil.rmtree(copied)
    lacking.save_pretrained(copied)
    (copied / "config.json").write_text('{"model_type": "llama"}')
    assert problem in told(loading.load_tokenizer, copied, CONFIG)


def test_the_end_pads_where_there_is_no_padding_token(tiny_tokenizer: Any, copied: Path) -> None:
    lacking = copy.deepcopy(tiny_tokenizer)
    lacking.pad_token = None
    lacking.save_pretrained(copied)
    assert loading.load_tokenizer(copied, CONFIG).pad_token == "<|end|>"


def test_random_weights_keep_the_architecture(tiny_checkpoint: Path, tiny_model: Any) -> None:
    drawn = loading.load_model(tiny_checkpoint, ModelConfig(init="random"))
    shapes = {name: p.shape for name, p in drawn.named_parameters()}
    assert shapes == {name: p.shape for name, p in tiny_model.named_parameters()}
    assert not torch.equal(drawn.lm_head.weight, tiny_model.lm_head.weight)


def test_a_model_is_loaded_in_float32_unless_asked(tiny_checkpoint: Path, tiny_model: Any) -> None:
    loaded = loading.load_model(tiny_checkpoint, CONFIG)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), tiny_model.parameters(), strict=True))
    half = loading.load_model(tiny_checkpoint, CONFIG, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_policy_is_flat_whole_and_described(
    random_model: Any, tiny_tokenizer: Any, tmp_path: Path, tied: bool
) -> None:
    model = random_model(tie_word_embeddings=tied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loading.save_policy(model, tiny_tokenizer, tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
        assert {stored.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert ("lm_head.weight" in names) == (not tied)  # a tied weight is written once
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[name].bfloat16().float()), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert loading.load_tokenizer(tmp_path, CONFIG).chat_template == tiny_tokenizer.chat_template


def test_adapters_are_merged_into_a_saved_policy(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    ids = torch.arange(1, 9)[None]
    base = tiny_model(ids).logits.detach()
    adapted = loading.with_lora(tiny_model, LoraConfig(r=2, target_modules=("q_proj", "down_proj"))).eval()
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert all("q_proj" in name or "down_proj" in name for name in trainable)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        logits = adapted(ids).logits
    assert not torch.allclose(logits, base, atol=1e-2)
    loading.save_policy(adapted, tiny_tokenizer, tmp_path, dtype=torch.float32)
    assert not list(tmp_path.glob("adapter*"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(merged(ids).logits, logits, rtol=1e-4, atol=1e-4)


def test_what_ends_a_response(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A model that stops at more ids than its tokenizer's end: none of them is text of the response."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    for configured in (None, 7, [7, 8]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": configured}))
        tokenizer = loading.load_tokenizer(folder, ModelConfig(source=str(folder)))
        listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
        assert stop_ids(tokenizer) == {tokenizer.eos_token_id, *listed}
        for end in (tokenizer.eos_token_id, *listed):
            assert token_bytes(tokenizer).text([20, 21, end])[0] == token_bytes(tokenizer).text([20, 21])[0] != ""


def test_a_template_that_no_response_can_go_on_from_is_refused_at_once(tiny_tokenizer: Any, copied: Path) -> None:
    made = copy.deepcopy(tiny_tokenizer)
    made.chat_template = made.chat_template.replace("assistant\n", "assistant\n<tool_call>\n")
    made.save_pretrained(copied)
    message = told(loading.load_tokenizer, copied, CONFIG)
    assert message.startswith(f"the chat template of '{copied}' ends the prompt in '<tool_call>\\n'")


def test_a_tokenizer_without_bytes_is_refused_at_once(copied: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    backend = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", unk_token="[UNK]")
    made.chat_template = "{{ messages[-1]['content'] }}"
    made.save_pretrained(copied)
    assert told(loading.load_tokenizer, copied, CONFIG).startswith(f"tokenizer '{copied}': its decoder does not write")
