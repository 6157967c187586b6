"""The model registry: trained checkpoints become versions.

A checkpoint is a flat Hugging Face folder, because that is what vLLM reads; MLflow's transformers flavor writes
another layout. So the folder is stored as it is (artifacts of the run, another folder, or S3), and the version refers
to it. The run that registers it keeps its evaluations (`evaluations.of_version`), from which the gate decides
(`promotion`). Where a version comes from stands in its tags:

    checkpoint_sha256       of the checkpoint's files
    evaluations_sha256      of the evaluations that it was registered with
    base_model, pipeline_run, git_commit, image
    data/<name>/sha256      the data it was trained on
    metric/<name>           its main figures, for people
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rest_core import manifest, storage
from rest_core.config import RegistryConfig
from rest_core.credentials import redact
from rest_core.disk import disk_errors
from rest_core.errors import UserError, nearest
from rest_core.operations import pods
from rest_core.operations.catalogue import benchmarks
from rest_core.operations.tracking import store
from rest_core.operations.tracking.card import ModelFacts, model_card, readme, use_of_version
from rest_core.serving.plugin import PLUGIN_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHAMPION = "champion"
CHALLENGER = "challenger"
CHECKPOINT_TAG = "checkpoint_sha256"
EVALUATED_TAG = "evaluations_sha256"
_MODEL_DESCRIPTION = "Tool-use models trained with ResT: `champion` is the one to serve, `challenger` the newest."
_CHECKPOINT_FILES = ("config.json", "*.safetensors", "tokenizer_config.json")
_CHECKPOINT_SUFFIXES = {".json", ".safetensors", ".jinja", ".txt", ".model"}
_MAX_TAGS = 10
_MAX_DESCRIPTION = 5000  # MLflow's column
_PROXY_LIMIT = 1_000_000_000  # bytes; larger files through a server's artifact proxy have been seen to time out


@dataclass(frozen=True)
class Registered:
    """A version that was made."""

    name: str
    version: str
    source: str  # what the registry refers to
    location: str  # where that is


@store.asks
def register_model(
    client: MlflowClient, registry: RegistryConfig, *, checkpoint: Path, run_id: str, facts: ModelFacts
) -> Registered:
    """Store a checkpoint and register it as a new version with alias `challenger`.

    A version that an earlier attempt of the same pipeline run has made of the same checkpoint is taken instead of
    another one. The stored copy carries the model card as README.md. Where the destination is not the run's artifacts,
    it is `<registry.destination>/<name>/<run id>`. The version gets its alias only when its source has been seen to
    hold the checkpoint; otherwise it is deleted again.

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

    files = checkpoint_files(checkpoint)
    digest = manifest.sha256_contents({path.name: manifest.sha256_file(path) for path in files})
    tags = _version_tags(facts) | {CHECKPOINT_TAG: digest}
    if (made := _made_before(client, registry.name, files, tags)) is not None:
        return made
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # links, so that the checkpoint's own folder gets no README.md and nothing is copied
        for path in files:
            (folder / path.name).symlink_to(path.resolve())
        there = replace(facts, training_run=None)  # a link of MLflow's pages leads nowhere in a file
        card = readme(registry.name, there, own_parser=(checkpoint / PLUGIN_FILE).is_file())
        (folder / "README.md").write_text(card, encoding="utf-8")
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        source = _store(client, registry, folder, run_id, largest=max(sizes.values()))
    try:
        client.create_registered_model(registry.name, description=_MODEL_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    try:
        version = client.create_model_version(registry.name, source, run_id=run_id, tags=tags)
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


@store.asks
def describe(client: MlflowClient, made: Registered, facts: ModelFacts, verdict: str) -> None:
    """Give a version its card, with what the gate says of it at the head."""
    use = use_of_version(made.name, made.version, client.tracking_uri)
    card = model_card(made.name, facts, use=use, verdict=verdict)
    client.update_model_version(made.name, made.version, description=_description(card))


def _made_before(client: MlflowClient, name: str, files: Sequence[Path], tags: Mapping[str, str]) -> Registered | None:
    """The version that an earlier attempt has made with the same evaluations; a broken one without alias is deleted."""
    same = [f"tags.{tag} = '{tags[tag]}'" for tag in (CHECKPOINT_TAG, "pipeline_run", EVALUATED_TAG) if tag in tags]
    for version in client.search_model_versions(" and ".join([f"name = '{name}'", *same])):
        number = str(version.version)
        aliases = registered_model(client, name).aliases
        try:
            location = _verify(client, version, {path.name: path.stat().st_size for path in files})
        except UserError:
            if number not in map(str, aliases.values()):
                client.delete_model_version(name, number)
            continue
        if number not in map(str, aliases.values()):
            client.set_registered_model_alias(name, CHALLENGER, number)
        logger.info("%s version %s was registered by an earlier attempt", name, number)
        return Registered(name, number, str(version.source), location)
    return None


@store.asks
def get_version(client: MlflowClient, name: str, version: str | int | None = None) -> ModelVersion:
    """A version by number, or by alias (`challenger` where none is given).

    Raises `UserError` for a model, version or alias that is not there, with the nearest that is.
    """
    aliases: dict[str, str] = registered_model(client, name).aliases
    wanted = str(version or CHALLENGER)
    if not wanted.isdecimal() and wanted not in aliases:
        hint = nearest(wanted, aliases) or "; register a model first, or give a version number"
        raise UserError(f"{name} has no alias {wanted!r}{hint}")
    wanted = str(aliases.get(wanted, wanted))
    if (found := existing(client.get_model_version, name, wanted)) is None:
        known = sorted((str(one.version) for one in client.search_model_versions(f"name = '{name}'")), key=int)
        raise UserError(f"{name} has no version {wanted} (there: {', '.join(known)})")
    return found


@store.asks
def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that has the alias `champion`, if any has."""
    aliases: dict[str, str] = client.get_registered_model(name).aliases
    return client.get_model_version(name, str(aliases[CHAMPION])) if CHAMPION in aliases else None


def checkpoint_files(folder: Path) -> list[Path]:
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
    return sorted(path for path in folder.glob("*") if path.is_file() and _is_stored(path))


def _is_stored(path: Path) -> bool:
    return path.suffix in _CHECKPOINT_SUFFIXES or path.name == PLUGIN_FILE


def _store(client: MlflowClient, registry: RegistryConfig, folder: Path, run_id: str, *, largest: int) -> str:
    """Copy a folder to the destination, or to the run's artifacts; returns what the registry refers to."""
    from mlflow.exceptions import MlflowException

    if registry.destination is not None:
        pods.require_lasting("registry.destination", registry.destination)
        uri = f"{registry.destination.rstrip('/')}/{registry.name}/{run_id}"
        written = storage.upload_folder(folder, uri)
        return written if storage.is_s3(written) else Path(written).expanduser().absolute().as_uri()
    run = client.get_run(run_id)
    artifacts = run.info.artifact_uri
    if pods.run_id():
        experiment = client.get_experiment(run.info.experiment_id).name
        store.require_lasting(experiment, artifacts, pods.on_volume)
    if (local := store.local_path(artifacts)) is not None:
        _link_or_copy(folder, local / "model")
        return f"runs:/{run_id}/model"
    if artifacts.startswith("mlflow-artifacts:") and largest > _PROXY_LIMIT:
        logger.warning(
            "a file of %.1f GB goes through the MLflow server and may time out; give registry.destination on S3",
            largest / 1e9,
        )
    try:
        client.log_artifacts(run_id, str(folder), "model")
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id}: the checkpoint cannot be uploaded: {store.reason(error)}") from error
    return f"runs:/{run_id}/model"


def _link_or_copy(folder: Path, target: Path) -> None:
    """Put a checkpoint into another folder of this machine; weights share their blocks where one disk has both."""
    with disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            place = target / path.name
            place.unlink(missing_ok=True)
            if path.suffix == ".safetensors":
                with contextlib.suppress(OSError):  # another disk, or a file system without links
                    place.hardlink_to(path.resolve())
                    continue
            shutil.copyfile(path, place)


def _verify(client: MlflowClient, version: ModelVersion, sizes: dict[str, int]) -> str:
    """Where the version's source is; raises `UserError` unless every file of the checkpoint is there."""
    from mlflow.artifacts import list_artifacts

    location = location_of(client, version)
    stored = {Path(one.path).name: one.file_size for one in list_artifacts(location, tracking_uri=client.tracking_uri)}
    if wrong := sorted(name for name, size in sizes.items() if stored.get(name) != size):
        raise UserError(f"{location}: {', '.join(wrong)} not stored completely; register the model again")
    return location


def missing_files(client: MlflowClient, version: ModelVersion) -> list[str]:
    """What of a version's checkpoint is not where the registry says that it is: patterns of file names.

    Raises:
        UserError: one cannot look there.
    """
    from mlflow.artifacts import list_artifacts

    location = location_of(client, version)
    if (folder := store.local_path(location)) is not None or storage.is_s3(location):
        names = storage.list_files(location if folder is None else str(folder))
    else:
        try:
            names = [Path(one.path).name for one in list_artifacts(location, tracking_uri=client.tracking_uri)]
        except Exception as error:  # every client library has failures of its own
            raise UserError(f"{location}: cannot be looked at ({store.reason(error)})") from error
    return [pattern for pattern in _CHECKPOINT_FILES if not fnmatch.filter(names, pattern)]


def location_of(client: MlflowClient, version: ModelVersion) -> str:
    """Where a version's checkpoint lies."""
    location: str = client.get_model_version_download_uri(version.name, str(version.version))
    of_run = location.startswith("runs:/")
    return f"{client.get_run(version.run_id or '').info.artifact_uri}/model" if of_run else location


@store.asks
def registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    """A registered model; raises `UserError`, with the nearest that is there, where there is none."""
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


def _version_tags(facts: ModelFacts) -> dict[str, str]:
    """Ten at most, with the checkpoint's hash: MLflow's page of a version shows them above everything else."""
    tags = {"base_model": redact(facts.base_model), "pipeline_run": facts.pipeline_run}
    given = (("git_commit", facts.git_commit), ("image", facts.image), (EVALUATED_TAG, facts.evaluated))
    tags |= {key: text for key, text in given if text}
    tags |= {f"data/{one.name}/sha256": one.sha256 for one in facts.data}
    main = [figure.metric for stage in benchmarks() for figure in stage.figures if figure.metric in facts.metrics]
    tags |= {f"metric/{name}": f"{facts.metrics[name]:.4f}" for name in main[: _MAX_TAGS - len(tags) - 1]}
    return {re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:250]: text for key, text in tags.items()}


def _description(card: str) -> str:
    """The card, cut to MLflow's limit at the end of a line and outside of code."""
    if len(card) <= _MAX_DESCRIPTION:
        return card
    rest = "\n\n… (the whole card is README.md in the checkpoint)"
    short = card[: _MAX_DESCRIPTION - len(rest) - 4]
    cut = short[: short.rindex("\n")]
    fences = sum(line.startswith("```") for line in cut.splitlines())
    return cut + ("\n```" if fences % 2 else "") + rest
