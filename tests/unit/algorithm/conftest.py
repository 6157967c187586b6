"""A real byte-level BPE tokenizer, trained in memory, whose pieces run across the borders of regions."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_CORPUS = [
    '<think> I should use the tool. </think>\n<tool_call>\n{"name": "get_weather", "parameters": {"city": "Oslo"}}\n',
    '{"name": "search", "arguments": {"q": "naïve café", "n": 3}}\n</tool_call>\n<response> Done. </response>',
] * 50


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # merges cross words
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>", "<|im_start|>"]
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")
