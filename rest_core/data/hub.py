"""The Hugging Face hub: the form of its names, and its errors as ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that the installed version uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rest_core.data.published import Unreachable
from rest_core.errors import UserError

Kind = Literal["model", "dataset"]
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/name`."""
    return bool(_HUB_ID.fullmatch(name))


@contextmanager
def hub_errors(name: str, kind: Kind, revision: str | None = None) -> Iterator[None]:
    """Turn a refusal of the hub into a `UserError`, and a hub that is away into `Unreachable`."""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{name}: this {kind} asks for consent; accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: neither a path here nor a {kind} on the hub; check the spelling (and HF_TOKEN, if it is private)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: the hub has no revision {revision!r} of this {kind}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, ConnectionError, TimeoutError) as error:
        raise Unreachable(
            f"{name}: no such path here, and the hub cannot be reached; give a local path or check the network"
        ) from error
