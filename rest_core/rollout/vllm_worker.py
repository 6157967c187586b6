"""What runs inside vLLM's worker processes: taking over the trainer's weights.

vLLM loads this by name (`--worker-extension-cls`), possibly in an environment of its own: it imports nothing of this
project, and of vLLM only what the worker already has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor


class PolicyWorker:
    """Methods added to vLLM's worker, called through `collective_rpc`."""

    def load_policy_folder(self, folder: str) -> int:
        """Load the safetensors files of `folder`, with the `config.json` beside them; returns their number.

        Raises:
            RuntimeError: nothing is there, or it is another architecture than the served one.
        """
        from safetensors import safe_open

        paths = sorted(Path(folder).glob("*.safetensors"))
        if not paths:
            raise RuntimeError(f"{folder}: no weights there; trainer and server must see the same folder")
        architecture = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        files = [safe_open(path, framework="pt") for path in paths]  # all can be read, before anything is changed
        self.load_policy(((name, file.get_tensor(name)) for file in files for name in file.keys()), architecture)  # noqa: SIM118
        return len(files)

    def load_policy(self, weights: Iterable[tuple[str, Tensor]], architecture: dict[str, Any]) -> None:
        """Take over whole weights, by the names that the architecture's checkpoints have.

        The worker's own reload does the work. It only warns about weights that it was not given, and cuts such as are
        too large: here both are errors. After one that left the reload half done no other is begun.
        """
        worker: Any = self
        if differences := _differences(worker.model_config.hf_config.to_dict(), architecture):
            raise RuntimeError(
                f"another architecture is served ({'; '.join(differences)}): serve the one that is trained"
            )
        if getattr(worker, "policy_broken", False):
            raise RuntimeError("taking over weights failed half-way before; start the server again")
        model = worker.model_runner.get_model()
        wanted = {name for name, _ in model.named_parameters()}
        given: set[str] = set()
        load = model.load_weights

        def load_and_note(iterator: Iterable[tuple[str, Tensor]]) -> set[str]:
            loaded: set[str] = load(iterator)
            given.update(loaded)
            return loaded

        worker.policy_broken = True
        model.load_weights = load_and_note
        try:
            worker.reload_weights(weights_iterator=weights, is_checkpoint_format=True)
        finally:
            del model.load_weights
        worker.policy_broken = False
        _repack_heads(model)
        if missing := wanted - given:
            raise RuntimeError(f"{len(missing)} weights of the served model were not sent (first: {min(missing)})")


def _differences(served: dict[str, Any], trained: dict[str, Any]) -> list[str]:
    """The sizes in which two configurations differ, of those that both state."""

    def sizes(config: dict[str, Any]) -> dict[str, int]:
        return {name: value for name, value in config.items() if type(value) is int and not name.endswith("_token_id")}

    ours, theirs = sizes(served), sizes(trained)
    names = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
    return [f"{name} {ours[name]} there, {theirs[name]} in training" for name in names]


def _repack_heads(model: Any) -> None:
    """On CPU vLLM computes with packed copies of weights, and makes no new one for a head tied to the embedding.

    Its reload packs the layers that it was sent; the tied head is not sent, and would keep the old weights.
    """
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and weight is not None and weight.numel():  # others keep the packed copy alone
            layer.quant_method.process_weights_after_loading(layer)
