"""A small real tokenizer, and ToolRL's public files where they lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
from public_data import missing, public
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the two marks of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: n for n, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|start|>")
    made.chat_template = CHAT_TEMPLATE
    return made


def _shared(name: str) -> Path:
    if (folder := public(name)) is None:
        pytest.skip(missing(name))
    return folder


@pytest.fixture(scope="session")
def toolrl_folder() -> Path:
    return _shared("toolrl")


@pytest.fixture(scope="session")
def api_bank_folder() -> Path:
    return _shared("api-bank")
