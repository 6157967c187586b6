"""Storage on the local disk and on moto's S3."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from rest_core import storage
from rest_core.disk import disk_errors, written_aside
from rest_core.errors import UserError
from rest_core.s3 import ADDRESSING_VARIABLE, opened, short_waits


@pytest.fixture
def s3(empty_s3: Any) -> Any:
    empty_s3.create_bucket(Bucket="data")
    for key, text in {
        "set/a.jsonl": "A",
        "set/deep/b.jsonl": "B",
        "set2/c.jsonl": "C",
        "set/notes.txt": "N",
    }.items():
        empty_s3.put_object(Bucket="data", Key=key, Body=text.encode())
    return empty_s3


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name]


def test_a_local_path_is_itself(tmp_path: Path):
    (tmp_path / "x").write_text("x")
    assert storage.fetch(str(tmp_path / "x"), tmp_path / "cache") == tmp_path / "x"
    with pytest.raises(UserError, match="no such file or folder"):
        storage.fetch(str(tmp_path / "y"), tmp_path / "cache")


def test_object_and_prefix_are_downloaded(s3: Any, tmp_path: Path):
    file = storage.fetch("s3://data/set/a.jsonl", tmp_path)
    assert file.name == "a.jsonl" and file.read_text() == "A"
    folder = storage.fetch("s3://data/set", tmp_path)
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"a.jsonl": "A", "deep/b.jsonl": "B", "notes.txt": "N"}  # and nothing of set2
    assert storage.fetch("s3://data/set/", tmp_path) == folder
    assert not leftovers(tmp_path)


def test_a_changed_object_is_fetched_again_and_an_unchanged_one_is_not(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = storage.fetch("s3://data/set/a.jsonl", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(storage.s3, "download", lambda *_: pytest.fail("fetched again"))
        assert storage.fetch("s3://data/set/a.jsonl", tmp_path) == first
    s3.put_object(Bucket="data", Key="set/a.jsonl", Body=b"new")
    assert storage.fetch("s3://data/set/a.jsonl", tmp_path).read_text() == "new"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://data/set/a.jsonl", ["set/a.jsonl"]),
        ("s3://data/set", ["set/a.jsonl", "set/deep/b.jsonl", "set/notes.txt"]),
        ("s3://data/set*/*.jsonl", ["set/a.jsonl", "set/deep/b.jsonl", "set2/c.jsonl"]),
        ("s3://data", ["set/a.jsonl", "set/deep/b.jsonl", "set/notes.txt", "set2/c.jsonl"]),
    ],
)
def test_prefixes_and_globs_of_s3(s3: Any, location: str, expected: list[str]):
    assert storage.expand(location) == [f"s3://data/{key}" for key in expected]


def test_local_globs(tmp_path: Path):
    for name in ("b.json", "a.json", "c.txt", "odd[1].json"):
        (tmp_path / name).write_text("x")
    assert storage.expand(f"{tmp_path}/?.json") == [f"{tmp_path}/a.json", f"{tmp_path}/b.json"]
    assert storage.expand(f"{tmp_path}/odd[1].json") == [f"{tmp_path}/odd[1].json"]  # a file of that very name
    assert storage.expand("plain.json") == ["plain.json"]
    with pytest.raises(UserError, match="no file matches"):
        storage.expand(f"{tmp_path}/*.parquet")


@pytest.mark.parametrize("location", ["s3://data/gone", "s3://data/gone*", "s3://nobucket/x", "s3:///x"])
def test_what_is_missing_is_named(s3: Any, tmp_path: Path, location: str):
    for call in (lambda: storage.fetch(location, tmp_path), lambda: storage.expand(location)):
        with pytest.raises(UserError) as caught:
            call()
        assert location in str(caught.value) and "\n" not in str(caught.value)
    assert not leftovers(tmp_path)


def test_denied_access_names_the_credentials(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(self: Any, operation: str, arguments: Any) -> Any:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", denied)
    with pytest.raises(UserError, match=r"s3://data/set: access denied .*AWS_"):
        storage.fetch("s3://data/set", tmp_path)


def test_an_endpoint_that_is_away_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"s3://data/x: S3 failed: .*127\.0\.0\.1:9"):
        storage.fetch("s3://data/x", tmp_path)


def test_a_key_that_leads_out_of_the_prefix_is_refused(s3: Any, tmp_path: Path):
    s3.put_object(Bucket="data", Key="evil/../../out.txt", Body=b"x")
    with pytest.raises(UserError, match="leads out"):
        storage.list_files("s3://data/evil")
    with pytest.raises(UserError, match="leads out"):
        storage.fetch("s3://data/evil", tmp_path / "cache")
    assert not list(tmp_path.rglob("out.txt"))


def test_upload_to_s3_writes_the_manifest_last(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sub").mkdir()
    for name in ("manifest.json", "weights", "sub/tokens", "a"):
        (tmp_path / name).write_text(name)
    order: list[str] = []
    call = BaseClient._make_api_call

    def recorded(self: Any, operation: str, arguments: Any) -> Any:
        order.append(arguments["Key"])
        return call(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    assert storage.upload_folder(tmp_path, "s3://data/models/m1/") == "s3://data/models/m1"
    assert order[-1] == "models/m1/manifest.json" and len(order) == 4
    assert s3.get_object(Bucket="data", Key="models/m1/sub/tokens")["Body"].read() == b"sub/tokens"


def test_upload_to_a_folder_never_overwrites(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_text("1")
    target = tmp_path / "deep" / "target"
    assert storage.upload_folder(source, str(target)) == str(target)
    assert (target / "x").read_text() == "1"
    with pytest.raises(UserError, match="exists already"):
        storage.upload_folder(source, str(target))
    with pytest.raises(UserError, match="nothing to upload"):
        storage.upload_folder(tmp_path / "gone", str(tmp_path / "t"))


@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_a_full_or_forbidden_disk_leaves_nothing(tmp_path: Path, code: int, message: str):
    with (
        pytest.raises(UserError, match=message),
        disk_errors(tmp_path),
        written_aside(tmp_path / "file") as aside,
    ):
        aside.write_text("half")
        raise OSError(code, "as the system says it")
    assert list(tmp_path.iterdir()) == []


def test_another_fault_is_not_hidden(tmp_path: Path):
    with pytest.raises(InterruptedError), disk_errors(tmp_path):
        raise InterruptedError(errno.EINTR, "x")


def test_an_endpoint_that_is_no_address_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio.svc:9000")
    with pytest.raises(UserError, match=r"Invalid endpoint: minio\.svc:9000; check AWS_ENDPOINT_URL"):
        storage.list_files("s3://data/set")


def test_short_waits_are_for_their_block_alone(s3: Any):
    def config() -> Any:
        with opened("s3://data") as (bucket, _):
            return bucket.meta.client.meta.config

    with short_waits():
        assert (config().connect_timeout, config().read_timeout) == (5, 10)
        assert config().retries["total_max_attempts"] == 2
    assert config().read_timeout == 60


@pytest.mark.parametrize("there", ["s3://data", "folder"])
def test_a_folder_is_deleted_and_nothing_beside_it(s3: Any, tmp_path: Path, there: str):
    root = str(tmp_path) if there == "folder" else there
    (tmp_path / "file").touch()
    for name in ("set/deep/b.jsonl", "set2/c.jsonl"):
        storage.put_file(tmp_path / "file", f"{root}/{name}")
    for _ in range(2):
        storage.delete_folder(f"{root}/set")
    assert storage.list_files(f"{root}/set") == [] and storage.list_files(f"{root}/set2") == ["c.jsonl"]


@pytest.mark.parametrize(("style", "host"), [("path", "s3.example"), ("virtual", "bucket.s3.example")])
def test_the_addressing_style_is_that_of_mlflows_client(style: str, host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv(ADDRESSING_VARIABLE, style)
    for waits in (nullcontext(), short_waits()):
        with waits, opened("s3://bucket/key") as (bucket, _):
            client = bucket.meta.client
            address = client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
            assert urlsplit(address).hostname == host


def test_an_unknown_addressing_style_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ADDRESSING_VARIABLE, "sideways")
    with pytest.raises(UserError, match="sideways"):
        storage.list_files("s3://bucket/key")
