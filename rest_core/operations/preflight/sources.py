"""Whether model and data are where the configuration says, without downloading them."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

from safetensors import safe_open

from rest_core import storage
from rest_core.config import EMBEDDED_DATA, ApiBankConfig, Config, ModelConfig
from rest_core.data import published
from rest_core.data.hub import Kind, hub_errors, is_hub_id
from rest_core.errors import UserError, nearest
from rest_core.operations.pods import NotAllowed

log = logging.getLogger(__name__)

_LEAST_SPACE = 100_000_000  # bytes: logs, reports, answers
_FILES = (".json", ".jsonl", ".parquet", ".csv", ".gz", ".gguf")  # endings that tell a file from a hub id


def require_local(config: Config) -> None:
    """Raise `UserError` for a file or folder that a run reads, should lie on this machine and does not.

    No server is asked: hub ids, S3 and published data are left to the stages.
    """
    off = {f"{section}.location" for section in ("api_bank",) if not config.enabled(section)}
    for name, location in config.inputs():
        if name in off:
            continue
        on_hub = is_hub_id(location) and Path(location).suffix not in _FILES
        elsewhere = storage.is_s3(location) or ":" in location.partition("/")[0] or on_hub
        try:
            found = elsewhere or any(Path(place).expanduser().exists() for place in storage.expand(location))
        except UserError as problem:
            raise UserError(f"{name}: {problem}") from None
        if not found:
            raise UserError(f"{name}: {location}: no such file or folder; check the spelling")


def require_space(config: Config, folder: Path, *, trainings: int = 1) -> None:
    """Raise `UserError` where the disk cannot hold the checkpoints that a run leaves.

    What a training needs besides, as long as it runs, is not counted. Of a model that is no folder of this machine the
    size is not known: then a full disk alone is refused.

    Args:
        config: the whole configuration.
        folder: the run's; it may not exist yet.
        trainings: how many of them follow the warm-up.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    checkpoints = int(config.sft.enabled) + trainings * int(config.rl.enabled)
    wanted = _LEAST_SPACE + checkpoints * _checkpoint_bytes(config.model)
    if (free := shutil.disk_usage(place).free) < wanted:
        raise UserError(
            f"{place}: {free / 1e9:.1f} GB of disk are free, and the run leaves {wanted / 1e9:.1f} GB there; "
            "free some (rest clean removes what no registered version needs), or give another --output"
        )


def _checkpoint_bytes(model: ModelConfig) -> int:
    """What the weights of a model of this machine take when they are saved in `model.dtype`; 0 for another one."""
    from rest_core.model import embedded

    place = Path(model.source)
    if model.source.startswith(embedded.PREFIX):
        place = embedded.folder(model.source.removeprefix(embedded.PREFIX), storage.cache_folder())
    files = place.glob("*.safetensors") if place.is_dir() else ()
    return {"bfloat16": 2, "float32": 4}[model.dtype] * sum(map(_parameters, files))


def _parameters(file: Path) -> int:
    with safe_open(file, framework="np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def check_model(model: ModelConfig) -> str:
    """Raise `UserError` unless the model's source is there and may be read."""
    source = model.source
    if source.startswith("embedded:"):
        from rest_core.model import embedded

        embedded.require(source.removeprefix(embedded.PREFIX))
        return f"{source} comes with the image"
    if storage.is_s3(source) or Path(source).is_absolute() or Path(source).exists():
        if "config.json" not in storage.list_files(source):
            raise UserError(f"{source}: no config.json there; give the folder or prefix of a Hugging Face checkpoint")
        return f"{source} is there"
    if not is_hub_id(source):
        raise UserError(f"{source}: neither a folder nor a hub id (owner/name); check the spelling")
    return _on_hub(source, "model", model.revision)


def check_data(location: str) -> str:
    """Raise `UserError` unless a source of data is there and may be read."""
    if location.startswith("embedded:"):
        if location != EMBEDDED_DATA:
            raise UserError(f"{location}: no such embedded data{nearest(location, [EMBEDDED_DATA])}")
        return f"{location} comes with the image of prepare-data"
    if location.startswith(published.PREFIX):
        published.require(location)
        return f"{location} can be downloaded, or is in the cache"
    if not storage.is_s3(location) and not Path(location).exists() and is_hub_id(location):
        return _on_hub(location, "dataset", None)
    found = storage.expand(location)
    missing = [place for place in found if not storage.is_s3(place) and not Path(place).expanduser().exists()]
    if missing:
        raise UserError(
            f"{missing[0]}: no such file or folder in a pod; give an s3:// URI or a path of a mounted volume"
        )
    return f"{location} is there ({len(found)} {'place' if len(found) == 1 else 'files'})"


def check_api_bank(api_bank: ApiBankConfig) -> str:
    """The same for API-Bank; where its published files cannot be reached, its evaluations are skipped."""
    try:
        return check_data(api_bank.location or f"{published.PREFIX}api-bank")
    except published.Unreachable as problem:
        raise NotAllowed(
            f"its evaluations will be skipped, unless the files are in their pods' cache: {problem}"
        ) from None


def _on_hub(name: str, kind: Kind, revision: str | None) -> str:
    from huggingface_hub import HfApi, snapshot_download

    try:
        with hub_errors(name, kind, revision):
            api = HfApi()
            api.auth_check(name, repo_type=kind)
            found = api.repo_info(name, repo_type=kind, revision=revision, timeout=published.TIMEOUT_S)
            return f"{name} is on the hub, at commit {str(found.sha)[:12]}"
    except published.Unreachable as away:
        with hub_errors(name, kind, revision):
            folder = snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)
            log.info("%s, but there is a copy in the cache: %s", away, folder)
            return f"{name} is in the cache; the hub cannot be reached"
