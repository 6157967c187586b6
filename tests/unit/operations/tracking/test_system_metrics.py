"""Load and memory of the machine, measured while a stage runs."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from rest_core.errors import UserError
from rest_core.operations.tracking.system_metrics import recorded


def test_they_are_recorded_while_the_block_lasts() -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []
    with recorded(lambda values, number: seen.append((number, values)), every=0.01):
        deadline = time.monotonic() + 30
        while len(seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    there = len(seen)
    assert [number for number, _ in seen[:3]] == [0, 1, 2]
    assert seen[0][1]["system/system_memory_usage_megabytes"] > 0
    assert 0 <= seen[0][1]["system/cpu_utilization_percentage"] <= 100
    time.sleep(0.05)
    assert len(seen) == there  # none after the end


def test_a_short_block_records_nothing_and_a_full_disk_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    with recorded(lambda *_: pytest.fail("recorded")):
        pass

    def full(values: Mapping[str, float], number: int) -> None:
        raise UserError("the disk is full")

    with recorded(full, every=0.01):
        deadline = time.monotonic() + 30
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages == ["system metrics end here: the disk is full"]
