from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rest_core.errors import UserError
from rest_core.operations import handoff, policies


def test_references_are_followed(tmp_path: Path) -> None:
    policies.point_to(tmp_path / "one", "owner/name")
    policies.point_to(tmp_path / "two", str(tmp_path / "one"))
    assert handoff.is_base_model(tmp_path / "two")
    assert policies.fetched(tmp_path / "two") == "owner/name" == policies.fetched("owner/name")


@pytest.mark.parametrize("content", ["", "[]", "{}", '"x"'])
def test_a_damaged_reference_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "reference.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path / 'reference.json'}: not a reference"):
        policies.fetched(tmp_path)


def test_a_policy_is_passed_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    for name in ("manifest.json", "metrics.json"):
        (source / name).write_text("{}")
    policies.pass_on(source, tmp_path / "copied")
    assert policies.fetched(tmp_path / "copied") == tmp_path / "copied"
    assert (tmp_path / "copied" / "model.safetensors").is_file()
    assert not (tmp_path / "copied" / "manifest.json").exists()
    assert not (tmp_path / "copied" / "metrics.json").exists()
    policies.pass_on("owner/name", tmp_path / "referred")
    policies.pass_on(tmp_path / "referred", tmp_path / "again")
    assert policies.fetched(tmp_path / "again") == "owner/name"
