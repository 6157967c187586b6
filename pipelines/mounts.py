"""What of this machine the containers of a local run see, and whether their user may use it.

Nothing that is there is changed: a folder that is missing is made, one whose rights do not fit is refused.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from docker.types import Mount

from rest_core import storage
from rest_core.config import Config
from rest_core.disk import disk_errors
from rest_core.errors import UserError
from rest_core.operations.tracking import store

# A container has the user that starts it, so that the files are that user's; in place of root it has what OpenShift
# gives a pod: a user whom the image does not know, in group 0.
_USER, _GROUP = 54321, 0
INSTEAD_OF_ROOT = f"{_USER}:{_GROUP}"


@dataclass(frozen=True)
class Needed:
    """A file or folder that containers see at its own path."""

    path: Path  # absolute
    setting: str  # that names it
    written: bool  # else it is read, and there already

    @property
    def mount(self) -> Mount:
        """It as Docker takes it."""
        return Mount(str(self.path), str(self.path), type="bind", read_only=not self.written)


def needed(config: Config) -> list[Needed]:
    """What a run reads and writes besides its own folder, by path; folders to write to are made where they are missing.

    Raises:
        UserError: one holds the user's home folder, or cannot be made; or root runs it, and its rights do not fit.
    """
    places = [
        Needed(storage.cache_folder(), "XDG_CACHE_HOME", written=True),
        Needed(hub_cache(), "HF_HOME", written=True),
        *_records(config),
        *(
            Needed(Path(place).expanduser().absolute(), setting, written=True)
            for setting, place in config.outputs()
            if "://" not in place
        ),
    ]
    written = {one.path for one in places}
    places += [
        Needed(path, setting, written=False)
        for setting, location in config.inputs()
        if (path := _on_this_machine(location)) is not None and path not in written
    ]
    found = sorted({one.path: one for one in places}.values(), key=lambda one: one.path)
    for one in found:
        _refuse_home(one)
    for one in found:
        if one.written:
            _make(one)
    if os.getuid() == 0:
        refuse_unusable(found)
    return found


def refuse_unusable(places: list[Needed]) -> None:
    """Raise `UserError`, which names the first such path, where `INSTEAD_OF_ROOT` may not use a place as root does."""
    wrong = {one: path for one in places if (path := _unusable(one)) is not None}
    if not wrong:
        return
    first, path = next(iter(wrong.items()))
    commands = []
    for written, rights in ((True, "g=u"), (False, "g+rX")):
        if names := " ".join(shlex.quote(str(one.path)) for one in wrong if one.written == written):
            commands.append(f"chgrp -R {_GROUP} {names} && chmod -R {rights} {names}")
    raise UserError(
        f"{path}: root alone may {'write' if first.written else 'read'} it ({first.setting}), and in place of root "
        f"containers run as user {_USER} in group {_GROUP}; set other places, or let that group use them: "
        f"{' && '.join(commands)}"
    )


def share_new_files() -> None:
    """Where root runs this process, let the group of whatever it makes from now on do what the owner may."""
    if os.getuid() == 0:
        os.umask(os.umask(0) & ~stat.S_IRWXG)


def hub_cache() -> Path:
    """The folder of Hugging Face's downloads; its parent, which has the user's token, is not shared."""
    home = os.environ.get("HF_HOME") or storage.cache_folder().with_name("huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser().absolute()


def _records(config: Config) -> Iterator[Needed]:
    """MLflow's store where it is on this machine: SQLite writes beside its file, and artifacts lie there too."""
    uri = store.resolve_uri(config.tracking)
    database = store.sqlite_file(uri)
    if (folder := database.parent if database is not None else store.local_path(uri)) is not None:
        yield Needed(folder.absolute(), "tracking.uri", written=True)


def _on_this_machine(location: str) -> Path | None:
    """The file or folder that a location is or, for a pattern, is below; None for names, hub ids and URIs."""
    path = Path(location).expanduser()
    if not path.exists():
        path = Path(*takewhile(lambda part: not set(part) & set("*?["), path.parts))
    return path.absolute() if path.exists() else None


def _refuse_home(one: Needed) -> None:
    """A container gets no more than it needs: not the home folder, nor one that holds it, such as `/`."""
    if Path.home().resolve().is_relative_to(one.path.resolve()):
        raise UserError(
            f"{one.setting}: containers would get all of {one.path}; put it into a folder of its own below that one"
        )


def _make(one: Needed) -> None:
    with disk_errors(one.path):
        try:
            one.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{one.setting}: {error.filename} is a file, not a folder; choose another place") from None


def _unusable(one: Needed) -> Path | None:
    """The first path of a place that `INSTEAD_OF_ROOT` may not use; what links lead to is no part of the place."""
    for path in (one.path, *_below(one.path)):
        found = path.stat() if path == one.path else path.lstat()
        folder = stat.S_ISDIR(found.st_mode)
        if not folder and not stat.S_ISREG(found.st_mode):
            continue
        owner = found.st_mode >> 6 & 0o7
        wanted = (0o7 if folder else owner) if one.written else (0o5 if folder else 0o4)
        given = found.st_mode >> (6 if found.st_uid == _USER else 3 if found.st_gid == _GROUP else 0)
        if given & wanted != wanted:
            return path
    return None


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))
