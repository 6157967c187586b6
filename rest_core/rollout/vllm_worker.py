"""What runs inside vLLM's worker processes: taking over the trainer's weights.

vLLM loads this by name (`--worker-extension-cls`), possibly in an environment of its own: it imports nothing of this
project, and of vLLM only what the worker already has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)


class PolicyWorker:
    """Methods added to vLLM's worker, called through `collective_rpc`."""

    def load_policy_folder(self, folder: str) -> int:
        """Load the safetensors files of `folder`, a checkpoint of the served architecture; returns their number.

        Raises:
            RuntimeError: the folder is empty, or the weights are not those of this model.
        """
        paths = sorted(Path(folder).glob("*.safetensors"))
        if not paths:
            raise RuntimeError(f"{folder}: no weights there; trainer and server must see the same folder")
        self.load_policy(_read(paths))
        return len(paths)

    def load_policy(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over whole weights, by the names that the architecture's checkpoints have.

        The worker's own reload does the work; it only warns about weights that it was not given, here they are an
        error. What this leaves half done must not be sampled from: the caller marks the weights as invalid first.
        """
        worker: Any = self
        model = worker.model_runner.get_model()
        wanted = {name for name, _ in model.named_parameters()}
        given: set[str] = set()
        load = model.load_weights

        def load_and_note(iterator: Iterable[tuple[str, Tensor]]) -> set[str]:
            loaded: set[str] = load(iterator)
            given.update(loaded)
            return loaded

        model.load_weights = load_and_note
        try:
            worker.reload_weights(weights_iterator=weights, is_checkpoint_format=True)
        finally:
            del model.load_weights
        _repack_heads(model)
        if missing := wanted - given:
            raise RuntimeError(
                f"{len(missing)} weights of the served model were not sent (first: {min(missing)}); serve the "
                "architecture that is trained"
            )


def _repack_heads(model: Any) -> None:
    """On CPU vLLM computes with packed copies of weights, and makes no new one for a head tied to the embedding.

    Its reload packs the layers that it was sent; the tied head is not sent, and would go on with the old weights.
    """
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and weight is not None and weight.numel():  # others keep the packed copy alone
            layer.quant_method.process_weights_after_loading(layer)


def _read(paths: list[Path]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                yield name, file.get_tensor(name)
