"""Outputs by URI: stored once, fetched once, checked."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rest_core import manifest, storage
from rest_core.errors import UserError
from rest_core.operations import handoff
from rest_core.operations.names import run_key


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "cache"


@pytest.fixture
def s3(empty_s3: Any) -> Any:
    empty_s3.create_bucket(Bucket="rest")
    return empty_s3


@pytest.fixture(params=["s3", "folder"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "volume")
    request.getfixturevalue("s3")
    return "s3://rest/team"


def output(folder: Path) -> tuple[Path, dict[str, str]]:
    """A stage's complete folder."""
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "deep" / "config.json").write_text("{}")
    (folder / "metrics.json").write_text('{"loss": 1.0}')
    files = manifest.contents(folder)
    manifest.write(folder, stage="rest-rl", config={}, inputs={}, counts={}, files=files)
    return folder, files


def test_an_output_is_stored_and_fetched_again(location: str, tmp_path: Path) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, location, "rest-rl", files)
    assert {path.name for path in folder.iterdir()} == {"reference.json", "manifest.json", "metrics.json"}
    reference = handoff.read(folder)
    assert reference is not None and reference.files == files
    assert reference.sha256 == manifest.read(folder)["sha256"]
    assert reference.bytes == 7000 + 2 + 13
    fetched = handoff.fetch(folder)
    assert manifest.contents(fetched) == files
    assert manifest.read(fetched) == manifest.read(folder)


def test_the_same_content_is_stored_once(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = handoff.store(output(tmp_path / "one")[0], "s3://rest/team", "rest-rl")
    monkeypatch.setattr(storage, "upload_folder", lambda *_: pytest.fail("copied again"))
    assert handoff.store(output(tmp_path / "two")[0], "s3://rest/team/", "rest-rl") == first


@pytest.mark.parametrize("lost", ["deep/config.json", "manifest.json"])
def test_what_was_half_stored_is_completed(location: str, tmp_path: Path, lost: str) -> None:
    folder, files = output(tmp_path / "out")
    reference = handoff.store(folder, location, "rest-rl")
    storage.delete_file(f"{reference.source}/{lost}")
    handoff.deliver(folder, location, "rest-rl", files)
    assert manifest.contents(handoff.fetch(folder)) == files
    assert (handoff.fetch(folder) / "manifest.json").is_file()


def test_a_folder_is_used_where_it_lies(tmp_path: Path, cache: Path) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, str(tmp_path / "volume"), "rest-rl", files)
    fetched = handoff.fetch(folder)
    assert fetched.is_relative_to(tmp_path / "volume")
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_an_output_is_fetched_and_checked_once(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, location, "rest-rl", files)
    place = handoff.fetch(folder)
    monkeypatch.setattr(manifest, "sha256_file", lambda _: pytest.fail("hashed again"))
    assert handoff.fetch(folder) == place


def test_what_is_missing_or_changed_is_refused_by_name(location: str, tmp_path: Path) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, location, "rest-rl", files)
    reference = handoff.read(folder)
    assert reference is not None
    changed = f"{reference.source}/model.safetensors"
    (tmp_path / "other").write_bytes(b"Weights" * 1000)
    storage.put_file(tmp_path / "other", changed)
    with pytest.raises(UserError, match=r"model\.safetensors: is not what was written there") as told:
        handoff.fetch(folder)
    assert changed in str(told.value)
    storage.delete_file(changed)
    with pytest.raises(UserError, match=r"model\.safetensors: is not there any more; run .*submit --no-cache"):
        handoff.fetch(folder)


def _added(place: Path) -> str:
    (place / "deep" / "adapter_config.json").write_text("{}")  # transformers would take it up
    return r"deep/adapter_config\.json: was not written there"


def _flipped(place: Path) -> str:
    weights = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(b"W" + weights[1:])
    return r"model\.safetensors: is not what was written there"


def _removed(place: Path) -> str:
    (place / "metrics.json").unlink()
    return r"metrics\.json: is not there any more"


CHANGES = (_added, _flipped, _removed)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_the_first_check_is_refused_where_it_lies(
    tmp_path: Path, change: Callable[[Path], str]
) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, str(tmp_path / "volume"), "rest-rl", files)
    place = handoff.fetch(folder)
    told = change(place)
    with pytest.raises(UserError, match=f"^{place}/{told}"):
        handoff.fetch(folder)


@pytest.mark.parametrize("change", CHANGES)
def test_a_download_that_has_changed_is_fetched_again(s3: Any, tmp_path: Path, change: Callable[[Path], str]) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, "s3://rest/team", "rest-rl", files)
    change(handoff.fetch(folder))
    assert manifest.contents(handoff.fetch(folder)) == files


@pytest.mark.parametrize("change", CHANGES)
def test_a_stages_own_folder_is_checked_too(tmp_path: Path, change: Callable[[Path], str]) -> None:
    folder, _ = output(tmp_path / "out")
    assert handoff.fetch(folder) == folder
    (folder / "notes.md").touch()  # nobody reads it
    assert handoff.fetch(folder) == folder
    told = change(folder)
    for _ in range(2):
        with pytest.raises(UserError, match=f"^{folder}/{told}"):
            handoff.fetch(folder)
    (folder / "manifest.json").unlink()  # as the message says: the user's own from now on
    assert handoff.fetch(folder) == folder


def test_a_stages_own_folder_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = output(tmp_path / "out")
    handoff.fetch(folder)
    monkeypatch.setattr(manifest, "sha256_file", lambda _: pytest.fail("hashed again"))
    assert handoff.fetch(folder) == folder


def test_a_flat_copy_of_a_checkpoint_is_checked_for_what_it_has(tmp_path: Path) -> None:
    folder, _ = output(tmp_path / "out")
    shutil.rmtree(folder / "deep")
    (folder / "README.md").write_text("card")
    assert handoff.fetch(folder) == folder
    _flipped(folder)
    with pytest.raises(UserError, match=r"model\.safetensors: is not what was written there"):
        handoff.fetch(folder)


def test_a_cache_that_cannot_be_written_checks_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = output(tmp_path / "out")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert handoff.fetch(folder) == folder
    _flipped(folder)
    with pytest.raises(UserError, match="is not what was written there"):
        handoff.fetch(folder)


@pytest.mark.parametrize(
    "text", ["", '{"stage": "rest-rl"', "[]", "{}", '{"sha256": 1}', "[" * 10**5, "\xff\x00"], ids=str.__len__
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    folder, _ = output(tmp_path / "out")
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=rf"^{folder}/manifest\.json: (cannot be read|no stage wrote it)") as told:
        handoff.fetch(folder)
    assert "\n" not in str(told.value)


def test_a_hash_that_was_changed_in_the_manifest_is_named(tmp_path: Path) -> None:
    folder, _ = output(tmp_path / "out")
    made = manifest.read(folder)
    made["files"]["model.safetensors"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(UserError, match="hashes do not belong together"):
        handoff.fetch(folder)


def test_a_place_that_is_gone_is_named(location: str, tmp_path: Path) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, location, "rest-rl", files)
    reference = handoff.read(folder)
    assert reference is not None
    for name in storage.list_files(reference.source):
        storage.delete_file(f"{reference.source}/{name}")
    with pytest.raises(UserError, match=f"{reference.source}: this output is not there any more.* --no-cache"):
        handoff.fetch(folder)


def test_what_lies_in_a_folder_may_be_read_by_others(tmp_path: Path) -> None:
    folder, files = output(tmp_path / "out")
    (folder / "model.safetensors").chmod(0o600)  # as safetensors writes it
    reference = handoff.store(folder, str(tmp_path / "volume"), "rest-rl", files)
    stored = Path(reference.source) / "model.safetensors"
    (tmp_path / "new").touch()
    assert stored.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_folder_with_its_content_is_itself(tmp_path: Path) -> None:
    folder, _ = output(tmp_path / "out")
    assert handoff.read(folder) is None
    assert handoff.fetch(folder) == folder


def test_a_model_that_no_stage_has_made_is_not_fetched(tmp_path: Path) -> None:
    handoff.write(tmp_path / "policy", handoff.Pointer(source="owner/name"))
    assert handoff.fetch(tmp_path / "policy") == tmp_path / "policy"


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"files": {"a": "b"}}, {"more": 1}, {"source": None}])
def test_a_damaged_reference_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    folder, files = output(tmp_path / "out")
    handoff.deliver(folder, str(tmp_path / "volume"), "rest-rl", files)
    path = folder / handoff.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"{path}: not a reference"):
        handoff.fetch(folder)


def test_a_full_location_leaves_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise UserError("no room")

    folder, files = output(tmp_path / "out")
    monkeypatch.setattr(storage, "upload_folder", refuse)
    with pytest.raises(UserError, match="no room"):
        handoff.deliver(folder, str(tmp_path / "volume"), "rest-rl", files)
    assert manifest.contents(folder) == files


def test_the_work_of_a_run_is_removed_and_nothing_else(location: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    run, other = handoff.scratch(location, "a run/1"), handoff.scratch(location, "a-run-1")
    assert run.startswith(f"{location}/runs/a-run-1-") and other == f"{location}/runs/a-run-1"
    for place in (run, f"{run}/checkpoints/step-000001", other):
        storage.put_file(tmp_path / "file", f"{place}/file")
    handoff.remove_scratch(location, "a run/1")
    handoff.remove_scratch(location, "never made")
    for none in ("", ".", ".."):
        with pytest.raises(UserError, match="give it a name with letters or digits"):
            handoff.remove_scratch(location, none)
    assert storage.list_files(run) == []
    assert storage.list_files(other) == ["file"]


def test_every_run_has_a_key_of_its_own() -> None:
    long = "qwen3-1.7b-instruct · paper-no-curriculum-long-name · 2026-01-01 00:00 · "
    runs = ["a b", "a-b", "a·b", "-a-b", "实验一", "实验二", f"{long}0f3c", f"{long}1111", "x" * 63, "x" * 64]
    keys = [run_key(run) for run in runs]
    assert len(set(keys)) == len(runs) and keys[1] == "a-b" and keys[8] == "x" * 63
    assert all(re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", key, re.ASCII) for key in keys)
