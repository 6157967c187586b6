"""Imports go down only, and never in a circle: pipelines → components → rest_core, and there stages → the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("rest_core", "components", "pipelines")
    for path in (TOP / package).rglob("*.py")
}
METHOD = (
    "algorithm",
    "response",
    "records",
    "data",
    "model",
    "rollout",
    "training",
    "environments",
    "evaluation",
    "styles",
    "ablation",
    "adapters",
)


def imported(module: str) -> Iterator[str]:
    """Modules of the project that a module imports, those inside of its functions too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found = name if name in MODULES else name.rpartition(".")[0]
            if found in MODULES and found != module:
                yield found


IMPORTS = {module: set(imported(module)) for module in MODULES}


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' → '.join(error.args[1])}")


def _forbidden(modules: str, imports: tuple[str, ...]) -> list[str]:
    return [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        if f"{module}.".startswith(f"{modules}.")
        for other in others
        if f"{other}.".startswith(tuple(f"{name}." for name in imports))
    ]


@pytest.mark.parametrize(
    ("modules", "imports"),
    [
        ("rest_core", ("components", "pipelines")),
        ("components", ("pipelines",)),
        ("rest_core.operations", ("rest_core.stages",)),
        *((f"rest_core.{part}", ("rest_core.operations", "rest_core.stages")) for part in METHOD),
        *(
            (f"rest_core.{part}", ("rest_core.operations", "rest_core.storage"))
            for part in ("config", "errors", "disk")
        ),
    ],
)
def test_imports_go_down_only(modules: str, imports: tuple[str, ...]) -> None:
    assert _forbidden(modules, imports) == []


def test_every_test_file_has_a_name_of_its_own() -> None:
    names = [path.name for path in (TOP / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))  # pytest imports them by it
