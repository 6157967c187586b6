"""Weights from the trainer's GPU to those of a vLLM server, by vLLM's own transfer over NCCL."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import torch

from rest_core.errors import UserError
from rest_core.rollout.vllm_http import Server
from rest_core.rollout.vllm_sampling import VERSION


class NcclTransfer:
    """vLLM's own weight transfer between GPUs: the trainer broadcasts, the server's workers receive.

    Needs vLLM in the trainer's environment too, for its communicator.
    """

    def __init__(self, server: Server) -> None:
        if not torch.cuda.is_available():
            raise UserError(
                f"{server.setting}.weights=nccl hands weights over between GPUs, none is here; set it to folder"
            )
        self.server = server
        self.round: list[tuple[str, torch.Tensor]] = []
        self._transfer: Any = None

    def send(self, weights: dict[str, torch.Tensor]) -> None:
        try:
            from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
            from vllm.distributed.weight_transfer.nccl_engine import (
                NCCLTrainerInitInfo,
                NCCLTrainerWeightTransferEngine,
            )
        except ImportError as error:
            raise UserError(
                f"{self.server.setting}.weights=nccl needs vLLM {VERSION} or later beside the trainer ({error}); "
                f"pip install 'rest-pipelines[vllm]', or set {self.server.setting}.weights=folder"
            ) from None
        self.round = list(weights.items())
        transfer = self

        class Source(WeightSource):
            """The weights of the current round."""

            def metadata(self) -> list[Any]:
                return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in transfer.round]

            def __iter__(self) -> Any:
                return iter(transfer.round)

        if self._transfer is None:
            # A training that was killed may have left its connection.
            self.server.call("/shutdown_weight_transfer_engine", {})
            size = int(self.server.call("/get_world_size")["world_size"])
            info = NCCLTrainerInitInfo(
                rank=0, master_address=_own_address(self.server.url), master_port=_free_port(), world_size=size + 1
            )
            self._transfer = NCCLTrainerWeightTransferEngine.trainer_init(info, client=self, source=Source())
        self._transfer.send_weights()
        self.round = []

    # What vLLM's transfer asks of the server (`VLLMWeightSyncClient`).
    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.server.call("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self.server.call("/start_weight_update", {})

    def update_weights(self, update_info: Any) -> None:
        self.server.call("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.server.call("/finish_weight_update", {})


def _own_address(url: str) -> str:
    """The address of this machine as the server sees it."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 80))  # sends nothing; it picks the way
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
