"""Two processes with one output folder: the second is refused at once, and the first is not disturbed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rest_core.config import LaunchConfig, ModelConfig, RlConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.stages import rest_rl
from rest_core.stages.stage import open_stage

STAGE = """
import sys, time
from pathlib import Path
from rest_core.config import TrackingConfig
from rest_core.stages.stage import open_stage
out = Path(sys.argv[1])
with open_stage("rest-rl", out, TrackingConfig(), "run", off=True) as stage:
    (out / "metrics.json").write_text("{}")
    print("runs", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """The output folder of a stage that runs in another process, and is killed after the test."""
    folder = tmp_path / "runs" / "rl"
    process = subprocess.Popen([sys.executable, "-c", STAGE, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "runs\n"
        yield folder
    finally:
        process.kill()
        process.wait(timeout=60)
        assert process.stdout is not None
        process.stdout.close()
    with open_stage("rest-rl", folder, TrackingConfig(), "run", off=True):  # nothing stale is left
        pass


def _beside(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.parent.rglob("*") if path.is_file()}


@pytest.mark.parametrize("launch", [LaunchConfig(), LaunchConfig(processes=2)], ids=["one process", "two processes"])
def test_a_second_training_is_refused_and_changes_nothing(out: Path, launch: LaunchConfig) -> None:
    before = _beside(out)
    with pytest.raises(UserError, match=rf"^{out}: another process writes it; wait .*, or choose another --out$"):
        rest_rl(
            model=ModelConfig(),
            rl=RlConfig(),
            tracking=TrackingConfig(uri=f"sqlite:///{out.parent}/never/mlflow.db"),
            pipeline_run="run",
            dataset=out.parent / "dataset",
            policy="owner/name",
            out=out,
            launch=launch,
        )
    assert _beside(out) == before


def test_another_folder_beside_it_is_free(out: Path) -> None:
    with open_stage("rest-rl", out.with_name("rl2"), TrackingConfig(), "run", off=True):
        pass
