"""What is there under a name: a run, a schedule."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TypeVar

from rest_core.errors import UserError, nearest

T = TypeVar("T")


def find(
    name: str,
    *,
    kind: str,
    listed_by: str,
    get: Callable[[str], T],
    named: Callable[[str], list[T]],
    latest: Callable[[], list[T]],
    id_of: Callable[[T], str],
    name_of: Callable[[T], str | None],
) -> T:
    """The one with the id, or else the display name, `name`.

    Args:
        name: what a user has given.
        kind: what it is: "run".
        listed_by: the command that shows what there is.
        get: reads the one of an id, whole.
        named: lists those of a name, the newest first.
        latest: lists what else may have been meant.
        id_of, name_of: of one of these.

    Raises:
        UserError: there is none, or several have the name.
    """
    if _is_id(name):
        return get(name)
    found = named(name)
    if not found:
        known = [other for item in latest() if (other := name_of(item))]
        raise UserError(f"no {kind} is named {name!r}{nearest(name, known)}; `{listed_by}` shows what there is")
    if len(found) > 1:
        ids = ", ".join(id_of(item) for item in found)
        raise UserError(f"{len(found)} {kind}s are named {name!r}: give the id of one, newest first: {ids}")
    return get(id_of(found[0]))


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
