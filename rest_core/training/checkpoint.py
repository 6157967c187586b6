"""Training checkpoints: written aside, flushed to disk, renamed; a training resumes from the newest whole one.

    step-000010/ model.safetensors      trained parameters, float32
                 optimizer.safetensors  AdamW's moments
                 history.jsonl          what was reported up to this step
                 state.json             everything else (`TrainingState`), what training it is, and file hashes

`state.json` is written last and names the hashes of the others, so a torn checkpoint differs from a whole one.

Why this is all that a training needs to continue bit by bit as if it had never stopped: a checkpoint lies between two
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
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rest_core.algorithm.regions import Region
from rest_core.disk import disk_problem, flush, is_plain_file, remove
from rest_core.errors import UserError
from rest_core.manifest import leaves, sha256_file
from rest_core.training.history import FILE_NAME as HISTORY

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CONTENT = (MODEL, OPTIMIZER, HISTORY)
_NAME = re.compile(r"step-[0-9]{6,12}")
_DTYPE = "F32"  # of master weights, as safetensors names it

_Step = Annotated[int, Field(ge=0, le=10**9)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Accuracy = Literal["accuracy", "call_accuracy", "irrelevance_accuracy"]
_Table = Annotated[str, Field(pattern=r"^step-[0-9]{6,12}\.json$")]


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
    rewards_before: tuple[float | None, ...] | None = None  # the reward probe before training
    region_entropy: dict[str, tuple[NonNegativeFloat, NonNegativeFloat]]  # decayed sum (nats) and count by region
    evaluated: _Step | None = None  # the last step that was evaluated on the task
    last: dict[_Accuracy, Annotated[float, Field(ge=0, le=1)]] = {}  # what was found at that step
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
            anything else are foreign: nothing is trained beside them.
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
        target = self.path(state.step)
        aside = self.folder / f".{target.name}.tmp"
        with self.disk_errors():
            remove(aside)
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
                self.take_in(aside, target)
            except BaseException:
                remove(aside)
                raise
            self._prune(state)
        return target

    def take_in(self, aside: Path, target: Path) -> None:
        """Give a complete folder its name, in place of an older one."""
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        aside.rename(target)
        flush(self.folder)

    def latest(self, expected: Mapping[str, Tensor]) -> Path | None:
        """The newest whole checkpoint; those that are not are named in the log, as is what is no folder of ours.

        Args:
            expected: the parameters that a checkpoint must hold, by name, with their (full) shapes.

        Raises:
            UserError: there is a checkpoint of another training.
        """
        self._refuse_foreign()
        for path in self._named():
            if not _is_folder(path):
                log.warning("%s is passed over: no folder of this training", path)
        for path in reversed(self.all()):
            problem, _ = self.problem(path, expected)
            if problem is None:
                return path
            log.warning("%s is passed over: %s", path, problem)
        return None

    def all(self) -> list[Path]:
        """Every folder with a checkpoint's name, by step; links lead elsewhere and are none."""
        return [path for path in self._named() if _is_folder(path)]

    def problem(self, path: Path, expected: Mapping[str, Tensor]) -> tuple[str | None, bool]:
        """Why a training cannot resume from a checkpoint (None: it can), and whether that is because it is foreign."""
        if missing := [name for name in (STATE, *CONTENT) if not is_plain_file(path / name)]:
            return f"incomplete (no file {missing[0]})", False
        try:
            described = _read(path)
            if described.fingerprint != self.fingerprint:
                return f"a checkpoint of another training ({self._difference(described.training)})", True
            hashes = {name: sha256_file(path / name) for name in CONTENT}
            if hashes != described.sha256:
                return "its files are not those that were written", False
            if described.state.step != step_of(path.name):
                return f"it is the state after step {described.state.step}", False
            problem = _parameters_problem(path / MODEL, expected)
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
        own = [path for path in self.all() if step_of(path.name) <= state.step]
        best = [self.path(state.best.step)] if state.best is not None else []
        return [path for path in own if path in own[-self.keep :] or path in best]

    def _prune(self, state: TrainingState) -> None:
        """What has a higher number than the newest is not whole: the training resumed from before it."""
        kept = self.kept(state)
        for path in self.all():
            if path not in kept and path not in self.busy:
                shutil.rmtree(path)

    def _named(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if is_name(path.name)]
        return sorted(found, key=lambda path: step_of(path.name))

    def _refuse_foreign(self) -> None:
        for path in reversed(self.all()):
            if not is_plain_file(path / STATE):
                continue
            with suppress(OSError, ValueError):  # torn
                described = _read(path)
                if described.fingerprint != self.fingerprint:
                    different = f"a checkpoint of another training ({self._difference(described.training)})"
                    raise UserError(f"{path}: {different}; choose another output folder, or remove this checkpoint")

    def _difference(self, other: Mapping[str, Any]) -> str:
        ours = dict(leaves(json.loads(json.dumps(self.training))))  # tuples and lists are one
        theirs = dict(leaves(other))
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        shown = [f"{name} is {theirs.get(name)!r:.60} there, {ours.get(name)!r:.60} here" for name in differing[:3]]
        more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
        return "; ".join([*shown, *more])

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn what goes wrong with the disk into a `UserError`, in safetensors too."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            if (problem := disk_problem(error, self.folder)) is not None:
                raise UserError(problem) from error
            raise


def is_name(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """The step in a checkpoint's name."""
    return int(name.removeprefix("step-"))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _read(path: Path) -> _Described:
    """Raises OSError or ValueError (pydantic's ValidationError is one)."""
    return _Described.model_validate_json((path / STATE).read_bytes())


def _parameters_problem(file: Path, expected: Mapping[str, Tensor]) -> str | None:
    """What keeps the stored parameters from being those of the model; only the file's header is read."""
    with safe_open(file, framework="pt") as stored:
        parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
        found = {name: f"{part.get_dtype()} {tuple(part.get_shape())}" for name, part in parts.items()}
    wanted = {name: f"{_DTYPE} {tuple(parameter.shape)}" for name, parameter in expected.items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            return f"parameter {name!r:.80} is {found.get(name, 'missing')}, not {wanted.get(name, 'unknown')}"
    return None


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process was writing aside."""
    for path in folder.glob(".step-*.tmp"):
        remove(path)
