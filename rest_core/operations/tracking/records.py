"""What a line of a journal may be.

A spool may come from another machine, or be damaged: what is read from it is held against these models first, so that
whoever sends it meets no other types, no number that a store cannot keep, and no path that leads elsewhere.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

Record = dict[str, Any]
Target = Literal["run", "pipeline"]  # the stage's own run, or its parent

MAX_LINE = 2**24
"""Bytes of a line; a longer one is no record."""
_MAX_TIME = 10**14  # milliseconds since 1970: the year 5138
_MAX_STEP = 2**53


def _without_null(text: str) -> str:
    return text.replace("\x00", "\ufffd")  # PostgreSQL refuses it


def _inside(folder: str) -> str:
    """A path below where it is used: relative, and never upwards."""
    parts = folder.split("/") if folder else []
    if any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise ValueError("it leads out of its folder")
    return folder


def _kept(file: str) -> str:
    """A file below a journal's `files/`, as `Journal.keep` names it: in a folder of its own."""
    if len(PurePosixPath(_inside(file)).parts) != 2:
        raise ValueError("it is no file of the journal")
    return file


Text = Annotated[str, AfterValidator(_without_null)]
Folder = Annotated[Text, AfterValidator(_inside)]
Kept = Annotated[Text, AfterValidator(_kept)]
Number = Annotated[float, Field(allow_inf_nan=False)] | Literal["nan", "inf", "-inf"]
Texts = dict[Text, Text]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True)


class _Record(_Model):
    time: Annotated[int, Field(ge=0, le=_MAX_TIME)]


class _Level(_Model):
    name: Text
    tags: Texts
    unique: Annotated[list[Text], Field(min_length=1)]

    @model_validator(mode="after")
    def _found_by_its_tags(self) -> _Level:
        if not set(self.unique) <= set(self.tags):
            raise ValueError("unique names no tags")
        return self


class _Begin(_Record):
    op: Literal["begin"]
    uri: Text
    experiment: Text
    stage: Text | None
    join: Text | None
    levels: Annotated[list[_Level], Field(min_length=1, max_length=3)]


class _Measured(_Model):
    identity: Text
    name: Text
    dataset: Text
    digest: Text
    metrics: list[Text]


class _Metrics(_Record):
    op: Literal["metrics"]
    to: Target
    step: Annotated[int, Field(ge=0, le=_MAX_STEP)] | None
    values: dict[Text, Number]
    of: _Measured | None = None


class _Values(_Record):
    op: Literal["params", "tags"]
    to: Target
    values: Texts


class _Artifact(_Record):
    op: Literal["artifact"]
    to: Target
    file: Kept
    folder: Folder
    table: bool


class _Dataset(_Record):
    op: Literal["dataset"]
    name: Text
    digest: Text
    source: Text
    source_type: Text
    rows: Annotated[int, Field(ge=0, le=_MAX_STEP)]
    context: Text
    columns: Texts = {}


class _Made(_Record):
    op: Literal["model"]
    identity: Text
    name: Text


class _Prompt(_Record):
    op: Literal["prompt"]
    name: Text
    template: Text


class _Traces(_Record):
    op: Literal["traces"]
    file: Kept
    rules: list[Text]
    first: Annotated[int, Field(ge=0, le=10**6)]


class _End(_Record):
    op: Literal["end"]
    status: Literal["FINISHED", "FAILED", "KILLED", "RUNNING"]
    error: Text | None


_ADAPTER: TypeAdapter[_Record] = TypeAdapter(
    Annotated[
        _Begin | _Metrics | _Values | _Artifact | _Dataset | _Made | _Prompt | _Traces | _End,
        Field(discriminator="op"),
    ]
)


def parse(line: bytes, *, first: bool) -> Record:
    """The record of a line; `{"op": "unreadable", "text": …, "problem": …}` where it is none.

    Args:
        first: whether it is the first line of its journal: there, and nowhere else, is the record `begin`.
    """
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"it is longer than {MAX_LINE} bytes")
        record = _ADAPTER.validate_json(line).model_dump()
        if (record["op"] == "begin") != first:
            raise ValueError("a journal begins with `begin`, and has it once")
    except ValidationError as error:
        one = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, one["loc"]))
        problem = f"{where}: {one['msg']}" if where else one["msg"]
    except ValueError as error:
        problem = str(error)
    else:
        return record
    return {"op": "unreadable", "text": line[:200].decode("utf-8", "replace").strip(), "problem": problem[:200]}
