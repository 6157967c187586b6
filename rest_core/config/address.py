"""Addresses in the configuration: they stand in records, on command lines and in a cluster's database."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from rest_core.credentials import has_credentials

SECRET = "secret"
"""Type of pydantic's errors whose value no message shows."""


def _open(address: str) -> str:
    if has_credentials(address):
        raise PydanticCustomError(
            SECRET,
            "holds a password or another secret, which would be shown wherever the address is; leave it out, and give "
            "it in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, VLLM_API_KEY)",
        )
    return address


def _has_a_scheme(address: str) -> str:
    if "@" in address and "://" not in address:
        raise PydanticCustomError(SECRET, "is not an address; write it as http://HOST:PORT")
    return address


Address = Annotated[str, AfterValidator(_open)]
"""A path, hub id, s3:// URI or URL without credentials."""
ServerAddress = Annotated[str, AfterValidator(_has_a_scheme)]
"""One that may hold credentials, which are found behind `://`."""
