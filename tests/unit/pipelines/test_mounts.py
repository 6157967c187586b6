"""What of this machine containers see: only what the configuration names, and nothing of it is changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import mounts
from pipelines.mounts import Needed
from rest_core import config
from rest_core.config import Config
from rest_core.errors import UserError

root_alone = pytest.mark.skipif(os.getuid() != 0, reason="only root's containers have another user")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder with a key, in which the caches are; the working folder is beside it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home" / ".ssh").mkdir(parents=True, mode=0o700)
    (tmp_path / "home" / ".ssh" / "id_rsa").touch(mode=0o600)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = os.umask(0o002)  # as a run in containers sets it
    yield tmp_path / "home"
    os.umask(before)


def _config(**values: Any) -> Config:
    return config.load("tiny", tuple(f"{name.replace('__', '.')}={value}" for name, value in values.items()))


def _split(places: list[Needed]) -> tuple[list[Path], list[Path]]:
    return [one.path for one in places if not one.written], [one.path for one in places if one.written]


def _rights(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.rglob("*"))}


def test_containers_see_the_files_that_the_configuration_names(tmp_path: Path, home: Path) -> None:
    work = tmp_path / "work"
    for name in ("model", "api-bank", "data/deep", "odd[1]"):
        (work / name).mkdir(parents=True)
    given = _config(
        model__source="./model",
        api_bank__location=work / "api-bank",
        data__sources=f"[{{location: '{work}/data/*/x[0-9].jsonl'}}, {{location: 'odd[1]'}}, {{location: owner/name}}]",
        tracking__uri=f"sqlite:///{work}/records/mlflow.db",
        registry__destination=work / "models" / "new",
        rl__mirror="s3://bucket/mirror",
    )
    read, written = _split(mounts.needed(given))
    assert read == [work / "api-bank", work / "data", work / "model", work / "odd[1]"]
    caches = [home / ".cache/huggingface/hub", home / ".cache/rest-pipelines"]
    assert written == [*caches, work / "models" / "new", work / "records"]
    assert all(folder.is_dir() for folder in written)
    assert [one.mount["ReadOnly"] for one in mounts.needed(given)] == [False] * 2 + [True] * 3 + [False, True, False]


def test_a_server_needs_no_folder_and_a_store_is_beside_the_run(tmp_path: Path, home: Path) -> None:
    caches = [home / ".cache/huggingface/hub", home / ".cache/rest-pipelines"]
    assert _split(mounts.needed(_config(tracking__uri="http://127.0.0.1:5000"))) == ([], caches)
    assert _split(mounts.needed(_config())) == ([], [*caches, tmp_path / "work" / "mlruns"])


@pytest.mark.parametrize("setting", ["registry__destination", "rl__mirror"])
def test_a_destination_alone_is_made_and_nothing_beside_it_changes(tmp_path: Path, home: Path, setting: str) -> None:
    before = _rights(home)
    _, written = _split(mounts.needed(_config(**{setting: "~/models"})))
    assert home / "models" in written and home not in written
    assert {path: rights for path, rights in _rights(home).items() if path in before} == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("registry.destination", "/"),
        ("registry.destination", "{home}"),
        ("registry.destination", "{link}"),
        ("rl.mirror", "{home}/.."),
        ("tracking.uri", "sqlite:///{home}/mlflow.db"),
        ("model.source", "{home}"),
        ("data.sources", "[{{location: '{home}/*.jsonl'}}]"),
    ],
)
def test_a_home_folder_is_never_shared(tmp_path: Path, home: Path, field: str, value: str) -> None:
    (tmp_path / "link").symlink_to(home)
    given = _config(**{field.replace(".", "__"): value.format(home=home, link=tmp_path / "link")})
    before = _rights(home)
    with pytest.raises(UserError, match=f"^{field}: containers would get all of /.*; put it into a folder of its own"):
        mounts.needed(given)
    assert _rights(home) == before


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^rl\.mirror: {tmp_path}/file is a file, not a folder"):
        mounts.needed(_config(rl__mirror=tmp_path / "file"))


@root_alone
def test_what_root_keeps_for_itself_is_told_and_stays_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").touch()
    (folder / "deep" / "file").chmod(0o600)
    before = _rights(tmp_path)
    with pytest.raises(UserError) as told:
        mounts.needed(_config(registry__destination=folder))
    assert _rights(tmp_path).items() >= before.items()
    message = str(told.value)
    assert message.startswith(f"{folder}/deep/file: root alone may write it (registry.destination), ")
    assert message.endswith(f": chgrp -R 0 {folder} && chmod -R g=u {folder}")
    (folder / "deep" / "file").chmod(0o660)
    assert folder in _split(mounts.needed(_config(registry__destination=folder)))[1]


@pytest.mark.parametrize(
    ("written", "usable", "unusable"),
    [(True, {"folder": 0o777, "file": 0o666}, {"folder": 0o755, "file": 0o644}),
     (False, {"folder": 0o755, "file": 0o644}, {"folder": 0o700, "file": 0o600})],
)  # fmt: skip
def test_every_path_below_must_be_usable_and_links_are_not_followed(
    tmp_path: Path, written: bool, usable: dict[str, int], unusable: dict[str, int]
) -> None:
    top = tmp_path / "top"
    places = {"folder": top / "folder", "file": top / "folder" / "file"}
    places["folder"].mkdir(parents=True)
    places["file"].touch()
    (tmp_path / "private").touch(mode=0o600)
    (top / "link").symlink_to(tmp_path / "private")
    os.mkfifo(top / "fifo", 0o600)
    top.chmod(0o777)
    for name, path in places.items():
        path.chmod(usable[name])
    mounts.refuse_unusable([Needed(top, "x", written)])
    for name, path in places.items():
        if os.getuid() == 0:  # by the rights of all others, whatever this user's group is
            os.chown(path, 1, 1)
        path.chmod(unusable[name])
        with pytest.raises(UserError, match=f"^{path}: "):
            mounts.refuse_unusable([Needed(top, "x", written)])
        path.chmod(usable[name])


@root_alone
def test_what_root_makes_for_containers_is_its_groups_too(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        mounts.share_new_files()
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o770
    mounts.refuse_unusable([Needed(tmp_path / "made", "x", written=True)])
