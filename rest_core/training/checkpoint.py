"""Training checkpoints: written aside, flushed to disk, renamed; the newest whole one is taken up again.

    step-000010/ model.safetensors      trained parameters, float32
                 optimizer.safetensors  AdamW's moments
                 history.jsonl          what was logged up to this step
                 state.json             everything else (`TrainingState`), what training it is, and file hashes

`state.json` is written last and names the hashes of the others, so a torn checkpoint is told from a whole one.

Why this is all that a training needs to go on bit by bit as if it had never stopped: a checkpoint lies between two
steps, where no rollout is alive (with several updates a rollout too: its buffer is made and used up within the step);
all random numbers of a step are derived from the seed and the step's number (`rest_core.seeds`), and so is the place
in the data; the learning rate is a function of the number of updates, and the curriculum one of the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rest_core.algorithm.regions import Region
from rest_core.disk import disk_problem, flush
from rest_core.errors import UserError
from rest_core.manifest import leaves, sha256_file
from rest_core.training.history import FILE_NAME as HISTORY
from rest_core.training.history import unreadable

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CONTENT = (MODEL, OPTIMIZER, HISTORY)
_NAME = re.compile(r"step-[0-9]{6,12}")
_MAX_STATE_BYTES = 16 << 20  # of a state.json; ours have a few KiB
_DTYPE = "F32"  # of master weights and moments, in safetensors' words

_Step = Annotated[int, Field(ge=0, le=10**9)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Table = Annotated[str, Field(pattern=r"^[\w-]+\.json$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Best(_Strict):
    """The step whose weights did best on the task so far; of equals the earliest."""

    step: _Step
    accuracy: float = Field(ge=0, le=1)


class TrainingState(_Strict):
    """Where a training stands between two steps, apart from weights and moments."""

    step: _Step  # steps that are done; the data cursor and the curriculum follow from it
    version: int = Field(0, ge=0, le=10**12)  # optimizer updates that are done
    learning_rate: float | None = Field(None, ge=0)  # of the last update, which a step without one reports again
    reward_before: float | None = None  # the reward probe before training
    region_entropy: dict[str, tuple[NonNegativeFloat, NonNegativeFloat]]  # decayed sum (nats) and count by region
    evaluated: _Step | None = None  # the last step that was evaluated on the task
    best: Best | None = None
    tables: dict[_Table, _Sha256] = {}  # tables of completions up to this step

    @field_validator("region_entropy")
    @classmethod
    def _every_region(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.keys() != {region.name for region in Region}:
            raise ValueError("not the regions of this version")
        return value


class _Described(_Strict):
    """`state.json` as a whole."""

    fingerprint: _Sha256
    training: dict[str, Any]  # what the fingerprint was made of, so that a foreign checkpoint can say what differs
    sha256: dict[str, _Sha256]
    state: TrainingState


class Checkpoints:
    """The checkpoints of one training in `folder`.

    Args:
        folder: may hold other things too.
        training: what decides the training's result (data, model, settings): plain JSON values. Checkpoints of
            anything else are foreign: never taken up, never deleted.
        keep: how many of the newest stay; the best one stays besides.
    """

    def __init__(self, folder: Path, *, training: Mapping[str, Any], keep: int) -> None:
        self.folder = folder
        self.training = dict(training)
        self.fingerprint = hashlib.sha256(json.dumps(self.training, sort_keys=True).encode()).hexdigest()
        self.keep = keep
        self.busy: frozenset[Path] = frozenset()  # not to be deleted yet: they are being copied elsewhere

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def save(
        self, state: TrainingState, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], history: bytes
    ) -> Path:
        """Write the checkpoint of `state.step` and drop what need not be kept.

        Raises:
            UserError: the disk is full or the folder cannot be written; what was there is still there.
        """
        final = self.path(state.step)
        aside = self.folder / f".{final.name}.tmp"
        with self.disk_errors():
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            try:
                save_file(dict(parameters), aside / MODEL)
                save_file(dict(moments), aside / OPTIMIZER)
                (aside / HISTORY).write_bytes(history)
                described = _Described(
                    fingerprint=self.fingerprint,
                    training=self.training,
                    sha256={name: sha256_file(aside / name) for name in CONTENT},
                    state=state,
                )
                (aside / STATE).write_text(described.model_dump_json(indent=2) + "\n", encoding="utf-8")
                for path in aside.iterdir():
                    flush(path)
                flush(aside)
                self.take_in(aside, final)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            self._prune(state)
        return final

    def take_in(self, aside: Path, final: Path) -> None:
        """Give a complete folder its name; a foreign checkpoint of that name steps aside, another is replaced."""
        if final.exists():
            if self._is_foreign(final):
                final.rename(_free_name(final.with_name(f"foreign-{final.name}")))
            else:
                shutil.rmtree(final)
        aside.rename(final)
        flush(self.folder)

    def latest(self, expected: Mapping[str, Tensor]) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint of this training, and the foreign ones that were passed over, each with why.

        Args:
            expected: the parameters that a checkpoint must hold, by name, with their (full) shapes.
        """
        foreign: list[str] = []
        for path in reversed(self.all()):
            problem, is_foreign = self.problem(path, expected)
            if problem is None:
                return path, foreign
            log.warning("%s is passed over: %s", path, problem)
            if is_foreign:
                foreign.append(f"{path}: {problem}")
        return None, foreign

    def all(self) -> list[Path]:
        """Everything with a checkpoint's name, by step."""
        found = [path for path in self.folder.glob("step-*") if is_name(path.name) and path.is_dir()]
        return sorted(found, key=lambda path: step_of(path.name))

    def problem(self, path: Path, expected: Mapping[str, Tensor]) -> tuple[str | None, bool]:
        """Why a checkpoint cannot be taken up (None: it can), and whether that is because it is foreign."""
        try:
            described = _read(path)
            if described.fingerprint != self.fingerprint:
                return f"a checkpoint of another training ({self._difference(described.training)})", True
            hashes = {name: sha256_file(path / name) for name in CONTENT}
            if hashes != described.sha256:
                return "its files are not those that were written", False
            if described.state.step != step_of(path.name):
                return f"it is the state after step {described.state.step}", False
            problem = (
                _parameters_problem(path / MODEL, expected)
                or _moments_problem(path / OPTIMIZER, expected)
                or unreadable((path / HISTORY).read_bytes(), described.state.step)
            )
        except (OSError, SafetensorError) as error:
            return f"incomplete ({type(error).__name__})", False
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            return f"{STATE} is not one of ours ({f'{where}: ' if where else ''}{first['msg']})", False
        except ValueError as error:
            return f"{STATE} is not one of ours ({' '.join(str(error).split()):.120})", False
        return problem, False

    def read(self, path: Path) -> tuple[TrainingState, dict[str, Tensor], dict[str, Tensor], bytes]:
        """State, parameters, moments and history of a checkpoint that `problem` has found whole."""
        return self.state(path), load_file(path / MODEL), load_file(path / OPTIMIZER), (path / HISTORY).read_bytes()

    def state(self, path: Path) -> TrainingState:
        """The state in a checkpoint that `problem` has found whole."""
        return _read(path).state

    def kept(self, state: TrainingState) -> list[Path]:
        """The checkpoints that stay when that of `state` is the newest, by step."""
        own = [path for path in self.all() if step_of(path.name) <= state.step and not self._is_foreign(path)]
        best = [self.path(state.best.step)] if state.best is not None else []
        return [path for path in own if path in own[-self.keep :] or path in best]

    def _prune(self, state: TrainingState) -> None:
        """What has a higher number than the newest is not whole: the training was taken up from before it."""
        kept = self.kept(state)
        for path in self.all():
            if path not in kept and path not in self.busy and not self._is_foreign(path):
                shutil.rmtree(path)

    def _is_foreign(self, path: Path) -> bool:
        try:
            return _read(path).fingerprint != self.fingerprint
        except (OSError, ValueError):
            return False  # torn

    def _difference(self, other: Mapping[str, Any]) -> str:
        ours = dict(leaves(json.loads(json.dumps(self.training))))  # tuples and lists are one
        theirs = dict(leaves(other))
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        told = [f"{name} is {theirs.get(name)!r:.60} there, {ours.get(name)!r:.60} here" for name in differing[:3]]
        more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
        return "; ".join([*told, *more]) or "what differs is not told"

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn a full disk and a refused write into a `UserError` that names the last good checkpoint."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            place = getattr(error, "filename", None) or self.folder
            newest = next((path for path in reversed(self.all()) if (path / STATE).is_file()), None)
            left = f"the last good checkpoint is {newest}" if newest else "no checkpoint has been written yet"
            if (problem := disk_problem(error, place)) is not None:
                raise UserError(f"{problem}; {left}") from error
            if isinstance(error, (FileExistsError, NotADirectoryError)):
                raise UserError(f"{place}: a file is where a folder should be; choose another output folder") from error
            raise


def is_name(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """The step in a checkpoint's name."""
    return int(name.removeprefix("step-"))


def _read(path: Path) -> _Described:
    """Raises OSError or ValueError (pydantic's ValidationError is one)."""
    file = path / STATE
    if (size := file.stat().st_size) > _MAX_STATE_BYTES:
        raise ValueError(f"{size} bytes")
    return _Described.model_validate_json(file.read_bytes())


def _parameters_problem(file: Path, expected: Mapping[str, Tensor]) -> str | None:
    """What keeps the stored parameters from being those of the model; only the file's header is read."""
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
        if names != expected.keys():
            odd = sorted(names ^ expected.keys())
            return f"its parameters are not those of this model ({odd[0]!r:.80})"
        for name, parameter in expected.items():
            part = stored.get_slice(name)
            if tuple(part.get_shape()) != tuple(parameter.shape) or part.get_dtype() != _DTYPE:
                return (
                    f"parameter {name} is {part.get_dtype()} {tuple(part.get_shape())}, "
                    f"not {_DTYPE} {tuple(parameter.shape)}"
                )
    return None


def _moments_problem(file: Path, expected: Mapping[str, Tensor]) -> str | None:
    with safe_open(file, framework="pt") as stored:
        for entry in stored.keys():  # noqa: SIM118 (no mapping)
            key, _, name = entry.partition("/")
            if key not in ("step", "exp_avg", "exp_avg_sq") or name not in expected:
                return f"{entry!r:.80} is no moment of this optimizer"
            shape = () if key == "step" else tuple(expected[name].shape)
            part = stored.get_slice(entry)
            if tuple(part.get_shape()) != shape or part.get_dtype() != _DTYPE:
                return f"moment {entry} is {part.get_dtype()} {tuple(part.get_shape())}, not {_DTYPE} {shape}"
    return None


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process was writing aside."""
    for path in folder.glob(".step-*.tmp"):
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
