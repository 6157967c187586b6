"""Rollouts by vLLM inside the trainer's process, on the trainer's device.

vLLM's memory is given back while the policy is updated (its sleep mode, on CUDA), and the weights go from one model to
the other without leaving the device.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rest_core.config import VllmEngineConfig
from rest_core.errors import UserError, one_line
from rest_core.model.context import context_of
from rest_core.model.parameters import checkpoint_tensors, without_wrapper
from rest_core.records import Rollout
from rest_core.rollout.engine import seed_of_each
from rest_core.rollout.vllm_sampling import VERSION, Vocabulary, accept, sampling

WORKER = "rest_core.rollout.vllm_worker.PolicyWorker"
_CPU_CACHE_BYTES = 1 << 30  # for keys and values where there is no GPU whose memory could be shared out


class VllmEngine:
    """`rest_core.rollout.engine.Engine` on vLLM in this process.

    Args:
        architecture: configuration of the policy (transformers); vLLM builds its model from it and gets the weights
            from `synchronise`.
        config: the share of the device's memory that vLLM may use.
        dtype: compute type.
        vocabulary: the policy's ids.
        max_tokens: prompt and response together are at most this long.
        setting: the configuration's name of `config`, for error messages.
    """

    def __init__(
        self,
        architecture: Any,
        config: VllmEngineConfig,
        *,
        dtype: torch.dtype,
        vocabulary: Vocabulary,
        max_tokens: int,
        setting: str = "rl.engine",
    ) -> None:
        # One process for scheduler and model: weights are handed over as they lie. vLLM reads this when it is made.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            from vllm import LLM, SamplingParams, TokensPrompt
        except ImportError as error:
            raise UserError(
                f"{setting}.engine=vllm needs vLLM {VERSION} or later in this environment ({error}); "
                f"pip install 'rest-pipelines[vllm]', or use {setting}.engine=vllm_server with a server in an "
                "environment of its own"
            ) from None
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise UserError(
                f"{setting}.engine=vllm runs in a training of one process; with several use "
                f"{setting}.engine=vllm_server"
            )
        self._parameters, self._prompt = SamplingParams, TokensPrompt
        self.dtype, self.vocabulary = dtype, vocabulary
        self.version = -1  # no weights yet
        cuda = torch.cuda.is_available()
        room: dict[str, Any] = (
            {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": True}
            if cuda
            else {"kv_cache_memory_bytes": _CPU_CACHE_BYTES, "enforce_eager": True}
        )
        with tempfile.TemporaryDirectory(prefix="rest-vllm-") as folder:
            described = {**architecture.to_dict(), "architectures": _architectures(architecture)}
            (Path(folder) / "config.json").write_text(json.dumps(described), encoding="utf-8")
            try:
                self.llm = LLM(
                    model=folder,
                    load_format="dummy",
                    skip_tokenizer_init=True,
                    generation_config="vllm",  # no sampling settings of the checkpoint's
                    dtype=str(dtype).removeprefix("torch."),
                    max_model_len=min(max_tokens, context_of(architecture) or max_tokens),  # vLLM refuses more
                    logprobs_mode="raw_logprobs",
                    worker_extension_cls=WORKER,
                    disable_log_stats=True,
                    **room,
                )
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"vLLM could not be started: {one_line(error)}; give it more or less memory by "
                    f"{setting}.gpu_memory_utilization, or use {setting}.engine=transformers"
                ) from error
        self._sleeps = cuda
        self._sleep()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        batch_tokens: int = 65536,
        seeds: Sequence[int] | None = None,
        on_progress: Callable[[int], None] | None = None,
        continued: bool = False,  # vLLM keeps what it computed in any case
    ) -> list[list[Rollout]]:
        """See `rest_core.rollout.engine.Engine`; vLLM packs its own batches, `batch_tokens` is not used."""
        drawn = seed_of_each(prompts, seeds, temperature)
        if not prompts:
            return []
        parameters = [
            self._parameters(**sampling(self.vocabulary, samples, max_new_tokens, temperature, seed)) for seed in drawn
        ]
        self._wake()
        try:
            answers = self.llm.generate(
                [self._prompt(prompt_token_ids=list(prompt)) for prompt in prompts],
                parameters,
                use_tqdm=partial(_Progress, on_progress) if on_progress is not None else False,
            )
        finally:
            self._sleep()
        return [
            [
                accept(
                    prompt,
                    list(output.token_ids),
                    [entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True)],
                    vocabulary=self.vocabulary,
                    max_new_tokens=max_new_tokens,
                    version=self.version,
                    where="vLLM",
                )
                for output in sorted(answer.outputs, key=lambda output: output.index)
            ]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def synchronise(self, master: Any, version: int) -> None:
        """Take over the weights of `master`, which are those after `version` updates."""
        if self._sleeps:
            self.llm.wake_up(tags=["weights"])
        self.version = -1  # until all weights are there
        weights = list(checkpoint_tensors(master, self.dtype).items())
        self.llm.collective_rpc("load_policy", args=(weights, without_wrapper(master).config.to_dict()))
        # Cached keys and values are those of the old weights.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM's prefix cache could not be emptied")
        self.version = version

    def _wake(self) -> None:
        if self._sleeps:
            self.llm.wake_up()

    def _sleep(self) -> None:
        """Give the device's memory to the update: weights wait in the host's memory, the cache is dropped."""
        if self._sleeps:
            self.llm.sleep(level=1)


class _Progress(tqdm):
    """The bar that vLLM would draw, drawn nowhere: it passes on how many responses have been completed."""

    def __init__(self, report: Callable[[int], None], *arguments: Any, **options: Any) -> None:
        self.report = report
        super().__init__(*arguments, **{**options, "file": io.StringIO()})

    def update(self, n: float | None = 1) -> bool | None:
        self.report(int(n or 0))
        return super().update(n)


def _architectures(architecture: Any) -> list[str]:
    """The class name by which vLLM finds its own implementation."""
    if architecture.architectures:
        return list(architecture.architectures)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture.model_type])]
