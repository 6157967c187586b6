"""What a training does with things in its folder that are not its own: each is named, and none is followed."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rest_core.algorithm.regions import Region
from rest_core.disk import written_aside
from rest_core.errors import UserError
from rest_core.training.checkpoint import TrainingState
from rest_core.training.progress import Observer, Progress

ENTROPY = {region.name: (0.0, 0.0) for region in Region}
ROWS: list[dict[str, Any]] = [{"prompt": "p", "response": "r"}]


class Training:
    """A module of one layer, and what its training leaves in `folder`."""

    def __init__(self, folder: Path, mirror: Path | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        observer = Observer(lambda metrics, step: None, lambda rows, name: None)
        where = None if mirror is None else str(mirror)
        self.progress = Progress(folder, observer, training={"name": "a"}, keep=2, mirror=where)

    def run(self, *steps: int) -> Training:
        """Steps with a table and a checkpoint each."""
        for number in steps:
            self.model(torch.ones(1, 3)).sum().backward()
            self.optimizer.step()
            self.progress.record_table(ROWS, number)
            state = TrainingState(step=number, region_entropy=ENTROPY)
            self.progress.save(state, self.model, self.optimizer)
        return self

    def resume(self) -> int | None:
        state = self.progress.resume(self.model, self.optimizer)
        return None if state is None else state.step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a training that has been killed after its second step."""
    Training(tmp_path / "rl.training").run(1, 2)
    return tmp_path / "rl.training"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of somebody else's, which is the same after the test."""
    made = tmp_path / "outside"
    made.mkdir()
    for name in ("step-000001.json", "state.json", "mine"):
        (made / name).write_text(name)
    before = {path: path.read_bytes() for path in made.iterdir()}
    yield made
    assert {path: path.read_bytes() for path in made.iterdir()} == before


def link(place: Path, outside: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(outside)


def pipe(place: Path) -> None:
    place.unlink(missing_ok=True)
    os.mkfifo(place)


def listening(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(place.parent)  # a socket's path is short
        try:
            one.bind(place.name)
        finally:
            os.chdir(here)


PASSED_OVER: dict[str, tuple[str, Callable[[Path, Path], object], int]] = {
    "a link as a step": ("step-000003", link, 2),
    "a link as the newest step": ("step-000002", link, 1),
    "a pipe as a step": ("step-000003", lambda place, outside: pipe(place), 2),
    "a socket as a step": ("step-000003", lambda place, outside: listening(place), 2),
    "a pipe as a state": ("step-000002/state.json", lambda place, outside: pipe(place), 1),
    "a link as a state": ("step-000002/state.json", lambda place, outside: link(place, outside / "state.json"), 1),
    "a pipe as weights": ("step-000002/model.safetensors", lambda place, outside: pipe(place), 1),
    "a folder as a state": ("step-000002/state.json", lambda place, outside: place.unlink() or place.mkdir(), 1),
    "a folder among the tables": ("completions/old", lambda place, outside: place.mkdir(), 2),
    "a pipe among the tables": ("completions/pipe", lambda place, outside: pipe(place), 2),
}  # fmt: skip


@pytest.mark.parametrize("what", PASSED_OVER)
def test_it_is_named_and_passed_over(folder: Path, outside: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    name, plant, step = PASSED_OVER[what]
    plant(folder / name, outside)
    again = Training(folder)
    assert again.resume() == step
    named = str(folder / name.partition("/")[0] if name.startswith("step") else folder / name)
    assert any(record.getMessage().startswith(f"{named} is passed over: ") for record in caplog.records)
    again.run(4, 5)
    assert Training(folder).resume() == 5


UNSEEN: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "a link as the temporary folder": (".step-000004.tmp", link),
    "a pipe as the temporary folder": (".step-000004.tmp", lambda place, outside: pipe(place)),
    "a link as a table": ("completions/step-000004.json", lambda place, outside: link(place, outside / "mine")),
    "a pipe in the folder": ("pipe", lambda place, outside: pipe(place)),
    "a link in the folder": ("elsewhere", link),
    "a link in a checkpoint": ("step-000001/elsewhere", link),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_has_a_name_of_ours_is_taken_out_of_the_way_and_all_else_stays(
    folder: Path, outside: Path, what: str
) -> None:
    name, plant = UNSEEN[what]
    plant(folder / name, outside)
    again = Training(folder)
    assert again.resume() == 2
    again.run(4, 5)
    assert Training(folder).resume() == 5
    assert (folder / name).is_symlink() == (what == "a link in the folder")


@pytest.mark.parametrize("name", ["", "completions"])
def test_a_link_in_place_of_a_folder_whose_files_are_deleted_is_refused(folder: Path, outside: Path, name: str) -> None:
    link(folder / name, outside)
    with pytest.raises(UserError, match=rf"^{folder / name}: is a link, and files are deleted there; remove it"):
        Training(folder).resume()


@pytest.mark.parametrize("name", ["", "completions"])
def test_a_file_in_place_of_a_folder_is_named(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    pipe(folder / name)
    with pytest.raises(UserError, match=rf"^{folder / name}: something else has this name; remove it"):
        Training(folder).resume()


@pytest.mark.parametrize("plant", [link, lambda place, outside: pipe(place)], ids=["link", "pipe"])
def test_what_stands_in_a_checkpoints_place_ends_the_training_and_not_the_last_checkpoint(
    folder: Path, outside: Path, plant: Callable[[Path, Path], object]
) -> None:
    again = Training(folder)
    assert again.resume() == 2
    plant(folder / "step-000003", outside)
    with pytest.raises(UserError, match=rf"^{folder}/step-000003: something else has this name; remove it"):
        again.run(3)
    assert Training(folder).resume() == 2


def test_what_is_downloaded_from_the_mirror_follows_no_link(tmp_path: Path, outside: Path) -> None:
    first = Training(tmp_path / "first.training", tmp_path / "mirror")
    assert first.resume() is None
    first.run(1)
    first.progress.finish(TrainingState(step=1, region_entropy=ENTROPY))
    folder = tmp_path / "second.training"
    (folder / "completions").mkdir(parents=True)
    link(folder / ".step-000001.tmp", outside)
    link(folder / "completions" / "step-000001.json", outside / "mine")
    assert Training(folder, tmp_path / "mirror").resume() == 1
    assert (folder / "completions" / "step-000001.json").read_bytes().startswith(b"[")


def test_a_file_that_is_written_aside_replaces_a_link_and_not_its_target(outside: Path, tmp_path: Path) -> None:
    link(tmp_path / "state.json", outside / "mine")
    with written_aside(tmp_path / "state.json") as aside:
        aside.write_text("new")
    assert (tmp_path / "state.json").read_text() == "new"
