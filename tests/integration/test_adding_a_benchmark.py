"""docs/developing.md's example of a new benchmark, followed to the letter in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOP = Path(__file__).resolve().parents[2]
_CHANGE = re.compile(
    r"^`(?P<file>\S+\.py)`, (?:new|before `(?P<before>.+?)`):\n\n```python\n(?P<code>.*?)```$", re.MULTILINE | re.DOTALL
)


def test_a_benchmark_is_an_entry_a_function_and_a_section(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    for name in ("rest_core", "components", "pipelines", "configs"):
        shutil.copytree(TOP / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    changes = list(_CHANGE.finditer((TOP / "docs" / "developing.md").read_text(encoding="utf-8")))
    assert len(changes) == 6
    for change in changes:
        file = copy / change["file"]
        if change["before"] is None:
            file.write_text(change["code"], encoding="utf-8")
            continue
        text, before = file.read_text(encoding="utf-8"), change["before"].replace("\\n", "\n")
        place = text.index(before)
        gap = "\n\n" if change["code"].startswith(("class ", "def ")) else ""
        file.write_text(text[:place] + change["code"] + gap + text[place:], encoding="utf-8")

    environment = os.environ | {"PYTHONPATH": str(copy), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def python(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    python("components.generate")
    settings = ("api_bank.enabled=false", "bfcl.enabled=false", "gate.metric=one_call/accuracy")
    options = [option for setting in settings for option in ("--set", setting)]
    python("pipelines.cli", "run", "--profile", "tiny", "--output", str(tmp_path / "run"), *options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    stages = {stage["name"]: stage for stage in summary["stages"]}
    for policy in ("base", "warmup", "trained"):
        assert stages[f"evaluate-one-call-{policy}"]["status"] == "done"
        assert 0 <= stages[f"evaluate-one-call-{policy}"]["metrics"]["one_call/accuracy"] <= 1
    assert stages["compare-policies"]["status"] == "done"
    assert stages["compare-and-register"]["metrics"]["registry/version"] == 1
