"""The store of `tracking` (tests/conftest.py), as a client sees it, and a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import store
from rest_core.serving.plugin import PLUGIN_FILE


@pytest.fixture
def client(tracking: TrackingConfig) -> MlflowClient:
    return store.open_client(store.resolve_uri(tracking))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real one, with eight tokens."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    (folder / PLUGIN_FILE).write_text("", encoding="utf-8")
    (folder / "optimizer.pt").write_bytes(b"not for the registry")
    return folder
