"""What the code imports against what pyproject.toml declares, and what happens where an optional package is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from lock_images import pinned
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipelines import cli
from rest_core.config import LoraConfig
from rest_core.data import bfcl_wheel
from rest_core.errors import UserError
from rest_core.evaluation.bfcl import memory
from rest_core.model import embedded
from rest_core.model.loading import with_lora
from rest_core.operations.launch import trainer

TOP = Path(__file__).resolve().parents[2]
OURS = ("rest_core", "components", "pipelines")
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines if not line.startswith(PROJECT["name"])]
    for name, lines in PROJECT["optional-dependencies"].items()
}
# Modules in a namespace that several packages share.
SHARED = {"google.protobuf": "protobuf", "kfp.kubernetes": "kfp-kubernetes"}
# Needed without an import: transformers reads the embedded model with gguf.
NOT_IMPORTED = {"gguf"}
# The modules that only an extra installs.
OPTIONAL = ["docker", "kfp.kubernetes", "kubeflow", "peft", "trl", "vllm"]

# What is used of other packages beyond their documented interface: names with an underscore, and internal modules.
PRIVATE = {
    "accelerate": {
        *("_validate_launch_command", "_shared_state"),
        *("accelerate.commands.launch", "accelerate.utils.fsdp_utils", "accelerate.utils.launch"),
    },
    "kfp": {
        *("_context_setting", "_existing_config", "_healthz_api", "_load_config", "_load_context_setting_or_default"),
        *("_IN_CLUSTER_DNS_NAME", "_LOCAL_KFP_CONTEXT"),
        "kfp.dsl.graph_component",
    },
    "kubeflow": {"kubeflow.trainer.backends.kubernetes.backend"},
    "mlflow": {
        *("_get_latest_schema_revision", "_get_registry_client", "mlflow.prompt.constants", "mlflow.store.db.utils"),
        *("mlflow.store.tracking.sqlalchemy_store", "mlflow.tracing.client", "mlflow.tracing.constant"),
        *("mlflow.utils.credentials", "mlflow.utils.request_utils", "mlflow.utils.rest_utils"),
    },
    "torch": {"_dynamo", "_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight"},
    "transformers": {
        *("_attn_implementation", "_can_set_attn_implementation", "_no_split_modules"),
        *("transformers.core_model_loading", "transformers.integrations.sdpa_attention"),
        *("transformers.masking_utils", "transformers.models.auto.modeling_auto"),
    },
    "trl": {
        *("_compute_loss", "_generate_and_score_completions", "_get_per_token_logps_and_entropies"),
        *("_get_output_dir", "_is_vlm", "_load_optimizer_and_scheduler", "_save_checkpoint"),
    },
    "vllm": {"vllm.distributed.weight_transfer.base", "vllm.distributed.weight_transfer.nccl_engine"},
}


@cache
def _trees() -> list[ast.Module]:
    return [ast.parse(path.read_bytes()) for top in OURS for path in sorted((TOP / top).rglob("*.py"))]


def _imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, anywhere in a file, and for `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _packages() -> dict[str, set[str]]:
    """The packages from elsewhere that are imported, each with the packages that may provide it."""
    providers = importlib.metadata.packages_distributions()
    found: dict[str, set[str]] = {}
    for name in {name for tree in _trees() for name in _imported(tree)}:
        top = name.partition(".")[0]
        shared = next((owner for prefix, owner in SHARED.items() if f"{name}.".startswith(f"{prefix}.")), None)
        if shared is None and top not in sys.stdlib_module_names and top not in (*OURS, "_typeshed", "google"):
            found[top] = {canonicalize_name(owner) for owner in providers.get(top, [top])} - set(SHARED.values())
        elif shared is not None:
            found[shared] = {shared}
    return found


def test_every_import_is_declared_and_what_is_declared_is_imported() -> None:
    extras = [one for name, lines in EXTRAS.items() if name != "dev" for one in lines]
    declared = {canonicalize_name(one.name) for one in (*CORE, *extras)}
    without_dependencies = set(pinned("no-deps.txt"))
    imported = _packages()
    undeclared = {name for name, owners in imported.items() if not owners & (declared | without_dependencies)}
    assert not undeclared, f"imported, but not in pyproject.toml: {sorted(undeclared)}"
    assert declared - NOT_IMPORTED == {owner for owners in imported.values() for owner in owners} & declared


def _private_names(trees: list[ast.Module]) -> set[str]:
    """Names with an underscore that are used of other packages' objects: read, set or overridden, and not our own."""
    own, used, standard_library = set(), set(), {"_exit", "_replace"}
    bfcl_eval = {"_dump_core_memory_to_context", "_flush_memory_to_local_file"}  # is installed in one version alone
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                own.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                own.add(name)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
                used.add(f"super.{name}")  # also where a method of ours has this name
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.ImportFrom(names=aliases):
                used.update(alias.name for alias in aliases)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                used.add(name)
    names = {name.removeprefix("super.") for name in used - own - standard_library - bfcl_eval}
    return {name for name in names if re.match("_[a-zA-Z]", name) and name != "_typeshed"}


def test_each_private_use_is_named() -> None:
    trees = _trees()
    named = {name for names in PRIVATE.values() for name in names}
    assert {name for name in named if name.startswith("_")} == _private_names(trees)
    assert {name for name in named if "." in name} <= {name for tree in trees for name in _imported(tree)}


@pytest.mark.parametrize("package", sorted(PRIVATE))
def test_a_package_of_which_private_parts_are_used_is_capped(package: str) -> None:
    (declared,) = [one for one in (*CORE, *(one for lines in EXTRAS.values() for one in lines)) if one.name == package]
    versions = [Version(f"{major}.{minor}") for major in range(10) for minor in range(100)]
    newest = max(version for version in versions if version in declared.specifier)
    tested = pinned("lock.txt", "torch.txt").get(
        package, next(str(one) for one in declared.specifier if one.operator == ">=")
    )
    assert tested.partition("==")[2].startswith(f"{newest}.") or tested == f">={newest}", f"{declared} allows {newest}"


def test_the_lock_has_the_versions_that_the_project_asks_for() -> None:
    locked = {name: line.partition("==")[2] for name, line in pinned("lock.txt", "torch.txt").items()}
    for wanted in (*CORE, *(one for name, lines in EXTRAS.items() if name != "vllm" for one in lines)):
        version = locked.get(canonicalize_name(wanted.name))
        assert version is not None and version in wanted.specifier, f"{wanted}: locked {version}; run `make lock`"


def test_the_error_messages_name_the_versions_that_setup_installs() -> None:
    assert {bfcl_wheel.REQUIREMENT, embedded.REQUIREMENT, *memory.REQUIREMENTS.values()} == set(
        pinned("no-deps.txt").values()
    )


def test_the_local_pipeline_needs_no_extra() -> None:
    program = """
        import sys
        from importlib.machinery import PathFinder

        class Core(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name in OPTIONAL else super().find_spec(name, path, target)

        sys.meta_path = [Core if finder is PathFinder else finder for finder in sys.meta_path]
        from pipelines import cli, local, local_ablation, rest_pipeline
        from rest_core import config, stages
        from rest_core.training import rl, sft
        rest_pipeline.build(config.load("quickstart"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program).replace("OPTIONAL", str(OPTIONAL))],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["compile --output rest.yaml", "submit --dry-run", "run --runner docker"])
def test_a_command_names_the_extra_that_is_missing(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pipelines.placement", "pipelines.nodes", "pipelines.containers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as exit_:
        cli.main(command.split())
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1
    assert error.endswith("install it with: pip install 'rest-pipelines[cluster]'\n")


def test_a_stage_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"the package peft .* pip install 'rest-pipelines\[lora\]'"):
        with_lora(None, LoraConfig())
    monkeypatch.setitem(sys.modules, "kubeflow.common.types", None)
    with pytest.raises(UserError, match=r"the package kubeflow.* pip install 'rest-pipelines\[nodes\]'"):
        trainer.connect(None)
