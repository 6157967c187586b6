"""Rollouts by a vLLM server, on other devices or another machine than the trainer.

Prompts and responses travel as token ids (vLLM's `/inference/v1/generate`), with the log-probs that the server sampled
with. After each update the weights are handed over, through a folder or by NCCL; the server stamps every sampled
token with the version of its weights, and an answer from any other version than the expected one is an error.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from rest_core.config import VllmServerConfig
from rest_core.errors import UserError
from rest_core.model.parameters import checkpoint_tensors, without_wrapper
from rest_core.records import Rollout
from rest_core.rollout.engine import seed_of_each
from rest_core.rollout.vllm_http import CONNECTIONS, Server
from rest_core.rollout.vllm_nccl import NcclTransfer
from rest_core.rollout.vllm_sampling import VERSION, Vocabulary, accept, sampling

log = logging.getLogger(__name__)

SHARD_BYTES = 4 << 30


class VllmServerEngine:
    """`rest_core.rollout.engine.Engine` on a vLLM server that `rest serve-rollouts` has started.

    Args:
        config: where the server is, and how weights get there.
        dtype: type in which the weights are sent; the server's own.
        vocabulary: the policy's ids.
        setting: the configuration's name of `config`, for error messages.
    """

    def __init__(
        self, config: VllmServerConfig, *, dtype: torch.dtype, vocabulary: Vocabulary, setting: str = "rl.engine"
    ) -> None:
        self.config, self.dtype, self.vocabulary, self.setting = config, dtype, vocabulary, setting
        self.version = -1  # no weights are known to be there yet
        self.server = Server(config.url, config.timeout, setting)
        self._label = ""
        self._owner = uuid4().hex[:12]  # distinguishes this training's weights from another one's
        self._nccl: Any = None
        self.server.wait()

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
        """See `rest_core.rollout.engine.Engine`; the server packs its own batches, `batch_tokens` is not used."""
        drawn = seed_of_each(prompts, seeds, temperature)
        results: list[list[Rollout]] = [[] for _ in prompts]
        if not prompts:
            return results
        pool = ThreadPoolExecutor(max_workers=min(CONNECTIONS, len(prompts)), thread_name_prefix="rollout")
        try:
            asked = {
                pool.submit(
                    self._group,
                    prompt,
                    sampling(self.vocabulary, samples, max_new_tokens, temperature, drawn[n]),
                ): n
                for n, prompt in enumerate(prompts)
            }
            for answered in as_completed(asked):
                results[asked[answered]] = answered.result()
                if on_progress is not None:
                    on_progress(samples)
        finally:
            # After an error nothing more is asked; what is being asked ends with its connection.
            pool.shutdown(wait=True, cancel_futures=True)
        return results

    def _group(self, prompt: Sequence[int], parameters: dict[str, Any]) -> list[Rollout]:
        """The responses to one prompt."""
        answer = self.server.call(
            "/inference/v1/generate", {"token_ids": list(prompt), "sampling_params": parameters, "stream": False}
        )
        where = f"rollout server {self.server.url}"
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            read = [_read_choice(choice) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{where}: an answer without {type(error).__name__} {error}, which vLLM {VERSION} and later give; "
                "start it with `rest serve-rollouts`"
            ) from None
        numbers = [choice["index"] for choice in choices]
        if numbers != list(range(parameters["n"])):
            came = ", ".join(map(str, numbers)) or "none"
            raise UserError(f"{where}: responses {came} came, {parameters['n']} were asked for; start it again")
        rollouts = []
        for choice, (ids, logps, versions) in zip(choices, read, strict=True):
            if choice.get("finish_reason") not in ("stop", "length"):
                raise UserError(
                    f"{where}: a response was ended by {choice.get('finish_reason')!r}; does another training use this "
                    "server?"
                )
            if versions != {self._label}:
                raise UserError(
                    f"{where}: tokens were sampled with weights {', '.join(sorted(versions)) or 'of no version'}, "
                    f"expected {self._label}; the server was started anew or is used by another training: give it to "
                    "one training alone and start that again"
                )
            rollouts.append(
                accept(
                    prompt,
                    ids,
                    logps,
                    vocabulary=self.vocabulary,
                    max_new_tokens=parameters["max_tokens"],
                    version=self.version,
                    where=where,
                )
            )
        return rollouts

    def synchronise(self, master: Any, version: int) -> None:
        """Hand the weights of `master`, those after `version` updates, to the server.

        Every process of a training calls this: each may hold a part of the weights. The first one sends them, and
        broadcasts the outcome to the others.
        """
        weights = checkpoint_tensors(master, self.dtype)  # a collective where the model is sharded
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        first = not distributed or torch.distributed.get_rank() == 0
        outcome: list[Any] = [None, None]  # label, error
        if first:
            try:
                outcome[0] = self._send(weights, without_wrapper(master).config, f"{self._owner}/{version}")
            except UserError as error:
                outcome[1] = str(error)
        if distributed:
            torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        self._label, self.version = outcome[0], version

    def _send(self, weights: dict[str, torch.Tensor], architecture: Any, label: str) -> str:
        """Send the weights; the server counts as holding none until all have arrived."""
        server = self.server
        server.call("/pause?mode=abort", {})  # of a training that was killed, requests may be left
        server.call("/update_weight_version", {"new_version": f"{label} incomplete"})
        if self.config.weights == "nccl":
            if self._nccl is None:
                self._nccl = NcclTransfer(server)
            self._nccl.send(weights)
        else:
            self._send_folder(weights, architecture)
        # Cached keys and values are those of the old weights.
        if not server.call("/reset_prefix_cache", {}).get("success"):
            raise UserError(f"rollout server {server.url}: its prefix cache could not be emptied; start it again")
        server.call("/update_weight_version", {"new_version": label})
        server.call("/resume", {})
        return label

    def _send_folder(self, weights: dict[str, torch.Tensor], architecture: Any) -> None:
        from safetensors.torch import save_file

        parent = Path(self.config.folder) if self.config.folder is not None else None
        try:
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="rest-weights-", dir=parent))
            folder.chmod(0o755)  # the server may run as another user
            try:
                architecture.to_json_file(folder / "config.json", use_diff=False)
                for n, shard in enumerate(_shards(weights)):
                    file = folder / f"weights-{n:05d}.safetensors"
                    save_file({name: tensor.contiguous() for name, tensor in shard.items()}, file)
                    file.chmod(0o644)
                self.server.call("/collective_rpc", {"method": "load_policy_folder", "args": [str(folder)]})
            finally:
                shutil.rmtree(folder, onerror=_warn)
        except OSError as error:
            where = self.config.folder or tempfile.gettempdir()
            raise UserError(
                f"{self.setting}.folder: weights could not be written to {where}: {error.strerror or error}"
            ) from None


def _warn(_: Any, path: str, error: Any) -> None:
    """Weights that are left behind cost room, and are no reason to end a training."""
    log.warning("%s could not be removed: %s", path, error[1])


def _read_choice(choice: dict[str, Any]) -> tuple[list[int], list[float], set[str]]:
    """Ids, log-probs and weight versions of one response.

    Raises:
        KeyError, TypeError, ValueError: it is not in vLLM's form.
    """
    ids = [int(token) for token in choice["token_ids"]]
    content = choice["logprobs"]["content"]
    if [entry["token_id"] for entry in content] != ids:
        raise ValueError("(log-probs of the ids that were sampled)")
    logps = [float("nan") if entry["logprob"] is None else float(entry["logprob"]) for entry in content]
    spans = choice["weight_versions"]
    if sum(span["end"] - span["start"] for span in spans) != len(ids):
        raise ValueError("(a weight version for every token)")
    return ids, logps, {str(span["version"]) for span in spans}


def _shards(weights: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The weights in order, split into parts of about SHARD_BYTES."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if size > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
