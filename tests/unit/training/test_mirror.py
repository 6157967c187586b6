"""A second place for checkpoints: a folder, and moto's S3."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rest_core import storage
from rest_core.algorithm.regions import Region
from rest_core.errors import UserError
from rest_core.training import mirror as module
from rest_core.training.checkpoint import Best, Checkpoints, TrainingState
from rest_core.training.history import History
from rest_core.training.mirror import Mirror

PARAMETERS = {"w": torch.arange(6.0)}
MOMENTS = {"step/w": torch.tensor(1.0), "exp_avg/w": torch.ones(6), "exp_avg_sq/w": torch.ones(6)}
ENTROPY = {region.name: (0.0, 0.0) for region in Region}


class Machine:
    """One machine that the training runs on."""

    def __init__(self, folder: Path, location: str, *, keep: int = 2, training: str = "a") -> None:
        self.history = History(folder)
        self.history.restore(b"", {})
        self.checkpoints = Checkpoints(folder, training={"name": training}, keep=keep)
        self.mirror = Mirror(location, self.checkpoints, self.history)

    def save(self, step: int, best: int | None = None) -> None:
        if step % 2 == 0:
            self.history.add_table([{"step": step}], step)
        self.history.add({"loss": 1.0 / step}, step)
        state = TrainingState(
            step=step,
            region_entropy=ENTROPY,
            best=None if best is None else Best(step=best, accuracy=0.5),
            tables=dict(self.history.tables),
        )
        self.checkpoints.save(state, {"w": PARAMETERS["w"] * step}, MOMENTS, self.history.content)
        self.mirror.offer(state)

    def newest(self, above: int = -1) -> str | None:
        path = self.mirror.newest(above, PARAMETERS)
        return path and path.name


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path, empty_s3: Any) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "volume" / "mirror")
        return
    empty_s3.create_bucket(Bucket="data")
    yield "s3://data/runs/mirror/"


Make = Callable[..., Machine]


@pytest.fixture
def machine(tmp_path: Path, location: str) -> Make:
    return lambda name, **settings: Machine(tmp_path / name, location, **settings)


def there(machine: Machine) -> set[str]:
    return {name.split("/")[0] for name in storage.list_files(machine.mirror.location)} - {"completions"}


def spoil(machine: Machine, name: str, content: bytes | None) -> None:
    """Put `content` in the place of a file of the mirror; None deletes it."""
    place = f"{machine.mirror.location}/{name}"
    if content is None:
        storage.delete_file(place)
        return
    file = machine.checkpoints.folder / "spoilt"
    file.write_bytes(content)
    storage.put_file(file, place)
    file.unlink()


def test_a_training_goes_on_on_another_machine(machine: Make) -> None:
    one = machine("one")
    for step in (1, 2, 3, 4):
        one.save(step, best=1)
    one.mirror.close()
    assert there(one) == {"step-000001", "step-000003", "step-000004"}

    two = machine("two")
    assert two.newest() == "step-000004"
    assert {p.name for p in two.checkpoints.all()} == {"step-000001", "step-000004"}  # and the best
    state, parameters, moments, history = two.checkpoints.read(two.checkpoints.path(4))
    assert torch.equal(parameters["w"], PARAMETERS["w"] * 4) and moments.keys() == MOMENTS.keys()
    two.history.restore(history, state.tables)
    assert two.history.entries == one.history.entries and two.history.tables == one.history.tables
    assert two.history.read_table("step-000004.json") == [{"step": 4}]
    two.save(5, best=1)
    two.mirror.close()
    assert there(two) == {"step-000001", "step-000004", "step-000005"}
    assert machine("three").newest() == "step-000005"
    assert machine("four").newest(above=5) is None
    assert not list((two.checkpoints.folder).glob(".*"))


def test_the_training_does_not_wait_and_the_newest_wins(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun, copied = threading.Event(), threading.Event(), []
    upload = storage.upload_folder

    def slow(folder: Path, place: str, *, last: str) -> None:
        copied.append(folder.name)
        begun.set()
        assert gate.wait(30)
        upload(folder, place, last=last)

    monkeypatch.setattr(module.storage, "upload_folder", slow)
    one = machine("one", keep=1)
    one.save(1)
    assert begun.wait(30)
    for step in (3, 5, 7):
        one.save(step)
    # What is being copied is not deleted, nor what waits; the others are.
    assert {p.name for p in one.checkpoints.all()} == {"step-000001", "step-000005", "step-000007"}
    with pytest.raises(UserError, match=r"was not copied within 0 s"):
        one.mirror.close(timeout=0.01)
    gate.set()
    one.mirror.close()
    assert copied == ["step-000001", "step-000007"]
    assert there(one) == {"step-000007"}


def test_what_a_dead_machine_was_copying_is_torn_and_replaced(machine: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = machine("one")
    for step in (1, 2):
        one.save(step)
    one.mirror.close()
    spoil(one, "step-000003/model.safetensors", b"half")  # state.json would have been the last
    spoil(one, "step-000002/optimizer.safetensors", b"torn")
    two = machine("two")
    assert two.newest() == "step-000001"
    assert "step-000002 is passed over: its files are not those that were written" in caplog.text
    two.save(2)
    two.mirror.close()
    assert machine("three").newest() == "step-000002"


def test_a_file_that_is_missing_there_is_told(machine: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = machine("one")
    for step in (1, 2):
        one.save(step)
    one.mirror.close()
    spoil(one, "step-000002/model.safetensors", None)
    spoil(one, "completions/step-000002.json", None)
    assert machine("two").newest() == "step-000001"
    assert "step-000002 is passed over" in caplog.text


def test_trainings_do_not_see_each_others_checkpoints(machine: Make) -> None:
    one, other = machine("one"), machine("other", training="b")
    one.save(1)
    one.mirror.close()
    assert other.newest() is None
    other.save(9)
    other.mirror.close()
    assert there(one) == {"step-000001"}


def test_failures_are_counted_and_the_next_copy_makes_up_for_them(
    machine: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = machine("one")

    def broken(folder: Path, place: str, *, last: str) -> None:
        raise UserError(f"{place}: access denied (403); check the AWS_* credentials and the policy")

    monkeypatch.setattr(module.storage, "upload_folder", broken)
    one.save(1)
    with pytest.raises(UserError, match=r"never reached the mirror: .*access denied"):
        one.mirror.close()
    assert one.mirror.failures == 1
    assert "check the AWS_* credentials" in caplog.text and caplog.records[0].levelno == logging.ERROR


def test_the_last_copy_is_tried_once_more_at_the_end(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine("one")
    upload, failed = storage.upload_folder, threading.Event()

    def broken(folder: Path, place: str, *, last: str) -> None:
        if not failed.is_set():
            failed.set()
            raise UserError("away")
        upload(folder, place, last=last)

    monkeypatch.setattr(module.storage, "upload_folder", broken)
    one.save(1)
    with pytest.raises(UserError, match="away"):
        one.mirror.close()
    one.mirror.retry(TrainingState(step=1, region_entropy=ENTROPY))
    one.mirror.close()
    assert one.mirror.failures == 1 and there(one) == {"step-000001"}


def test_a_defect_is_raised_in_the_training(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(module.storage, "upload_folder", defect)
    one = machine("one")
    one.save(1)
    with pytest.raises(RuntimeError, match="ours"):
        one.mirror.close()
    with pytest.raises(RuntimeError, match="ours"):
        one.save(2)


def test_a_bucket_that_is_not_there_is_told_before_the_training(machine: Make, location: str, tmp_path: Path) -> None:
    if not storage.is_s3(location):
        assert machine("one").newest() is None  # a folder is made when it is needed
        return
    with pytest.raises(UserError, match=r"s3://nobody/x/.*no such bucket"):
        Machine(tmp_path / "two", "s3://nobody/x").newest()


def test_a_torn_download_leaves_nothing(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine("one")
    one.save(1)
    one.mirror.close()
    two = machine("two")

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.storage, "get_folder", dies)
        with pytest.raises(KeyboardInterrupt):
            two.newest()
    assert not two.checkpoints.all() and not list(two.checkpoints.folder.glob(".*"))
    shutil.rmtree(one.checkpoints.folder)
    assert two.newest() == "step-000001"
