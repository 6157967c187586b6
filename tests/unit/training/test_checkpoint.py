from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rest_core.algorithm.regions import Region
from rest_core.errors import UserError
from rest_core.manifest import sha256_file
from rest_core.training import checkpoint
from rest_core.training.checkpoint import CONTENT, Best, Checkpoints, TrainingState
from rest_core.training.state import full_state, load_full_state, trained

ENTROPY = {region.name: (0.0, 0.0) for region in Region} | {"NAME": (0.1, 2.5)}


class Training:
    """A small module under AdamW; one of its parameters never has a gradient."""

    def __init__(self, folder: Path, *, name: str = "a", keep: int = 2) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(2, 2)})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.checkpoints = Checkpoints(folder, training={"rl": {"name": name, "steps": 5}}, keep=keep)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        return trained(self.model)

    def step(self, number: int) -> None:
        data = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        self.model["used"](data).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, number: int, **values: Any) -> Path:
        state = TrainingState(step=number, region_entropy=ENTROPY, **values)
        return self.checkpoints.save(state, *full_state(self.model, self.optimizer), b'{"step": 0, "loss": NaN}\n')

    def latest(self) -> Path | None:
        return self.checkpoints.latest(self.parameters)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    straight = Training(tmp_path)
    for number in (1, 2, 3):
        straight.step(number)
    best = Best(step=2, accuracy=0.5)
    straight.save(3, version=3, rewards_before=(0.5, None), best=best, tables={"step-000001.json": "0" * 64})
    other = Training(tmp_path)
    other.model["unused"](torch.ones(1, 2)).sum().backward()
    other.step(99)  # moments and weights of its own, all to be replaced
    path = other.latest()
    assert path == tmp_path / "step-000003"
    state, parameters, moments, history = other.checkpoints.read(path)
    load_full_state(other.model, other.optimizer, parameters, moments)
    assert (state.step, state.version, state.rewards_before, state.best) == (3, 3, (0.5, None), best)
    assert state.region_entropy == ENTROPY and state.tables == {"step-000001.json": "0" * 64}
    assert history == b'{"step": 0, "loss": NaN}\n'
    for number in (4, 5):
        straight.step(number)
        other.step(number)
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name
        ours, theirs = straight.optimizer.state[parameter], other.optimizer.state[other.parameters[name]]
        assert ours.keys() == theirs.keys() == ({"step", "exp_avg", "exp_avg_sq"} if "unused" not in name else set())
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_going_on_does_not_touch_the_file(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.step(1)
    path = training.save(1)
    before = {name: sha256_file(path / name) for name in CONTENT}
    _, parameters, moments, _ = training.checkpoints.read(path)
    load_full_state(training.model, training.optimizer, parameters, moments)
    training.step(2)
    assert {name: sha256_file(path / name) for name in CONTENT} == before


def test_without_checkpoints_there_is_no_latest(tmp_path: Path) -> None:
    assert Training(tmp_path / "missing").latest() is None


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "history.jsonl", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "changed", "empty"])
def test_a_torn_checkpoint_is_passed_over(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path)
    for number in (1, 2):
        training.step(number)
        training.save(number)
    torn = tmp_path / "step-000002" / file
    content = torn.read_bytes()
    if damage == "missing":
        torn.unlink()
    elif damage == "changed":  # one byte of a hash or a weight
        place = content.index(b'"model.safetensors": "') + 25 if file == "state.json" else len(content) - 2
        torn.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        torn.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    assert training.latest() == tmp_path / "step-000001"
    assert str(tmp_path / "step-000002") in caplog.text


def test_half_a_checkpoint_of_a_killed_process_is_not_seen(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.save(1)
    (tmp_path / "step-000001").rename(tmp_path / ".step-000001.tmp")
    assert training.latest() is None
    assert training.save(1) == training.latest()
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("number", [4, 7])
def test_nothing_is_trained_beside_a_foreign_checkpoint(tmp_path: Path, number: int) -> None:
    ours, theirs = Training(tmp_path), Training(tmp_path / "theirs", name="b")
    ours.save(5)
    foreign = theirs.save(number).rename(ours.checkpoints.path(number))
    differs = re.escape("a checkpoint of another training (rl.name is 'b' there, 'a' here)")
    with pytest.raises(UserError, match=f"{foreign}: {differs}; choose another output folder"):
        ours.latest()
    assert names(tmp_path) == sorted(["step-000005", foreign.name, "theirs"])


def hostile(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        values = json.loads((path / "state.json").read_text())
        change(values)
        (path / "state.json").write_text(json.dumps(values))

    return rewrite


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Other tensors with the right hashes: only looking at them tells."""

    def rewrite(path: Path) -> None:
        stored = {name: tensor.clone() for name, tensor in load_file(path / file).items()}
        change(stored)
        save_file(stored, path / file)
        hostile(lambda values: values["sha256"].update({file: sha256_file(path / file)}))(path)

    return rewrite


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no object": (lambda path: (path / "state.json").write_text("[1]") and None, "state.json is not one of ours"),
    "deep": (lambda path: (path / "state.json").write_text("[" * 10**5) and None, "state.json is not one of ours"),
    "binary": (lambda path: (path / "state.json").write_bytes(b"\xff\xfe\x00") and None, "state.json is not one"),
    "digits": (
        lambda path: (path / "state.json").write_text('{"fingerprint": ' + "9" * 10**5 + "}") and None,
        "state.json is not one of ours",
    ),
    "step of text": (hostile(lambda v: v["state"].update(step="2")), r"state\.step: input should be a valid int"),
    "huge step": (hostile(lambda v: v["state"].update(step=10**30)), r"state\.step"),
    "other step": (hostile(lambda v: v["state"].update(step=1)), "it is the state after step 1"),
    "negative version": (hostile(lambda v: v["state"].update(version=-1)), r"state\.version"),
    "infinite entropy": (hostile(lambda v: v["state"]["region_entropy"].update(NAME=[float("inf"), 1.0])), "finite"),
    "negative count": (hostile(lambda v: v["state"]["region_entropy"].update(NAME=[1.0, -1.0])), "greater than"),
    "regions": (hostile(lambda v: v["state"].update(region_entropy={"X": [1, 1]})), "not the regions of this version"),
    "path of a table": (hostile(lambda v: v["state"].update(tables={"../x.json": "0" * 64})), "tables"),
    "more keys": (hostile(lambda v: v.update(run="x")), "run: extra inputs"),
    "shape": (tensors("model.safetensors", lambda t: t.update({"used.bias": torch.zeros(3)})), "bias' is F32 .3"),
    "dtype": (tensors("model.safetensors", lambda t: t.update({"used.bias": torch.zeros(2).half()})), "bias' is F16"),
    "missing": (tensors("model.safetensors", lambda t: t.pop("used.bias")), "'used.bias' is missing"),
    "unknown": (tensors("model.safetensors", lambda t: t.update(x=torch.zeros(2))), r"'x' is F32 \(2,\), not unknown"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_content_is_refused_by_name(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(tmp_path)
    for number in (1, 2):
        training.step(number)
        training.save(number)
    spoil, told = HOSTILE[what]
    spoil(tmp_path / "step-000002")
    assert training.latest() == tmp_path / "step-000001"
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{tmp_path / 'step-000002'} is passed over: ") and len(message) < 400

    assert re.search(told, message, re.IGNORECASE), message


def test_a_file_with_the_name_of_a_checkpoint_is_not_one(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=1)
    (tmp_path / "step-000002").write_text("mine")
    training.save(1)
    assert training.latest() == tmp_path / "step-000001"
    with pytest.raises(UserError, match=r"step-000002: something else has this name"):
        training.save(2)
    assert (tmp_path / "step-000002").read_text() == "mine" and training.latest() == tmp_path / "step-000001"


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    training = Training(tmp_path, keep=keep)
    steps = (0, 5, 10, 15, 999_999, 1_000_000)  # by number, not by name
    for number in steps:
        training.save(number)
    assert names(tmp_path) == sorted(f"step-{number:06d}" for number in steps[-keep:])
    assert training.latest() == tmp_path / "step-1000000"


def test_the_best_is_kept_besides(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=1)
    for number, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        training.save(number, best=Best(step=best, accuracy=0.1 * best))
        assert names(tmp_path) == sorted({f"step-{best:06d}", f"step-{number:06d}"})


def test_what_is_being_copied_stays_until_it_has_been(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=1)
    training.checkpoints.busy = frozenset({training.save(1)})
    training.save(2)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    training.checkpoints.busy = frozenset()
    training.save(3)
    assert names(tmp_path) == ["step-000003"]


def test_a_torn_checkpoint_of_a_later_step_costs_no_whole_one(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=1)
    training.save(5)
    (training.save(10) / "state.json").unlink()
    saved = training.save(6)  # the training resumed from before the torn one
    assert names(tmp_path) == ["step-000006"]
    assert training.latest() == saved


@pytest.mark.parametrize("stage", ["save_file", "sha256_file", "flush"])
def test_a_save_that_fails_leaves_nothing_and_loses_nothing(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, keep=1)
    training.save(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, stage, full)
        with pytest.raises(UserError, match=r"the disk is full"):
            training.save(2)
    assert names(tmp_path) == ["step-000001"]
    assert training.latest() == tmp_path / "step-000001"


def test_a_disk_that_takes_no_more_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    program = """
import resource, sys, torch
from pathlib import Path
from rest_core.algorithm.regions import Region
from rest_core.errors import UserError
from rest_core.training.checkpoint import Checkpoints, TrainingState
checkpoints = Checkpoints(Path(sys.argv[1]), training={}, keep=1)
entropy = {region.name: (0.0, 0.0) for region in Region}
for step, size in ((1, 10), (2, 1_000_000)):
    state = TrainingState(step=step, region_entropy=entropy)
    try:
        checkpoints.save(state, {"w": torch.ones(size)}, {"m": torch.ones(size)}, b"")
    except UserError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    [line] = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path}: file too large"), done
    assert names(tmp_path) == ["step-000001"]


def test_a_folder_that_is_not_writable_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(Path, "mkdir", refused)  # a test may run as root, who may write anywhere
    with pytest.raises(UserError, match=r"x: no permission"):
        Training(tmp_path).save(1)


def test_the_state_names_what_it_belongs_to(tmp_path: Path) -> None:
    training = Training(tmp_path)
    state = json.loads((training.save(4, version=9) / "state.json").read_text())
    assert (state["state"]["step"], state["state"]["version"]) == (4, 9)
    assert state["fingerprint"] == training.checkpoints.fingerprint and state["training"]["rl"]["name"] == "a"
    assert set(state["sha256"]) == set(CONTENT)
