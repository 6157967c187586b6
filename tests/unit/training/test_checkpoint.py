from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from rest_core.errors import UserError
from rest_core.training import checkpoint
from rest_core.training.checkpoint import Checkpoints


class Training:
    """A small module under AdamW; one of its parameters never has a gradient."""

    def __init__(self, folder: Path, *, fingerprint: str = "a", keep: int = 2) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(2, 2)})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.checkpoints = Checkpoints(folder, fingerprint=fingerprint, keep=keep)

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters())

    def step(self, number: int) -> None:
        data = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        self.model["used"](data).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, number: int, **state: object) -> Path:
        return self.checkpoints.save(number, self.parameters, self.optimizer, state)

    def restore(self, path: Path) -> dict[str, object]:
        return self.checkpoints.restore(path, self.parameters, self.optimizer)


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    straight = Training(tmp_path)
    for number in (1, 2, 3):
        straight.step(number)
    straight.save(3, version=3, reward_before=None, algorithm={"region_entropy": {"NAME": 0.1, "OTHER": float("nan")}})
    other = Training(tmp_path)
    other.model["unused"](torch.ones(1, 2)).sum().backward()
    other.step(99)  # moments and weights of its own, all to be replaced
    path = other.checkpoints.latest()
    assert path == tmp_path / "step-000003"
    state = other.restore(path)
    assert (state["step"], state["version"], state["reward_before"]) == (3, 3, None)
    assert str(state["algorithm"]) == "{'region_entropy': {'NAME': 0.1, 'OTHER': nan}}"
    for number in (4, 5):
        straight.step(number)
        other.step(number)
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, other.parameters[name]), name
        ours, theirs = straight.optimizer.state[parameter], other.optimizer.state[other.parameters[name]]
        assert ours.keys() == theirs.keys() == ({"step", "exp_avg", "exp_avg_sq"} if "unused" not in name else set())
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_without_checkpoints_there_is_no_latest(tmp_path: Path) -> None:
    assert Training(tmp_path / "missing").checkpoints.latest() is None


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
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
        place = content.index(b'"model.safetensors": "') + 25 if file == "state.json" else len(content) - 1
        torn.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    else:
        torn.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    assert training.checkpoints.latest() == tmp_path / "step-000001"
    assert str(tmp_path / "step-000002") in caplog.text


def test_half_a_checkpoint_of_a_killed_process_is_not_seen(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.save(1)
    (tmp_path / "step-000001").rename(tmp_path / ".step-000001.tmp")
    assert training.checkpoints.latest() is None
    assert training.save(1) == training.checkpoints.latest()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_checkpoints_of_another_training_are_refused_by_name(tmp_path: Path) -> None:
    Training(tmp_path).save(7)
    with pytest.raises(UserError, match=r"step-000007: a checkpoint of another training"):
        Training(tmp_path, fingerprint="b").checkpoints.latest()


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    training = Training(tmp_path)
    path = training.save(1)
    with pytest.raises(UserError, match="not those of this model"):
        training.checkpoints.restore(path, {"other": torch.zeros(2)}, training.optimizer)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    training = Training(tmp_path, keep=keep)
    for number in (0, 5, 10, 15, 100):
        training.save(number)
    kept = [f"step-{number:06d}" for number in (0, 5, 10, 15, 100)][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_torn_checkpoint_of_a_later_step_costs_no_whole_one(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=1)
    training.save(5)
    (training.save(10) / "state.json").unlink()
    saved = training.save(6)  # the training was taken up from before the torn one
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]
    assert training.checkpoints.latest() == saved


@pytest.mark.parametrize("stage", ["save_file", "sha256_file", "_flush"])
def test_a_save_that_fails_leaves_nothing_and_loses_nothing(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, keep=1)
    training.save(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, stage, full)
    with pytest.raises(OSError, match="No space left"):
        training.save(2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert training.checkpoints.latest() == tmp_path / "step-000001"


def test_the_state_names_what_it_belongs_to(tmp_path: Path) -> None:
    path = Training(tmp_path).save(4, version=9)
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["version"], state["fingerprint"]) == (4, 9, "a")
    assert set(state["sha256"]) == {"model.safetensors", "optimizer.safetensors"}
