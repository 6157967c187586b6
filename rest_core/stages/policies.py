"""The policies that evaluations measure: a local model, one behind an endpoint, and answers known from earlier runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import rest_core
from rest_core import manifest, storage
from rest_core.config import EvaluationConfig, GenerationConfig, ModelConfig, TransformersEngineConfig
from rest_core.errors import UserError
from rest_core.evaluation.answer_journal import AnswerJournal, Remembering
from rest_core.evaluation.local_policy import LocalPolicy
from rest_core.evaluation.openai_policy import OpenAiPolicy, read_specification
from rest_core.evaluation.policy import Policy
from rest_core.model.loading import context_length, load_model, load_tokenizer, resolve
from rest_core.model.precision import compute_dtype
from rest_core.operations import policies
from rest_core.operations.preflight.gpu import require_visible
from rest_core.rollout.engine import Engine
from rest_core.styles.create import NATIVE, built_in_style, create_style
from rest_core.styles.style import Style
from rest_core.token_bytes import stop_ids


def remote(specification: str, model: ModelConfig, evaluation: EvaluationConfig, journal: Path) -> OpenAiPolicy:
    """The policy `openai:MODEL@URL`; its answers are kept in the directory `journal`.

    Raises:
        UserError: the specification is not of this form, or the directory holds something else.
    """
    name, url = read_specification(specification)
    style = remote_style(model, evaluation.endpoint.prompting)
    identity = {"policy": specification, "prompting": evaluation.endpoint.prompting, "style": style.template}
    return OpenAiPolicy(name, url, evaluation.endpoint, style, AnswerJournal(journal, identity))


def remote_style(model: ModelConfig, prompting: str) -> Style:
    """The style of an endpoint's prompts, whose chat template only the endpoint has.

    Raises:
        UserError: it would need that template.
    """
    if model.prompt_style != NATIVE:
        return create_style(model, None)
    if prompting == "tools":
        return built_in_style("toolrl")  # not used: the endpoint makes the prompts
    raise UserError(
        "model.prompt_style=native: an endpoint puts tools into its own chat template; set "
        "evaluation.endpoint.prompting=tools"
    )


def local(
    name: str, source: Path | str, model: ModelConfig, evaluation: EvaluationConfig, generation: GenerationConfig
) -> LocalPolicy:
    """A model on this machine, by the engine that is configured; its weights are loaded with the first prompts.

    Args:
        name: in reports.
        source: a stage's output, a hub id, a directory, or an s3:// URI.
        generation: has the limits of prompts and responses.
    """
    require_visible()
    policy = policies.fetched(source)
    tokenizer = load_tokenizer(policy, model)
    engine: Any = _LoadedOnFirstUse(policy, tokenizer, model, evaluation, generation)
    return LocalPolicy(name, engine, tokenizer, create_style(model, tokenizer), context_length(policy, model))


class _LoadedOnFirstUse:
    """An `Engine` that loads its model with the first prompts."""

    def __init__(self, *settings: Any) -> None:
        self._settings = settings

    @cached_property
    def _engine(self) -> Engine:
        return _engine(*self._settings)

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        return self._engine.generate(*arguments, **settings)


def _engine(
    policy: Path | str, tokenizer: Any, model: ModelConfig, evaluation: EvaluationConfig, generation: GenerationConfig
) -> Engine:
    from rest_core.memory import keep_freed_memory
    from rest_core.rollout.create import create_engine
    from rest_core.rollout.transformers_engine import TransformersEngine

    keep_freed_memory()
    dtype = compute_dtype(model)
    loaded = load_model(policy, model, dtype=dtype)
    if require_visible() > 0:
        loaded.to("cuda")
    if isinstance(evaluation.engine, TransformersEngineConfig):  # it needs no copy of the weights
        return TransformersEngine.taking_over(
            loaded,
            dtype=dtype,
            stop_ids=stop_ids(tokenizer),
            pad_id=tokenizer.pad_token_id,
            prefix_bytes=int(generation.prefix_cache_gib * 2**30),
        )
    most = generation.max_prompt_tokens + generation.max_response_tokens
    return create_engine(
        evaluation.engine, loaded, tokenizer, dtype=dtype, max_tokens=most, setting="evaluation.engine"
    )


def remembering(
    policy: Policy,
    source: Path | str,
    model: ModelConfig,
    evaluation: EvaluationConfig,
    weights: Mapping[str, Any] | None = None,
) -> Policy:
    """The policy, reusing its answers in earlier runs of this user: it answers new questions only.

    Answers are kept below the cache directory, by everything that decides them: weights, prompting, engine, packages,
    and this project's code.

    Args:
        source: of the weights.
        weights: which ones these are, where more is known than their source says.
    """
    weights = weights or _weights(source, model)
    if weights is None:
        return policy
    identity = {
        "weights": weights,
        "model": model.model_dump(mode="json"),
        "prompting": [policy.condition, policy.template],
        "engine": evaluation.engine.model_dump(mode="json"),
        "computes": f"{compute_dtype(model)} on {require_visible()} GPUs",
        "packages": manifest.package_versions(),
        "code": _code(),
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return Remembering(policy, AnswerJournal(storage.cache_folder() / "answers" / name, identity))


def _weights(source: Path | str, model: ModelConfig) -> Mapping[str, Any] | None:
    """Which weights these are: the commit of a hub id, else the files' sizes and times; None where nothing says so."""
    if model.init == "random":
        return None
    where = Path(resolve(source))
    if where.is_dir():
        states = {path.name: path.stat() for path in sorted(where.iterdir()) if path.is_file()}
        return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
    from huggingface_hub import try_to_load_from_cache

    # Below snapshots/COMMIT/, since the tokenizer was loaded.
    config = try_to_load_from_cache(str(source), "config.json", revision=model.revision or "main")
    return {"commit": Path(config).parent.name} if isinstance(config, str) else None


def _code() -> str:
    """SHA-256 of this package's sources."""
    top = Path(rest_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(top.rglob("*.py")):
        digest.update(f"{path.relative_to(top)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
