"""Clocks around the methods of an object, and peak memory of one step."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from .flops import synchronize

# What dynamo calls the outermost of its timed functions: for a graph, and for its backward pass, compiled at first use.
_COMPILING = ("_compile.compile_inner", "backward._backward_impl")


class Clock:
    """Seconds by name since `reset`; `around` makes a method of one object count its time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def reset(self) -> None:
        self.seconds.clear()

    def around(self, owner: Any, method: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] += self.now() - begin

        setattr(owner, method, timed)

    def now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


class TokenCount:
    """Tokens that go through the decoder in passes with gradient, and positions at which the head is applied there.

    What a backward pass computes a second time is not counted again.
    """

    def __init__(self, model: Any) -> None:
        self.body = self.head = 0
        model.base_model.register_forward_pre_hook(self._see_body, with_kwargs=True)
        model.get_output_embeddings().register_forward_pre_hook(self._see_head)

    def reset(self) -> None:
        self.body = self.head = 0

    def _see_body(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _first_pass():
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None:
            self.body += ids.numel()
        else:
            self.body += kwargs["inputs_embeds"][..., 0].numel()

    def _see_head(self, module: Any, args: tuple[Any, ...]) -> None:
        if _first_pass():
            self.head += args[0][..., 0].numel()


def _first_pass() -> bool:
    """Whether this is a forward pass for training, and not one that a backward pass repeats."""
    return torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1


def compilation() -> dict[str, float]:
    """Seconds that torch.compile has taken in this process, backward passes included, and graphs that it has made."""
    from torch._dynamo.utils import compilation_time_metrics, counters

    seconds = sum(sum(compilation_time_metrics.get(name, [])) for name in _COMPILING)
    return {"seconds": seconds, "graphs": float(counters["stats"]["unique_graphs"])}


class PeakMemory:
    """Peak memory of a step: the resident set of this process and, on a GPU, what its allocator held.

    Linux keeps the peak of the resident set itself and lets a process set it back (`/proc/self/clear_refs`). Where
    that is refused the resident set is sampled every 10 ms while the step runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.process = psutil.Process()
        # Of this process so far, which is the loading of the model.
        self.loading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.exact = self._set_back()
        self._sampled = 0
        self._sampling = threading.Event()

    def begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.exact:
            self._set_back()
            return
        self._sampled = 0
        self._sampling.set()
        threading.Thread(target=self._sample, daemon=True).start()

    def end(self) -> dict[str, float]:
        """Bytes."""
        self._sampling.clear()
        found = {"rss": float(_status("VmHWM") if self.exact else max(self._sampled, self.process.memory_info().rss))}
        if self.device.type == "cuda":
            found["gpu_allocated"] = float(torch.cuda.max_memory_allocated(self.device))
            found["gpu_reserved"] = float(torch.cuda.max_memory_reserved(self.device))
        return found

    def _sample(self) -> None:
        while self._sampling.is_set():
            self._sampled = max(self._sampled, self.process.memory_info().rss)
            time.sleep(0.01)

    @staticmethod
    def _set_back() -> bool:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True


def _status(field: str) -> int:
    """A field of /proc/self/status that is given in kB, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
