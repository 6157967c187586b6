"""A tokenizer and models that are real but tiny: byte-level vocabulary, two random layers; nothing is downloaded."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rest_core.config import TrackingConfig

torch.set_num_threads(1)  # models this small lose by threads, the more so with several test processes

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def logging_of_its_own() -> Iterator[None]:
    """What a command sets up of logging in a test does not outlive it: the stream is closed by then."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest's own are of other types
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (ids 0 to 255), one a tag of the response format, and the marks of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="session")
def random_model(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """random_model("qwen2", **settings): two random float32 layers of any architecture that transformers knows.

    `spread` is the standard deviation of the weights: large enough that predictions differ clearly between tokens.
    """

    def make(architecture: str = "llama", *, spread: float = 0.3, seed: int = 0, **settings: Any) -> Any:
        config = AutoConfig.for_model(
            architecture,
            **{
                "vocab_size": len(tiny_tokenizer),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 512,
                "initializer_range": spread,
                "bos_token_id": tiny_tokenizer.bos_token_id,
                "eos_token_id": tiny_tokenizer.eos_token_id,
                "pad_token_id": tiny_tokenizer.pad_token_id,
                **settings,
            },
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    return make


@pytest.fixture(scope="session")
def _tiny_llama(random_model: Callable[..., Any]) -> Any:
    return random_model("llama")


@pytest.fixture
def tiny_model(_tiny_llama: Any) -> Any:
    """A random Llama of this test alone."""
    return copy.deepcopy(_tiny_llama)


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, _tiny_llama: Any, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """The same model as a flat checkpoint on disk; only read from."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    _tiny_llama.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_api_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two items a level, in the shape of ToolRL's files."""
    folder = tmp_path_factory.mktemp("api-bank")
    call = {"name": "GetWeather", "parameters": {"city": "Oslo"}}
    for level in (1, 2, 3):
        answer: Any = call if level == 2 else [call]
        item = {"system": "Call tools.", "user": "Weather in Oslo?", "answer": answer}
        (folder / f"level-{level}-api_processed.json").write_text(json.dumps([item, item]), encoding="utf-8")
    return folder


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its settings for the life of a process; tests use one process for many trainings."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's SQLite database, migrated once a session."""
    from rest_core.operations.tracking import store

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    store.open_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    """An MLflow store of this test alone."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    # Of experiments without a place of their own; MLflow's default is ./mlruns, the user's.
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "mlruns" / "artifacts"))
    database = tmp_path / "mlruns" / "mlflow.db"
    database.parent.mkdir()
    shutil.copyfile(empty_database, database)
    return TrackingConfig(uri=f"sqlite:///{database}", experiment="test")
