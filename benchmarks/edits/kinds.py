"""What is edited: files of each kind as they should be, and the project's own readers of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from edits import changes, spools
from edits.changes import Change
from pipelines.platform import load_platform
from rest_core import config as configuration
from rest_core.chat import encode_prompt, encode_response
from rest_core.config import DataConfig, DataSource, ModelConfig
from rest_core.data.prepare import prepare
from rest_core.model import loading
from rest_core.model.capabilities import why_not_shared
from rest_core.records import Message, Tool
from rest_core.styles.create import built_in_style

_TOP = Path(__file__).resolve().parents[2]
_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}}
_SCHEMA = {"type": "object", "properties": _PROPERTIES, "required": ["city"]}
_TOOL = {"name": "weather", "description": "Weather of a city.", "parameters": _SCHEMA}
_CALL = {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}
_CHAT = [
    {"role": "user", "content": "How warm is Oslo?"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": _CALL}]},
    {"role": "tool", "content": '{"warm": 20}'},
    {"role": "assistant", "content": "<think>It is 20.</think> 20 degrees."},
]
_ACE = f"Here is a list of functions in JSON format that you can invoke:\n{json.dumps([_TOOL])}"
_LISTED = (
    "You call tools.\n**Available Tools**\nIn your response, you can use the following tools:\n1. Name: weather\n"
    f"Description: Weather.\nParameters: {json.dumps(_PROPERTIES)}\n\n**Steps for Each Turn**\n1. Think."
)
_ANSWER = '<think> a </think>\n<tool_call>\n{"name": "weather", "parameters": {"city": "Oslo"}}\n</tool_call>'
_GLAIVE_CALL = '{"name": "weather", "arguments": \'{"city": "Oslo"}\'}'
_GLAIVE = f"USER: How warm is Oslo?\n\nASSISTANT: <functioncall> {_GLAIVE_CALL} <|endoftext|>"
_POSSIBLE = [{"weather": {"city": ["Oslo"], "days": [3]}}]
RECORDS: dict[str, dict[str, Any]] = {
    "jsonl": {"messages": _CHAT, "tools": [{"type": "function", "function": _TOOL}]},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "How warm is Rome?"},
            {"from": "gpt", "value": f"<tool_call>\n{json.dumps(_CALL)}\n</tool_call>"},
        ],
        "tools": json.dumps([_TOOL]),
    },
    "toolace": {
        "system": _ACE,
        "conversations": [
            {"from": "user", "value": "How warm is Lima?"},
            {"from": "assistant", "value": '[weather(city="Lima", days=1/1)]'},
        ],
    },
    "trl": {"prompt": _CHAT[:1], "completion": _CHAT[1:2], "tools": [_TOOL]},
    "glaive": {"system": f"SYSTEM: You have functions -\n{json.dumps(_TOOL)}", "chat": _GLAIVE},
    "xlam": {
        "query": "How warm is Cairo?",
        "tools": json.dumps([{**_TOOL, "parameters": {"city": {"type": "str, optional", "default": "x"}}}]),
        "answers": json.dumps([{"name": "weather", "arguments": {"city": "Cairo"}}]),
    },
    "bfcl-retired": {
        "question": [[{"role": "user", "content": "How warm is Perth?"}]],
        "function": [_TOOL],
        "ground_truth": _POSSIBLE,
    },
    "toolrl-rl": {
        "prompt": [{"role": "system", "content": _LISTED}, {"role": "user", "content": "<user> Warm? </user>"}],
        "reward_model": {"ground_truth": _ANSWER},
    },
    "toolrl-sft": {"instruction": _LISTED, "input": "<user> Warm? </user>", "output": _ANSWER},
}


@dataclass(frozen=True)
class Kind:
    """Originals below a folder, how a file of them is edited, and who reads them."""

    make: Callable[[Path], None]
    edit: Callable[[Random, Path], None]
    read: Callable[[Path, int], None]  # the folder, and the edit's number; raises what the project raises
    share: float  # of all edits


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the marks of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    made.chat_template = _TEMPLATE
    return made


_known_tokenizer = cache(tokenizer)


def _edit_one(by_suffix: dict[str, Change | None]) -> Callable[[Random, Path], None]:
    def edit(rng: Random, folder: Path) -> None:
        path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
        path.write_bytes(changes.edited(rng, path.read_bytes(), by_suffix.get(path.suffix)))

    return edit


def _make_data(folder: Path) -> None:
    for name, record in RECORDS.items():
        several = [json.loads(json.dumps(record).replace("warm", f"warm{n}")) for n in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in several), encoding="utf-8")
        (folder / f"{name}.json").write_text(json.dumps(several), encoding="utf-8")
        table = pyarrow.Table.from_pylist(several)
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", compression="none")
    moments = pyarrow.array([0, 2**40, -(2**40)], pyarrow.timestamp("us", tz="UTC"))
    columns = {"messages": [json.dumps(_CHAT)] * 3, "tools": [json.dumps([_TOOL]).encode()] * 3, "at": moments}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "binary.parquet", compression="none")


def _edit_data(rng: Random, folder: Path) -> None:
    """Leave one file of the folder, edited."""
    chosen = rng.choice(sorted(folder.iterdir()))
    for path in folder.iterdir():
        if path != chosen:
            path.unlink()
    _edit_one({".jsonl": changes.of_json_lines, ".json": changes.of_json})(rng, folder)


def _read_data(folder: Path, number: int) -> None:
    (path,) = folder.iterdir()
    style = built_in_style(("compact", "toolrl")[number % 2])
    data = DataConfig(
        sources=(DataSource(location=str(path)),), on_invalid=("drop", "stop")[number // 2 % 2], validation_fraction=0.3
    )
    prepare(data, style=style, tokenizer=_known_tokenizer(), evaluation_questions={}, out=folder / "out")


def _make_profile(folder: Path) -> None:
    for path in (_TOP / "configs").glob("*.yaml"):
        shutil.copy(path, folder)


def _one_left(rng: Random, folder: Path) -> None:
    chosen = rng.choice(sorted(folder.iterdir()))
    for path in folder.iterdir():
        if path != chosen:
            path.unlink()
    _edit_one({".yaml": changes.of_yaml})(rng, folder)


def _read_profile(folder: Path, number: int) -> None:
    (path,) = folder.iterdir()
    configuration.load(str(path))


def _make_platform(folder: Path) -> None:
    shutil.copy(_TOP / "deploy" / "platform.yaml", folder)


def _read_platform(folder: Path, number: int) -> None:
    load_platform(folder / "platform.yaml")


def _make_checkpoint(folder: Path) -> None:
    made = tokenizer()
    settings: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    architecture = AutoConfig.for_model(
        "llama",
        vocab_size=len(made),
        hidden_size=16,
        intermediate_size=32,
        max_position_embeddings=512,
        eos_token_id=made.eos_token_id,
        **settings,
    )
    AutoModelForCausalLM.from_config(architecture).save_pretrained(folder)
    made.save_pretrained(folder)


def _read_checkpoint(folder: Path, number: int) -> None:
    config = ModelConfig(source=str(folder), prompt_style="compact")
    made = loading.load_tokenizer(folder, config)
    style = built_in_style("compact")
    history = [Message("user", "Hi"), style.assistant_turn([], "Hello", "t"), Message("user", "Bye")]
    tools = [Tool("f", "d", {"type": "object", "properties": {}, "required": []})]
    ids = encode_prompt(made, style.render(tools, history), style, tools)
    encode_response(made, _ANSWER)
    loading.context_length(folder, config)
    model = loading.load_model(folder, config)
    why_not_shared(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[n % model.config.vocab_size for n in ids[:20]]]))


_CHECKPOINT_CHANGES: dict[str, Change | None] = {
    ".json": changes.of_json,
    ".safetensors": changes.of_safetensors,
    ".jinja": lambda rng, content: changes.of_text(rng, content.decode()).encode("utf-8", "surrogatepass"),
}

KINDS = {
    "data": Kind(_make_data, _edit_data, _read_data, 0.65),
    "profile": Kind(_make_profile, _one_left, _read_profile, 0.17),
    "platform": Kind(_make_platform, _one_left, _read_platform, 0.10),
    "checkpoint": Kind(_make_checkpoint, _edit_one(_CHECKPOINT_CHANGES), _read_checkpoint, 0.03),
    "spool": Kind(spools.make, spools.edit, spools.read, 0.05),
}
