"""A decode step captured as a CUDA graph: one launch instead of several hundred."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)


class Captured:
    """Replays `step`, which reads and writes tensors that stay where they are and never waits for the device.

    The first call runs `step` itself, on the side stream that capturing asks for, so that libraries set up what may
    not be set up during a capture; the second call captures. Nothing is computed twice: a capture only records.
    Memory of the recorded kernels comes from a pool of this graph, which is freed with it. A model that cannot be
    captured, because it waits for the device in its forward pass, runs uncaptured, and the log says so.
    """

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._eager = True  # for the next call
        self._capturable = True
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        if not self._capturable:
            self._step()
            return
        if self._eager:
            self._eager = False
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step()
            torch.cuda.current_stream().wait_stream(side)
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("decoding without a CUDA graph: %s", str(error).splitlines()[0])
            self._capturable = False
            self._step()
            return
        self._graph = graph
        graph.replay()
