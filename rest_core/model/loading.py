"""Loading and saving policies: embedded models, hub ids, folders and s3:// URIs in, flat Hugging Face folders out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rest_core import storage
from rest_core.chat import opening
from rest_core.config import LoraConfig, ModelConfig
from rest_core.errors import UserError, described, needs_extra
from rest_core.model import embedded
from rest_core.model.context import context_of
from rest_core.model.parameters import without_adapters
from rest_core.model.trial import require_sound
from rest_core.response import TAGGED
from rest_core.serving.plugin import PLUGIN_FILE, plugin_source
from rest_core.styles.chat_template import own_template, written_by
from rest_core.styles.style import Style
from rest_core.token_bytes import token_bytes

log = logging.getLogger(__name__)

_READABLE = 0o644  # safetensors writes files that nobody else may read


def resolve(source: str | Path) -> str:
    """A folder or hub id that transformers loads, for a folder, a hub id, an s3:// URI or an embedded model.

    Raises:
        UserError: the model is not there, or its weights are packed.
    """
    text = str(source)
    if text.startswith(embedded.PREFIX):
        return str(embedded.checkpoint(text.removeprefix(embedded.PREFIX), storage.cache_folder()))
    if text.startswith("s3://"):
        return resolve(storage.fetch(text, storage.cache_folder() / "models"))
    folder = Path(text)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return text
        if any(folder.glob("*.gguf")):
            raise UserError(f"{folder}: {_PACKED}")
        raise UserError(f"{folder}: no config.json; give the folder of a Hugging Face checkpoint")
    if folder.suffix == ".gguf":
        raise UserError(f"{folder}: {_PACKED}")
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1:
        raise UserError(
            f"model {text!r} is not there; give a hub id (owner/name), a folder, an s3:// URI or embedded:NAME"
        )
    return text


_PACKED = (
    "packed GGUF weights cannot be trained; load them once with GgufConfig(dequantize=True), save_pretrained() "
    "them, and give that folder"
)


def load_tokenizer(source: str | Path, config: ModelConfig) -> Any:
    """The tokenizer of a policy, with a chat template, a padding token and the ids at which its responses stop.

    Raises:
        UserError: it is not there, lacks one of these, does not spell its ids one by one (`TokenBytes`), or its chat
            template ends prompts in tags that no response can continue (`rest_core.chat.opening`).
    """
    where = resolve(source)
    require_sound(where, source, config)
    return read_tokenizer(where, source, config)


def read_tokenizer(where: str, source: str | Path, config: ModelConfig) -> Any:
    """`load_tokenizer` without a trial: of a checkpoint at `where`, as `resolve` gives it."""
    tokenizer = bare_tokenizer(where, source, config)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = own_template(tokenizer.chat_template)
    if not tokenizer.chat_template:
        raise UserError(f"tokenizer of {source}: no chat template; use an instruct model")
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer of {source}: no end-of-sequence token; use an instruct model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config.enable_thinking is not None:
        tokenizer.template_variables = {"enable_thinking": config.enable_thinking}
    with _checkpoint_errors(f"tokenizer of {source}"):
        tokenizer.response_stop_ids = _configured_stop_ids(where, _options(config))
        token_bytes(tokenizer)  # what cannot be used is refused now, and not after the first rollout
        opening(tokenizer)
    return tokenizer


def bare_tokenizer(where: str, source: str | Path, config: ModelConfig) -> Any:
    """The tokenizer as it is in a checkpoint."""
    with _checkpoint_errors(f"tokenizer of {source}"):
        return AutoTokenizer.from_pretrained(where, **_options(config))


def load_model(source: str | Path, config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> Any:
    """The policy as a causal language model in `dtype` (float32 to train, the compute type to evaluate)."""
    where = resolve(source)
    require_sound(where, source, config)
    options = _options(config)
    if config.init == "pretrained" and _has_pickles_only(Path(where)):
        raise UserError(f"model {source}: its weights are pickled, which is code; save them as safetensors")
    with _checkpoint_errors(f"model {source}"):
        if config.init == "random":
            architecture = AutoConfig.from_pretrained(where, **options)
            model = AutoModelForCausalLM.from_config(
                architecture, dtype=dtype, trust_remote_code=config.trust_remote_code
            )
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                **options,
            )
            model, loading = loaded
            _require_whole(loading, source)
    _require_trainable(model, source)
    return model


def context_length(source: str | Path, config: ModelConfig) -> int | None:
    """`rest_core.model.context.context_of` a model, by its configuration alone."""
    where = resolve(source)
    require_sound(where, source, config)
    return context_of(read_config(where, source, config))


def read_config(where: str, source: str | Path, config: ModelConfig) -> Any:
    """The description of a model, config.json, without a trial of it."""
    with _checkpoint_errors(f"model {source}"):
        return AutoConfig.from_pretrained(where, **_options(config))


def _options(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


@contextmanager
def _checkpoint_errors(what: str) -> Iterator[None]:
    """Turn what libraries raise of a checkpoint's files into a `UserError`: any exception may come of them."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{what}: {_first_line(error)}") from error
    except Exception as error:
        raise UserError(f"{what}: {described(error, longest=400)}") from error


def _has_pickles_only(folder: Path) -> bool:
    return any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))


def _require_whole(loading: dict[str, Any], source: str | Path) -> None:
    """transformers fills gaps of a checkpoint with random numbers; here they are an error."""
    for what, names in (
        ("not in the checkpoint", loading["missing_keys"]),
        ("of another shape than config.json says", [name for name, *_ in loading["mismatched_keys"]]),
    ):
        if names:
            raise UserError(f"model {source}: {len(names)} weights are {what} (first: {min(names)}); get it again")


def _require_trainable(model: Any, source: str | Path) -> None:
    if getattr(model.config, "quantization_config", None) is not None or any(
        not parameter.is_floating_point() for parameter in model.parameters()
    ):
        raise UserError(
            f"model {source}: its weights are quantised and cannot be trained; give a full-precision checkpoint"
        )


def with_lora(model: Any, lora: LoraConfig) -> Any:
    """The model with trainable low-rank adapters; everything else is frozen."""
    with needs_extra("lora"):
        import peft

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    settings = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, settings)


def save_policy(model: Any, tokenizer: Any, out: Path, *, dtype: torch.dtype, style: Style | None = None) -> None:
    """Write a flat checkpoint that transformers and vLLM read: adapters merged, weights in `dtype`, safetensors.

    Args:
        style: that it was trained in: its chat template then writes this style's prompts, and where responses are in
            the project's own format vLLM's parser for it lies beside the weights. None = as the tokenizer has it.
    """
    model = without_adapters(model)
    cast: dict[int, torch.Tensor] = {}  # by storage, so that tied weights stay one and are written once
    state = {
        name: cast.setdefault(tensor.data_ptr(), tensor.detach().to(dtype))
        for name, tensor in model.state_dict().items()
    }
    for earlier in out.glob("*.safetensors"):
        earlier.unlink()  # not written over: a registered version may share its blocks
    model.save_pretrained(out, state_dict=state)
    described = copy.deepcopy(model.config)  # save_pretrained describes the model's own type
    described.dtype = dtype
    described.save_pretrained(out)
    with _chat_template_of(style, tokenizer):
        tokenizer.save_pretrained(out)
    if style is not None and style.format.dialect is TAGGED:
        (out / PLUGIN_FILE).write_text(plugin_source(), encoding="utf-8")
    for path in out.iterdir():
        if path.is_file():
            path.chmod(_READABLE)


@contextmanager
def _chat_template_of(style: Style | None, tokenizer: Any) -> Iterator[None]:
    """Within the block the tokenizer's chat template writes the prompts of a style, where one can."""
    own = tokenizer.chat_template
    if style is not None:
        try:
            tokenizer.chat_template = written_by(style, tokenizer)
        except UserError as problem:
            log.warning("the checkpoint keeps the model's own chat template: %s", problem)
    try:
        yield
    finally:
        tokenizer.chat_template = own


def _configured_stop_ids(where: str, options: dict[str, Any]) -> list[int]:
    """The ids at which a checkpoint's own generation settings stop; none where it has no settings that can be read."""
    try:
        configured = GenerationConfig.from_pretrained(where, **options).eos_token_id
    except OSError:
        return []
    return configured if isinstance(configured, list) else [configured] if configured is not None else []


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
