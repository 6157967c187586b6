"""What a stage takes of its machine, as metrics `system/…`: MLflow's pages show them in a tab of their own.

MLflow's own monitors measure; its thread that records is not used, because it needs the run's id at once, and a server
that answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rest_core.errors import UserError

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

logger = logging.getLogger(__name__)

EVERY_SECONDS = 10.0


@contextmanager
def recorded(record: Callable[[Mapping[str, float], int], None], every: float = EVERY_SECONDS) -> Iterator[None]:
    """Within the block, record load and memory of the machine and of its GPUs.

    Args:
        record: gets the values and their number, from 0.
        every: seconds between two of them; a shorter block records nothing.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_measure, args=(record, every, ended), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _measure(record: Callable[[Mapping[str, float], int], None], every: float, ended: threading.Event) -> None:
    monitors: list[BaseMetricsMonitor] = []
    number = 0
    while not ended.wait(every):
        monitors = monitors or _monitors()
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        try:
            record(values, number)
        except UserError as problem:  # the disk is full; the stage itself will meet that
            logger.warning("system metrics end here: %s", problem)
            return
        number += 1


def _monitors() -> list[BaseMetricsMonitor]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    made: list[BaseMetricsMonitor] = [CPUMonitor()]
    try:
        made.append(GPUMonitor())
    except (ImportError, RuntimeError) as absent:  # nvidia-ml-py is not installed, or there is no GPU
        logger.debug("no metrics of GPUs: %s", absent)
    return made
