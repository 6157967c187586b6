"""Downloads against a real HTTP server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from rest_core.data import published
from rest_core.data.published import Unreachable, fetch, git_blob_id
from rest_core.errors import UserError

CONTENT = {"dataset/a.json": b"[1]", "dataset/b.json": b"[2]"}


class _Quiet(SimpleHTTPRequestHandler):
    served: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.served.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the test's output is no access log."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that is served as the repository at the pinned commit."""
    root = tmp_path / "www"
    repository = root / published.REPOSITORY / published.COMMIT
    for name, content in CONTENT.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(content)
    _Quiet.served = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(published, "RAW_URL", f"http://127.0.0.1:{server.server_port}")
    files = {f"set/{name[-6:]}": (name, git_blob_id(content)) for name, content in CONTENT.items()}
    monkeypatch.setattr(published, "FILES", files)
    yield repository
    server.shutdown()
    server.server_close()


def test_blob_id_is_gits_own():
    assert git_blob_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git hash-object /dev/null
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_public_files_beside_the_checkout_have_the_pinned_ids(toolrl_folder: Path, api_bank_folder: Path):
    pairs = {
        "toolrl/rlla_sft.json": toolrl_folder / "rlla_sft.json",
        "toolrl/rlla_4k/test.parquet": toolrl_folder / "rlla_test.parquet",
        **{f"api-bank/{path.name}": path for path in api_bank_folder.glob("level-*.json")},
    }
    assert len(pairs) == 5
    for name, path in pairs.items():
        assert published.FILES[name][1] == git_blob_id(path.read_bytes())


def test_a_file_is_downloaded_once(served: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    for _ in range(2):
        assert fetch("published:set/a.json", cache=cache) == cache / "set/a.json"
    assert (cache / "set/a.json").read_bytes() == b"[1]"
    assert len(_Quiet.served) == 1


def test_a_name_of_several_files_gives_their_folder(served: Path, tmp_path: Path):
    folder = fetch("published:set", cache=tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]


def test_a_damaged_copy_is_replaced(served: Path, tmp_path: Path):
    path = fetch("published:set/a.json", cache=tmp_path / "cache")
    path.write_bytes(b"[1")
    assert fetch("published:set/a.json", cache=tmp_path / "cache").read_bytes() == b"[1]"


def test_another_content_is_refused_by_name(served: Path, tmp_path: Path):
    (served / "dataset/a.json").write_bytes(b"<html>log in first</html>")
    with pytest.raises(UserError, match=r"dataset/a\.json: not the published dataset/a\.json") as caught:
        fetch("published:set/a.json", cache=tmp_path / "cache")
    assert not isinstance(caught.value, Unreachable)
    assert not (tmp_path / "cache").exists()


def test_a_server_that_is_away_can_be_told_apart(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (served / "dataset/a.json").unlink()
    with pytest.raises(Unreachable, match="404"):
        fetch("published:set/a.json", cache=tmp_path / "cache")
    monkeypatch.setattr(published, "RAW_URL", "http://127.0.0.1:9")
    with pytest.raises(Unreachable, match="cannot be downloaded"):
        fetch("published:set/b.json", cache=tmp_path / "cache")


def test_an_unknown_name_gets_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'api-bank'"):
        fetch("published:apibank", cache=tmp_path)
    with pytest.raises(UserError, match="nothing is published"):
        fetch("published:", cache=tmp_path)
