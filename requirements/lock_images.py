"""Write the lock files of the container images: `make lock-images`.

pyproject.toml's dependency groups `image-…` name what an image is for. What those packages need besides is read from
the metadata of the environment that requirements/lock.txt was installed into; every version is that file's. A file
begins with `-r` of the one below it and lists only what it adds, as the images' layers do.

cuda.txt is the exception: the libraries that PyPI's build of torch needs on a machine with GPUs, which no CPU
environment has, as pip resolves them; and sbom.txt, the program that lists what an image holds.

Every file names the hashes of all that PyPI has of a version, and pip installs nothing else. torch has a file of its
own, without: which build of it comes is the index's choice.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent / "pyproject.toml"
# Group of pyproject.toml → the group that its image is built upon.
PARENTS = {"build": None, "base": None, "models": "base", "train": "models", "evaluate": "models"}
_INDEX = "https://pypi.org/simple"
_CONTINUED, _HASH = " \\", "    --hash="
_HEADER = "# Exact versions for the container images, made by `make lock-images`; do not edit.\n"
_CUDA_HEADER = (
    _HEADER + "# What PyPI's build of torch needs for GPUs; goes with models.txt into images of ACCELERATOR=cuda.\n"
)


def pinned(*names: str) -> dict[str, str]:
    """What lock files pin, `name==version`, by canonical name."""
    texts = [without_hashes((HERE / name).read_text(encoding="utf-8")) for name in names]
    lines = [line for text in texts for line in text.splitlines()]
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if "==" in line and line[0] not in "#-"}


def without_hashes(text: str) -> str:
    """A lock file's text, without the hashes."""
    return "".join(f"{line.removesuffix(_CONTINUED)}\n" for line in text.splitlines() if not line.startswith(_HASH))


def hashes(*requirements: str) -> dict[str, list[str]]:
    """The hashes of everything that PyPI has of each `name==version`."""
    made = _uv("--no-deps", *requirements)
    found: dict[str, list[str]] = {}
    for line in made.splitlines():
        if line.startswith(_HASH):
            list(found.values())[-1].append(line.removesuffix(_CONTINUED))
        else:
            found[line.removesuffix(_CONTINUED)] = []
    return found


def _uv(*arguments: str) -> str:
    """What `uv pip compile` makes of requirements, with hashes; no settings of this machine, as in `cuda_libraries`."""
    options = [one for one in arguments if one.startswith("-")]
    asked = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--generate-hashes", "--no-header"]
    asked += ["--no-annotate", "--default-index", _INDEX, *options, "-"]
    wanted = "\n".join(one for one in arguments if not one.startswith("-"))
    return subprocess.run(asked, input=wanted, stdout=subprocess.PIPE, text=True, check=True).stdout


def add_hashes(*names: str) -> None:
    """Write the hashes of what lock files pin into them."""
    texts = {name: without_hashes((HERE / name).read_text(encoding="utf-8")) for name in names}
    made = hashes(*pinned(*names).values())
    found = {canonicalize_name(one.partition("==")[0]): lines for one, lines in made.items()}
    for name, text in texts.items():
        lines = []
        for line in text.splitlines():
            known = found[canonicalize_name(line.partition("==")[0])] if "==" in line and line[0] not in "#-" else []
            lines.append(f"{_CONTINUED}\n".join([line, *known]))
        (HERE / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def groups() -> dict[str, list[str]]:
    """The packages of each image that pyproject.toml names, included groups left out."""
    declared: dict[str, list[Any]] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["dependency-groups"]
    return {
        name: [canonicalize_name(entry) for entry in declared[f"image-{name}"] if isinstance(entry, str)]
        for name in PARENTS
    }


def closure(names: Iterable[str], *, alone: Iterable[str], left_out: Iterable[str]) -> set[str]:
    """`names` and everything that they need on this platform, by the installed packages' metadata.

    Args:
        names: canonical names.
        alone: packages that are installed without what they ask for.
        left_out: packages that are locked elsewhere.

    Raises:
        importlib.metadata.PackageNotFoundError: a package is not installed.
    """
    wanted = [(name, "") for name in names]
    seen: set[tuple[str, str]] = set()
    while wanted:
        name, extra = wanted.pop()
        if (name, extra) in seen or name in left_out:
            continue
        seen.add((name, extra))
        if name in alone:
            continue
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted += [(canonicalize_name(needed.name), extra) for extra in ("", *needed.extras)]
    return {name for name, _ in seen}


def lock_files() -> dict[str, str]:
    """The text of every image's lock file without the hashes, by the file's name."""
    alone = pinned("no-deps.txt")
    versions = pinned("lock.txt") | alone
    torch = pinned("torch.txt")
    needed: dict[str, set[str]] = {}
    files = {}
    for name, direct in groups().items():
        parent = PARENTS[name]
        needed[name] = closure(direct, alone=alone, left_out=pinned("cuda.txt"))
        if parent is not None:
            needed[name] |= needed[parent]
        added = (needed[name] - needed[parent] if parent is not None else needed[name]) - torch.keys()
        if missing := added - versions.keys():
            raise SystemExit(f"{', '.join(sorted(missing))}: not in requirements/lock.txt; run `make lock` first")
        files[f"{name}.txt"] = _text(_HEADER, versions, added, parent)
    return files


def _text(header: str, versions: Mapping[str, str], names: Iterable[str], parent: str | None = None) -> str:
    lines = [versions[name] for name in sorted(names)]
    return header + (f"-r {parent}.txt\n" if parent else "") + "".join(f"{line}\n" for line in lines)


def cuda_libraries() -> str:
    """The text of cuda.txt: what pip would install beside PyPI's torch that lock.txt does not have."""
    locked = pinned("lock.txt", "torch.txt")
    # No settings of this machine: a local wheel or another index may hold a build for CPUs.
    asked = [sys.executable, "-m", "pip", "--isolated", "install", "--dry-run", "--ignore-installed", "--quiet"]
    index = ["--index-url", _INDEX]
    done = subprocess.run(
        [*asked, *index, "--report", "-", locked["torch"]], stdout=subprocess.PIPE, text=True, check=True
    )
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    versions = {canonicalize_name(item["name"]): f"{item['name']}=={item['version']}" for item in found}
    return _text(_CUDA_HEADER, versions, versions.keys() - locked.keys())


def main() -> None:
    """Write every file; cuda.txt first, for the others leave out what it has."""
    (HERE / "cuda.txt").write_text(cuda_libraries(), encoding="utf-8")
    made = lock_files()
    for name, text in made.items():
        (HERE / name).write_text(text, encoding="utf-8")
    add_hashes("lock.txt", "no-deps.txt", "cuda.txt", *made)
    (HERE / "sbom.txt").write_text(_HEADER + _uv("cyclonedx-bom"), encoding="utf-8")


if __name__ == "__main__":
    main()
