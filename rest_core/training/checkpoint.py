"""Training checkpoints: written aside, flushed to disk, renamed; the newest whole one is taken up again.

    step-000010/ model.safetensors      trained parameters, float32
                 optimizer.safetensors  AdamW's moments
                 state.json             step, version, algorithm state, fingerprint of the configuration, file hashes

`state.json` is written last and names the hashes of the others, so a torn checkpoint is told from a whole one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rest_core.errors import UserError
from rest_core.manifest import sha256_file

log = logging.getLogger(__name__)

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class Checkpoints:
    """The checkpoints of one training in `folder`; `fingerprint` says which training it is."""

    def __init__(self, folder: Path, *, fingerprint: str, keep: int) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.keep = keep

    def save(
        self, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> Path:
        """Write a checkpoint of `step` and drop the oldest beyond `keep`."""
        final = self.folder / f"step-{step:06d}"
        aside = self.folder / f".{final.name}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            save_file({name: _own(tensor) for name, tensor in parameters.items()}, aside / _MODEL)
            save_file(_moments(optimizer, list(parameters)), aside / _OPTIMIZER)
            hashes = {name: sha256_file(aside / name) for name in (_MODEL, _OPTIMIZER)}
            described = {"step": step, "fingerprint": self.fingerprint, "sha256": hashes, **state}
            (aside / _STATE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            for path in aside.iterdir():
                _flush(path)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            _flush(self.folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        # What has a higher number is not whole: the training was taken up from before it.
        older = [path for path in self._all() if path.name < final.name]
        newer = [path for path in self._all() if path.name > final.name]
        for path in [*newer, *older[: len(older) - (self.keep - 1)]]:
            shutil.rmtree(path)
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint of this training; torn ones are named and passed over.

        Raises:
            UserError: the folder holds the checkpoints of another training.
        """
        for path in reversed(self._all()):
            problem = self._problem(path)
            if problem is None:
                return path
            log.warning("%s is passed over: %s", path, problem)
        return None

    def restore(self, path: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Copy a checkpoint into live parameters and optimizer; returns its state."""
        stored = load_file(path / _MODEL)
        if stored.keys() != parameters.keys():
            raise UserError(f"{path}: its parameters are not those of this model; choose another output folder")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])
        _restore_moments(optimizer, parameters, load_file(path / _OPTIMIZER))
        return dict(json.loads((path / _STATE).read_text(encoding="utf-8")))

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _problem(self, path: Path) -> str | None:
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            hashes = {name: sha256_file(path / name) for name in (_MODEL, _OPTIMIZER)}
            fingerprint, expected = state["fingerprint"], state["sha256"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            return f"incomplete ({type(error).__name__})"
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{path}: a checkpoint of another training (model, data or settings differ); "
                "choose another output folder, or remove this one"
            )
        return None if hashes == expected else "its files are not those that were written"


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _moments(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's state by parameter name; a parameter without a gradient so far has none."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    out = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{key}/{name}"] = _own(torch.as_tensor(value))
    return out


def _restore_moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor], stored: dict[str, Tensor]
) -> None:
    optimizer.state.clear()
    for entry, value in stored.items():
        key, _, name = entry.partition("/")
        parameter = parameters[name]
        # AdamW's fused kernel keeps `step` beside the parameter, its other kernels keep it on the CPU.
        on_device = key != "step" or optimizer.param_groups[0].get("fused")
        optimizer.state[parameter][key] = value.to(parameter.device) if on_device else value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
