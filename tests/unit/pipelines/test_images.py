"""The images' lock files against the developers' one, and the Dockerfile's targets against the components'."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from lock_images import PARENTS, lock_files, pinned, without_hashes
from packaging.utils import canonicalize_name

from components.images import TARGETS, image
from pipelines.platform import Images
from rest_core import __version__
from rest_core.operations.catalogue import STAGES

TOP = Path(__file__).resolve().parents[3]


def _held(name: str) -> dict[str, str]:
    """Everything that an image holds, from its lock file and those below it."""
    parent, torch = PARENTS[name], pinned("torch.txt") if name == "models" else {}
    return pinned(f"{name}.txt") | torch | (_held(parent) if parent else {})


@pytest.mark.parametrize("name", sorted(f"{name}.txt" for name in PARENTS))
def test_the_images_hold_what_the_lock_says(name: str) -> None:
    committed = without_hashes((TOP / "requirements" / name).read_text(encoding="utf-8"))
    assert committed == lock_files()[name], f"requirements/{name} is stale: run `make lock-images`"


HASHED = ("lock", "no-deps", "cuda", "sbom", *PARENTS)


def test_pip_can_check_everything_but_torch() -> None:
    """Each requirement has hashes, the same ones in every file; the files name no index and no place of one machine."""
    seen: dict[str, list[str]] = {}
    for name in HASHED:
        text = (TOP / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        assert "://" not in text and "file:" not in text
        blocks = re.sub(r" \\\n *", " ", text).splitlines()
        for words in (line.split() for line in blocks if "==" in line and line[0] not in "#-"):
            assert words[1:] and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in words[1:]), words[0]
            assert seen.setdefault(words[0], words[1:]) == words[1:], f"{name}: {words[0]}: run `make lock-images`"
    assert not any(one.startswith("torch==") for one in seen)


def test_what_installs_them_lets_pip_check_them() -> None:
    for name in ("Dockerfile", "Makefile", "deploy/sbom.Dockerfile"):
        text = (TOP / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in (line for line in text.splitlines() if "install" in line and ".txt" in line and "vllm" not in line):
            commands = [one for one in re.split(r"&&|\|\||;;", line) if " install " in one and ".txt" in one]
            assert commands and all("--require-hashes" in one or "torch.txt" in one for one in commands), line


def test_an_image_holds_nothing_that_its_stages_do_not_need() -> None:
    held = {name: set(_held(name)) for name in TARGETS}
    assert not held["base"] & {"torch", "datasets", "accelerate", "peft", "mlflow", "bfcl-eval"}
    assert not held["evaluate"] & {"peft", "kubeflow", "trl", "mlflow"}
    assert not held["train"] & {"bfcl-eval", "trl", "mlflow"}
    # transformers reads the embedded model, a GGUF file, with accelerate.
    assert held["train"] >= {"accelerate", "peft", "torch"} and held["evaluate"] >= {"accelerate", "bfcl-eval", "torch"}
    assert not any(name.startswith(("nvidia-", "cuda-")) for name in held["train"])
    assert {"triton", "nvidia-nccl-cu13"} <= set(pinned("cuda.txt"))


def test_every_stage_has_an_image_that_the_dockerfile_builds() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (TOP / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(TARGETS) <= set(stages)
    assert {stage.image for stage in STAGES} <= set(TARGETS)
    assert image("train") == f"rest-pipelines-train:{__version__}"


def test_what_runs_in_the_base_image_imports_only_what_that_holds() -> None:
    held = {canonicalize_name(name) for name in _held("base")} | {"rest-pipelines"}
    absent = sorted(
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & held
    )
    program = f"""
        import sys
        from importlib.machinery import PathFinder

        class Held(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name.partition(".")[0] in {set(absent)!r} else super().find_spec(name, path, target)

        sys.meta_path = [Held if finder is PathFinder else finder for finder in sys.meta_path]
        from components.aggregate.component import aggregate
        from components.compare_and_register.component import compare_and_register
        from components.report_status.component import report_status
        from components.runtime import run_component
        from rest_core import logs, stages
        from pipelines import cli
        from rest_core.ablation import ablation_report, collect, settings
        from rest_core.operations.handoff import is_base_model
        from rest_core.operations.pods import delete_train_jobs
        from rest_core.operations.status import exit_task
        from rest_core.operations.tracking import card, delivery, registry, store
        logs.configure(sys.stdout)
        store.open_client("sqlite:///:memory:")
        from transformers import AutoConfig, AutoTokenizer
    """
    assert {"torch", "datasets", "sklearn"} <= set(absent)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_push_without_a_digest_fails(tmp_path: Path) -> None:
    """An engine that does not say what it pushed; of Docker Hub's images it leaves the host's name out."""
    program = tmp_path / "docker"
    program.write_text(
        '#!/bin/sh\nif [ "$2" = inspect ]; then case "$5" in\n'
        '  *RepoDigests*) test -z "$DIGEST" || { image=${3#docker.io/}; echo "${image%%:*}@$DIGEST"; } ;;\n'
        "  *) echo abc cpu ;;\nesac; fi\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "push", "REGISTRY=docker.io/team", f"PUSHED={tmp_path}/images.yaml"]
    for digest in ("", "sha256:" + "a" * 64):
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, env={**environment, "DIGEST": digest})
        assert done.returncode == (0 if digest else 2), done.stderr
    written = yaml.safe_load((tmp_path / "images.yaml").read_text(encoding="utf-8"))
    assert Images.model_validate(written["images"]).train == f"docker.io/team/rest-pipelines-train@{digest}"


def test_a_push_asks_for_its_registry() -> None:
    done = subprocess.run(["make", "push"], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "make push REGISTRY=" in done.stderr
