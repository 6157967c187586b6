"""What keys of S3 stand for, and downloads that arrive damaged, on moto's S3."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.client import BaseClient
from botocore.response import StreamingBody

from rest_core import manifest, storage
from rest_core.errors import UserError

CONTENT = bytes(range(256)) * 40
Damage = Callable[[bytes, int], bytes]


@pytest.fixture
def s3(empty_s3: Any) -> Any:
    empty_s3.create_bucket(Bucket="data")
    return empty_s3


def put(s3: Any, *keys: str, body: bytes = CONTENT) -> None:
    for key in keys:
        s3.put_object(Bucket="data", Key=key, Body=body)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("key", ["n/ß[1].jsonl", "n/what?.jsonl", "n/a*.jsonl", "n/a b+c&d%20#e.jsonl", "[x]/y.jsonl"])
def test_a_key_that_is_there_as_it_is_written_is_that_object(s3: Any, tmp_path: Path, key: str) -> None:
    put(s3, key, "n/ß1.jsonl", "n/whats.jsonl", "n/ab.jsonl", "x/y.jsonl")
    location = f"s3://data/{key}"
    assert storage.expand(location) == [location]
    assert storage.fetch(location, tmp_path).read_bytes() == CONTENT
    target = tmp_path / "one"
    storage.get_file(location, target)
    assert target.read_bytes() == CONTENT
    storage.put_file(target, f"s3://data/models [prod]/{key}")
    assert storage.list_files("s3://data/models [prod]") == [key]
    assert storage.expand("s3://data/models [prod]") == [f"s3://data/models [prod]/{key}"]
    storage.delete_folder("s3://data/models [prod]")
    assert storage.list_files("s3://data/models [prod]") == [] and storage.expand(location) == [location]


def test_a_pattern_that_no_object_is_written_as_is_one(s3: Any) -> None:
    put(s3, "n/1.jsonl", "n/2.jsonl", "n/3.txt")
    assert storage.expand("s3://data/n/[12].jsonl") == ["s3://data/n/1.jsonl", "s3://data/n/2.jsonl"]


def test_an_empty_object_of_the_prefixs_name_is_the_mark_of_a_folder(s3: Any, tmp_path: Path) -> None:
    put(s3, "m/marked", "m/marked/", "m/marked/deep", "m/marked/deep/", body=b"")
    put(s3, "m/marked/config.json", "m/marked/deep/x.json", "m/marked-not")
    found = ["config.json", "deep/x.json"]
    for location in ("s3://data/m/marked", "s3://data/m/marked/"):
        assert storage.list_files(location) == found
        assert sorted(files(storage.fetch(location, tmp_path))) == found
        assert storage.expand(location) == [f"s3://data/m/marked/{name}" for name in found]
    assert storage.expand("s3://data/m/m*d*") == [
        "s3://data/m/marked-not", "s3://data/m/marked/config.json", "s3://data/m/marked/deep/x.json",
    ]  # fmt: skip


def test_an_empty_object_alone_is_a_file(s3: Any, tmp_path: Path) -> None:
    put(s3, "empty", body=b"")
    assert storage.fetch("s3://data/empty", tmp_path).read_bytes() == b""
    assert storage.expand("s3://data/empty") == ["s3://data/empty"]


@pytest.mark.parametrize("keys", [("p/a//b",), ("p/./a",), ("p/a", "p/a/b"), ("p//a",)])
def test_keys_that_are_no_names_of_files_in_one_folder_are_refused(s3: Any, tmp_path: Path, keys: tuple[str]) -> None:
    put(s3, *keys)
    for read in (storage.list_files, lambda location: storage.fetch(location, tmp_path / "cache")):
        with pytest.raises(
            UserError, match=r"^s3://data/p: the object key '.*' (cannot be|leads out).*rename the object$"
        ):
            read("s3://data/p")
    assert not list(tmp_path.rglob("b"))


def damage(monkeypatch: pytest.MonkeyPatch, change: Damage) -> list[str]:
    """Every download arrives as change(content, number of downloads before); the keys that were downloaded."""
    asked: list[str] = []
    call = BaseClient._make_api_call

    def changed(self: Any, operation: str, arguments: Any) -> Any:
        answer = call(self, operation, arguments)
        if operation == "GetObject":
            body = change(answer["Body"].read(), len(asked))
            asked.append(arguments["Key"])
            answer["Body"] = StreamingBody(io.BytesIO(body), len(body))
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", changed)
    return asked


def flipped(content: bytes, place: int = 100) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


FAULTS: dict[str, Damage] = {
    "a flipped bit": lambda content, before: flipped(content),
    "another bit each time": lambda content, before: flipped(content, before),
    "half of it": lambda content, before: content[: len(content) // 2],
    "a page of a proxy": lambda content, before: b"<html>sign in</html>",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hashed", [True, False])
def test_a_download_that_arrives_damaged_once_is_fetched_again(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, hashed: bool
) -> None:
    put(s3, "m/model.safetensors")
    (tmp_path / "right").write_bytes(CONTENT)
    sha256 = {"model.safetensors": manifest.sha256_file(tmp_path / "right")} if hashed else {}
    once: Damage = lambda content, before: FAULTS[fault](content, before) if before == 0 else content  # noqa: E731
    asked = damage(monkeypatch, once)
    place = storage.fetch("s3://data/m", tmp_path / "cache", sha256=sha256)
    assert files(place) == {"model.safetensors": CONTENT} and len(asked) == 2
    assert storage.fetch("s3://data/m", tmp_path / "cache", sha256=sha256) == place and len(asked) == 2


@pytest.mark.parametrize("fault", ["another bit each time", "half of it", "a page of a proxy"])
@pytest.mark.parametrize("hashed", [True, False])
def test_what_always_arrives_damaged_is_never_kept_and_blames_the_way(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, hashed: bool
) -> None:
    put(s3, "m/model.safetensors")
    (tmp_path / "right").write_bytes(CONTENT)
    sha256 = {"model.safetensors": manifest.sha256_file(tmp_path / "right")} if hashed else {}
    with monkeypatch.context() as patch:
        damage(patch, FAULTS[fault])
        with pytest.raises(UserError, match=r"^s3://data/m/model\.safetensors: arrives damaged .* check the network"):
            storage.fetch("s3://data/m", tmp_path / "cache", sha256=sha256)
    assert files(tmp_path / "cache") == {}
    assert files(storage.fetch("s3://data/m", tmp_path / "cache", sha256=sha256)) == {"model.safetensors": CONTENT}


def test_a_flip_on_the_way_is_told_from_other_content_in_the_store(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, "m/x")
    (tmp_path / "right").write_bytes(CONTENT)
    sha256 = {"x": manifest.sha256_file(tmp_path / "right")}
    with monkeypatch.context() as patch:
        damage(patch, FAULTS["a flipped bit"])
        with pytest.raises(UserError, match=r"x: arrives damaged .* check the network"):
            storage.fetch("s3://data/m", tmp_path / "cache", sha256=sha256)
    put(s3, "m/x", body=flipped(CONTENT))
    with pytest.raises(UserError, match=r"x: is not what was written there .*; run the stage that made it again"):
        storage.fetch("s3://data/m", tmp_path / "cache", sha256=sha256)
    assert files(tmp_path / "cache") == {}


def test_an_etag_that_is_no_md5_is_no_damage(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, "m/x")
    monkeypatch.setattr("boto3.resources.collection.ResourceCollection.limit", lambda *_: [])
    call = BaseClient._make_api_call

    def encrypted(self: Any, operation: str, arguments: Any) -> Any:
        answer = call(self, operation, arguments)
        for found in answer.get("Contents", []):
            found["ETag"] = '"0123456789abcdef0123456789abcdef"'
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", encrypted)
    assert files(storage.fetch("s3://data/m", tmp_path)) == {"x": CONTENT}


@pytest.mark.parametrize("broken", [False, True])
def test_a_large_object_is_held_against_the_etag_of_its_parts(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    content = os.urandom(11 * 2**20)
    s3.upload_fileobj(io.BytesIO(content), "data", "m/large", Config=TransferConfig(multipart_chunksize=5 * 2**20))
    assert s3.head_object(Bucket="data", Key="m/large")["ETag"].endswith('-3"')
    if broken:
        damage(monkeypatch, lambda body, before: flipped(body) if before == 0 else body)
    asked = damage(monkeypatch, lambda body, before: body)
    assert files(storage.fetch("s3://data/m", tmp_path)) == {"large": content}
    assert len(asked) == (4 if broken else 2)  # boto3 reads it in two parts


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(flipped(CONTENT)),
        lambda file: file.write_bytes(CONTENT[:-1]),
        lambda file: file.unlink(),
        lambda file: (file.parent / "adapter_config.json").write_text("{}"),
        lambda file: file.unlink() or file.mkdir(),
    ],
    ids=["flipped", "short", "gone", "another file", "a folder"],
)
def test_a_copy_in_the_cache_that_has_changed_is_fetched_again(
    s3: Any, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    put(s3, "m/x", "m/y")
    place = storage.fetch("s3://data/m", tmp_path)
    spoil(place / "x")
    assert storage.fetch("s3://data/m", tmp_path) == place
    assert files(place) == {"x": CONTENT, "y": CONTENT}


def test_processes_that_fetch_one_prefix_at_once_all_get_it(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from moto import mock_aws
with mock_aws():
    import boto3
    boto3.client("s3").create_bucket(Bucket="data")
    for number in range(20):
        boto3.client("s3").put_object(Bucket="data", Key=f"m/{number}", Body=bytes([number]) * 1000)
    from rest_core import storage
    print("ready", flush=True)
    sys.stdin.readline()
    place = storage.fetch("s3://data/m", Path(sys.argv[1]))
    assert {int(path.name): path.read_bytes() for path in place.iterdir()} == {n: bytes([n]) * 1000 for n in range(20)}
"""
    environment = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    outputs = [process.communicate("go\n", timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
