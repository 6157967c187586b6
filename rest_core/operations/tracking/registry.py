"""The model registry: trained checkpoints become versions, the alias `champion` moves by rule.

A checkpoint is a flat Hugging Face folder, because that is what vLLM reads; MLflow's transformers flavor writes
another layout. So the folder is stored as it is (artifacts of the run, another folder, or S3), and the version refers
to it. What a version is worth and where it comes from stands in its tags:

    metric/<name>           figures, e.g. metric/bfcl/call_accuracy
    evaluation/<benchmark>  what they were measured on; figures of different subsets are not compared
    data/<name>/sha256      the data it was trained on
    git_commit, image, base_model, pipeline_run
    promoted_at, promoted_from, promotion_reason, demoted_at, demoted_by
"""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rest_core import storage
from rest_core.config import RegistryConfig
from rest_core.errors import UserError, nearest
from rest_core.operations.tracking import store
from rest_core.operations.tracking.card import ModelFacts, model_card, readme

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHAMPION = "champion"
CHALLENGER = "challenger"
_MODEL_DESCRIPTION = "Tool-use models trained with ResT: `champion` is the one to serve, `challenger` the newest."
_PROMOTION_TAG = "promotion/"  # on the registered model, numbered: the history
_CHECKPOINT_FILES = ("config.json", "*.safetensors", "tokenizer_config.json")
_CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".jinja", ".txt", ".model"}
_MAX_DESCRIPTION = 5000  # MLflow's column
_MAX_REASON = 1000  # a tag holds 5000 characters
_PROXY_LIMIT = 1_000_000_000  # bytes; larger files through a server's artifact proxy have been seen to time out


@dataclass(frozen=True)
class Registered:
    """A version that was made."""

    name: str
    version: str
    source: str  # what the registry refers to
    location: str  # where that is


@dataclass(frozen=True)
class Promotion:
    """A move of the alias `champion`, made or (dry run) only planned."""

    name: str
    version: str
    previous: str | None  # the champion before
    metric: str
    value: float | None
    previous_value: float | None
    forced: bool
    reason: str | None
    at: str  # UTC, ISO 8601
    dry_run: bool = False

    def describe(self) -> str:
        """One line for people."""
        verb = "would become" if self.dry_run else "is now"
        before = f" in place of version {self.previous} ({_figure(self.previous_value)})" if self.previous else ""
        what = f"{self.metric} {_figure(self.value)}{', forced' if self.forced else ''}"
        return f"{self.name} version {self.version} {verb} {CHAMPION}{before}: {what}"


def register_model(
    client: MlflowClient, registry: RegistryConfig, *, checkpoint: Path, run_id: str, facts: ModelFacts
) -> Registered:
    """Store a checkpoint and register it as a new version with alias `challenger`.

    The stored copy carries the model card as README.md. Where the destination is not the run's artifacts, it is
    `<registry.destination>/<name>/<run id>`. The version gets its alias only when its source has been seen to hold
    the checkpoint; otherwise it is deleted again.

    Args:
        client: from `store.connect`.
        registry: name and destination.
        checkpoint: a flat Hugging Face folder; it is not changed.
        run_id: the run that registers; the version's source run.
        facts: what the card and the tags say.

    Raises:
        UserError: the folder is no checkpoint that transformers loads, or it cannot be stored or referred to.
    """
    from mlflow.exceptions import MlflowException

    files = _checkpoint_files(checkpoint)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # links, so that the checkpoint's own folder gets no README.md and nothing is copied
        for path in files:
            (folder / path.name).symlink_to(path.resolve())
        (folder / "README.md").write_text(readme(registry.name, facts), encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        source = _store(client, registry, folder, run_id, largest=max(sizes.values()))
    try:
        client.create_registered_model(registry.name, description=_MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    try:
        version = client.create_model_version(
            registry.name,
            source,
            run_id=run_id,
            tags=_version_tags(facts),
            description=_description(model_card(registry.name, facts)),
        )
    except MlflowException as error:
        raise UserError(
            f"{source}: MLflow does not take it as a model's source ({store.reason(error)}); give the server an s3:// "
            "registry.destination, or none"
        ) from error
    try:
        location = _verify(client, version, sizes)
    except UserError:
        client.delete_model_version(registry.name, str(version.version))
        raise
    client.set_registered_model_alias(registry.name, CHALLENGER, str(version.version))
    logger.info("registered %s version %s from %s", registry.name, version.version, location)
    return Registered(registry.name, str(version.version), source, location)


def get_version(client: MlflowClient, name: str, version: str | int | None = None) -> ModelVersion:
    """A version by number, or by alias (`challenger` where none is given).

    Raises `UserError` for a model, version or alias that is not there, with the nearest that is.
    """
    aliases: dict[str, str] = _registered_model(client, name).aliases
    wanted = str(version or CHALLENGER)
    if not wanted.isdecimal() and wanted not in aliases:
        hint = nearest(wanted, aliases) or "; register a model first, or give a version number"
        raise UserError(f"{name} has no alias {wanted!r}{hint}")
    wanted = str(aliases.get(wanted, wanted))
    if (found := existing(client.get_model_version, name, wanted)) is None:
        known = sorted((str(one.version) for one in client.search_model_versions(f"name = '{name}'")), key=int)
        raise UserError(f"{name} has no version {wanted} (there: {', '.join(known)})")
    return found


def metric_tag(version: ModelVersion, name: str) -> float | None:
    """A version's figure; None when it has none that is a finite number."""
    try:
        value = float(version.tags[f"metric/{name}"])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def promote(
    client: MlflowClient,
    name: str,
    *,
    version: str | int | None = None,
    metric: str,
    force: bool = False,
    dry_run: bool = False,
    reason: str | None = None,
) -> Promotion:
    """Move the alias `champion` to a version, and note it in the history.

    Promoting an older version is the way back. Refused, unless forced: a version without the metric, with a lower
    value than the champion's (higher is better), or measured on something else than the champion.

    Args:
        client: from `store.connect`.
        name: the registered model.
        version: number or alias; None is `challenger`.
        metric: the figure that decides, e.g. "bfcl/call_accuracy".
        force: move the alias against the rule; the history says so.
        dry_run: check everything and change nothing.
        reason: free text for the history.

    Raises:
        UserError: nothing to promote, or the rule refuses.
    """
    candidate = get_version(client, name, version)
    incumbent = champion(client, name)
    number = str(candidate.version)
    if incumbent is not None and str(incumbent.version) == number:
        raise UserError(f"{name} version {number} is {CHAMPION} already; give another --version")
    objection = _objection(candidate, incumbent, metric)
    if objection and not force:
        raise UserError(f"{name} version {number} is not promoted: {objection}; --force promotes it all the same")
    planned = Promotion(
        name=name,
        version=number,
        previous=str(incumbent.version) if incumbent else None,
        metric=metric,
        value=metric_tag(candidate, metric),
        previous_value=metric_tag(incumbent, metric) if incumbent else None,
        forced=objection is not None,
        reason=reason[:_MAX_REASON] if reason else None,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        dry_run=dry_run,
    )
    if not dry_run:
        _write(client, planned)
    return planned


def compare_with_champion(client: MlflowClient, name: str, version: str, *, metric: str) -> str:
    """Whether a version would become champion by the rule of `promote`, in one line; nothing is changed."""
    try:
        return promote(client, name, version=version, metric=metric, dry_run=True).describe()
    except UserError as objection:
        return str(objection)


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that has the alias `champion`, if any has."""
    aliases: dict[str, str] = client.get_registered_model(name).aliases
    return client.get_model_version(name, str(aliases[CHAMPION])) if CHAMPION in aliases else None


def history(client: MlflowClient, name: str) -> list[Promotion]:
    """Every promotion of a model, oldest first. Raises `UserError` for an unknown model."""
    tags: dict[str, str] = _registered_model(client, name).tags
    return [Promotion(name=name, **json.loads(tags[key])) for key in sorted(tags) if key.startswith(_PROMOTION_TAG)]


def missing_links(client: MlflowClient, version: ModelVersion, metric: str) -> list[str]:
    """What of a version cannot be followed back to its run, data, code, image and evaluation: a phrase each.

    Args:
        client: from `store.connect`.
        version: a registered version.
        metric: the figure that promotion compares; what it was measured on must be known.
    """
    tags: dict[str, str] = version.tags
    run, image = version.run_id, tags.get("image", "")
    links: dict[str, Any] = {
        "run: the version names none": run,
        f"run: {run} is not in the store": not run or existing(client.get_run, run),
        "data: no hash of the training data": any(re.fullmatch("data/.*/sha256", tag) for tag in tags),
        "code: no git commit": "git_commit" in tags,
        "image: none is named (not run from an image)": image,
        f"image: {image} has no digest, so that it may be another one by now": not image or "@sha256:" in image,
        f"metric: {metric} was not measured": f"metric/{metric}" in tags,
        f"evaluation: what {metric} was measured on is not recorded": _benchmark_tag(metric) in tags,
    }
    return [problem for problem, there in links.items() if not there]


def _checkpoint_files(folder: Path) -> list[Path]:
    """The files of a flat checkpoint that are stored: configuration, safetensors, tokenizer, chat template.

    Raises `UserError` when some are missing, or transformers does not read configuration and tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    if missing := [pattern for pattern in _CHECKPOINT_FILES if not any(folder.glob(pattern))]:
        raise UserError(f"{folder}: no flat Hugging Face checkpoint, {' and '.join(missing)} missing; save it as one")
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True)
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: transformers does not load it: {store.reason(error)}") from error
    return sorted(path for path in folder.glob("*") if path.is_file() and path.suffix in _CHECKPOINT_SUFFIXES)


def _store(client: MlflowClient, registry: RegistryConfig, folder: Path, run_id: str, *, largest: int) -> str:
    """Copy a folder to the destination, or to the run's artifacts; returns what the registry refers to."""
    from mlflow.exceptions import MlflowException

    if registry.destination is not None:
        uri = f"{registry.destination.rstrip('/')}/{registry.name}/{run_id}"
        written = storage.upload_folder(folder, uri)
        return written if storage.is_s3(written) else Path(written).expanduser().absolute().as_uri()
    if client.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:") and largest > _PROXY_LIMIT:
        logger.warning(
            "a file of %.1f GB goes through the MLflow server and may time out; give registry.destination on S3",
            largest / 1e9,
        )
    try:
        client.log_artifacts(run_id, str(folder), "model")
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id}: the checkpoint cannot be uploaded: {store.reason(error)}") from error
    return f"runs:/{run_id}/model"


def _verify(client: MlflowClient, version: ModelVersion, sizes: dict[str, int]) -> str:
    """Where the version's source is; raises `UserError` unless every file of the checkpoint is there."""
    from mlflow.artifacts import list_artifacts

    location = location_of(client, version)
    stored = {Path(one.path).name: one.file_size for one in list_artifacts(location, tracking_uri=client.tracking_uri)}
    if wrong := sorted(name for name, size in sizes.items() if stored.get(name) != size):
        raise UserError(f"{location}: {', '.join(wrong)} not stored completely; register the model again")
    return location


def location_of(client: MlflowClient, version: ModelVersion) -> str:
    """Where a version's checkpoint lies."""
    location: str = client.get_model_version_download_uri(version.name, str(version.version))
    of_run = location.startswith("runs:/")
    return f"{client.get_run(version.run_id or '').info.artifact_uri}/model" if of_run else location


def _registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    if (found := existing(client.get_registered_model, name)) is None:
        known = [one.name for one in client.search_registered_models(max_results=1000)]
        there = f" (there: {', '.join(known)})" if known else " (none is registered)"
        raise UserError(f"no registered model {name!r}{nearest(name, known)}{there}")
    return found


def existing(get: Callable[..., T], *key: str) -> T | None:
    """What `get` finds in MLflow; None where there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*key)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _objection(candidate: ModelVersion, incumbent: ModelVersion | None, metric: str) -> str | None:
    value = metric_tag(candidate, metric)
    if value is None:
        known = [tag.removeprefix("metric/") for tag in candidate.tags if tag.startswith("metric/")]
        return f"it has no figure {metric!r}{nearest(metric, known)}"
    if incumbent is None:
        return None
    champion_name = f"the champion, version {incumbent.version}"
    before = metric_tag(incumbent, metric)
    if before is None:
        return f"{champion_name}, has no figure {metric!r} to compare with"
    ours, theirs = (version.tags.get(_benchmark_tag(metric)) for version in (candidate, incumbent))
    if ours != theirs:
        return f"it was measured on {ours!r}, {champion_name}, on {theirs!r}"
    if value < before:
        return f"its {metric} of {_figure(value)} is below the {_figure(before)} of {champion_name}"
    return None


def _write(client: MlflowClient, planned: Promotion) -> None:
    """The history first, the alias last: a record without its move can be seen, a move without its record cannot."""
    made = [tag for tag in client.get_registered_model(planned.name).tags if tag.startswith(_PROMOTION_TAG)]
    number = 1 + max((int(tag.removeprefix(_PROMOTION_TAG)) for tag in made), default=0)
    record = {key: value for key, value in asdict(planned).items() if key not in ("name", "dry_run")}
    client.set_registered_model_tag(planned.name, f"{_PROMOTION_TAG}{number:05d}", json.dumps(record))
    promoted = {
        "promoted_at": planned.at,
        "promoted_from": planned.previous or "none",
        "promotion_reason": planned.reason or "none given",
        "promotion_forced": str(planned.forced).lower(),
    }
    demoted = {"demoted_at": planned.at, "demoted_by": planned.version} if planned.previous else {}
    for version, notes in ((planned.version, promoted), (planned.previous, demoted)):
        for key, text in notes.items():
            client.set_model_version_tag(planned.name, str(version), key, text)
    client.set_registered_model_alias(planned.name, CHAMPION, planned.version)


def _version_tags(facts: ModelFacts) -> dict[str, str]:
    tags = {"base_model": store.redact(facts.base_model), "pipeline_run": facts.pipeline_run}
    tags |= {key: text for key, text in (("git_commit", facts.git_commit), ("image", facts.image)) if text}
    tags |= {f"metric/{name}": repr(float(value)) for name, value in facts.metrics.items()}
    tags |= {f"evaluation/{name}": text for name, text in facts.evaluations.items()}
    tags |= {f"data/{one.name}/sha256": one.sha256 for one in facts.data}
    return {re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:250]: text for key, text in tags.items()}


def _benchmark_tag(metric: str) -> str:
    return f"evaluation/{metric.split('/')[0]}"


def _description(card: str) -> str:
    """The card, cut to MLflow's limit at the end of a line and outside of code."""
    if len(card) <= _MAX_DESCRIPTION:
        return card
    rest = "\n\n… (the whole card is README.md in the checkpoint)"
    short = card[: _MAX_DESCRIPTION - len(rest) - 4]
    cut = short[: short.rindex("\n")]
    return cut + ("\n```" if cut.count("```") % 2 else "") + rest


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
