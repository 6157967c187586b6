"""Secrets, volumes and buckets: present, missing and broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from moto.core import set_initial_no_auth_action_count

from rest_core import storage
from rest_core.errors import UserError
from rest_core.operations.preflight import cluster, locations
from rest_core.operations.preflight.surroundings import Secret


@pytest.fixture
def s3(empty_s3: Any) -> Any:
    empty_s3.create_bucket(Bucket="bucket")
    return empty_s3


def test_all_variables_of_a_secret_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Secret(name="keys", variables=("ONE", "TWO", "THREE"))
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", " ")
    monkeypatch.delenv("THREE", raising=False)
    with pytest.raises(UserError, match=r"^TWO, THREE missing or empty; make the Secret keys"):
        cluster.check_secret(secret)
    monkeypatch.setenv("TWO", "hush")
    monkeypatch.setenv("THREE", "hush")
    assert "hush" not in cluster.check_secret(secret)


def test_a_bucket_is_written_read_and_left_as_it_was(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="runs/mine", Body=b"mine")
    assert "s3://bucket/runs/" in locations.check("s3://bucket/runs/")
    assert [found["Key"] for found in s3.list_objects_v2(Bucket="bucket")["Contents"]] == ["runs/mine"]


def test_a_bucket_that_is_not_there(s3: Any) -> None:
    with pytest.raises(UserError, match="no such bucket"):
        locations.check("s3://another/runs")


def test_a_bucket_that_these_credentials_do_not_open(s3: Any) -> None:
    checked = set_initial_no_auth_action_count(0)(locations.check)
    with pytest.raises(UserError, match=r"s3://bucket/runs.*access denied"):
        checked("s3://bucket/runs")


def test_a_bucket_that_gives_back_something_else(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in front of the store that has an answer of its own; the object is deleted all the same."""

    def other(location: str, target: Path) -> None:
        target.write_text("other", encoding="utf-8")

    monkeypatch.setattr(storage, "get_file", other)
    with pytest.raises(UserError, match="not what was read back"):
        locations.check("s3://bucket/runs")
    assert "Contents" not in s3.list_objects_v2(Bucket="bucket")


def test_a_volume_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert "GiB free" in locations.check(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_made_later_is_a_place_on_its_volume(tmp_path: Path) -> None:
    locations.check(str(tmp_path / "runs"))
    assert not list(tmp_path.iterdir())


def test_a_volume_that_is_not_mounted() -> None:
    with pytest.raises(UserError, match=r"/no-such-volume/runs: there is no such folder; mount the volume"):
        locations.check("/no-such-volume/runs")


def test_a_volume_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match="no permission"):
        locations.check("/sys")
