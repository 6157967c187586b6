"""Reads the configuration: profiles in `configs/*.yaml`, overrides as `a.b=c`, sections as a stage receives them."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from rest_core.config.address import SECRET
from rest_core.config.rl import RlConfig
from rest_core.config.schema import Config
from rest_core.credentials import redact, redacted
from rest_core.errors import UserError, nearest, one_line
from rest_core.yaml_text import parse_yaml, read_yaml

T = TypeVar("T", bound=BaseModel)

_HINTS = 3
_LONGEST_NAME = 120  # characters of a key, or of what stands for one, in a message
_SHORT = reprlib.Repr()  # looks at the beginning of a value alone
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80
# Settings of samplers that training must not have, whatever their value.
_TRUNCATION = {"top_p", "top_k", "min_p", "repetition_penalty"}


def profile_folder() -> Path:
    """Where the profiles lie: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def profiles() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in profile_folder().glob("*.yaml"))


def load(profile: str, overrides: tuple[str, ...] = ()) -> Config:
    """The configuration of a profile (a name, or the path of a YAML or JSON file) with `a.b=value` overrides applied.

    Values of overrides are read as YAML: `rl.steps=5`, `rl.lora={r: 8}`, `sft.enabled=false`.

    Raises:
        UserError: there is no such profile, or a key or value in it or in an override is wrong.
    """
    path = Path(profile) if profile.endswith((".yaml", ".yml", ".json")) else profile_folder() / f"{profile}.yaml"
    if not _is_file(path):
        name = profile[:_LONGEST_NAME]
        raise UserError(f"unknown profile {name!r}{nearest(name, profiles())} (known: {', '.join(profiles())})")
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a profile is a mapping of sections, not {type(values).__name__}")
    return with_overrides({**values, "profile": path.stem}, overrides, where=f"profile {path.stem}")


def with_overrides(values: dict[str, Any], overrides: tuple[str, ...], where: str) -> Config:
    """The configuration of `values`, by section, with `a.b=value` overrides applied.

    Raises:
        UserError: a key or value is wrong; the message begins with `where`.
    """
    values = copy.deepcopy(values)
    for override in overrides:
        _apply(values, override)
    return validate(Config, values, where=where)


def validate(model: type[T], values: Any, where: str) -> T:
    """`values` as a `model`.

    Raises:
        UserError: a key or value is wrong; the message names it and, of an unknown key, the nearest known one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = _first_problem(model, error.errors(include_url=False)[0])
        raise UserError(f"{where}: {one_line(redact(problem), longest=1000)}") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False


def _first_problem(model: type[BaseModel], error: Any) -> str:
    place, key = error["loc"][:-1], error["loc"][-1] if error["loc"] else ""
    name = ".".join(str(part)[:_LONGEST_NAME] for part in error["loc"])
    if error["type"] == "extra_forbidden":
        sections = _models_at(model, place)
        if key in _TRUNCATION and RlConfig in sections:
            return (
                f"{name}: training samples from the policy's whole distribution, a truncated or penalised one biases "
                "the ratio; leave it out"
            )
        return f"unknown key {name!r}{_nearest_key(model, place, str(key)[:_LONGEST_NAME], sections)}"
    if error["type"] == SECRET:
        return f"{name}: {error['msg']}"
    if error["type"] == "union_tag_invalid":
        tag, field = error["ctx"]["tag"][:_LONGEST_NAME], error["ctx"]["discriminator"].strip("'")
        known = [one.strip(" '") for one in error["ctx"]["expected_tags"].split(",")]
        return f"{name}.{field}: unknown {field} {tag!r}{nearest(tag, known)} (known: {', '.join(known)})"
    ours = error["type"] == "value_error"  # raised by a validator of a section, about fields that it names
    message = str(error["ctx"]["error"]) if ours else error["msg"].lower()
    got = "" if ours and isinstance(error["input"], dict) else f" (got {_shown(error['input'])})"
    return f"{f'{name}: ' if name else ''}{message}{got}"


def _shown(value: Any) -> str:
    """The beginning of a value; credentials go first, lest an address be cut within them."""
    return f"{_SHORT.repr(redacted(value)):.80}"


def _nearest_key(
    model: type[BaseModel], place: tuple[int | str, ...], key: str, sections: list[type[BaseModel]]
) -> str:
    """A hint: the key of this name elsewhere in the configuration, else the nearest one in the same sections."""
    elsewhere = [path for path in dict.fromkeys(_paths(model)) if path.rpartition(".")[2] == key]
    inside = [path for path in elsewhere if path.startswith(f"{'.'.join(map(str, place))}.")]  # below the same section
    if found := (inside or elsewhere)[:_HINTS]:
        return f"; did you mean {' or '.join(map(repr, found))}?"
    return nearest(key, [known for one in sections for known in one.model_fields])


def _paths(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """The keys of a section and of those in it, with their paths."""
    for name, field in model.model_fields.items():
        yield f"{before}{name}"
        for inner in _models_in(field.annotation):
            yield from _paths(inner, f"{before}{name}.")


def _apply(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    where = f"--set {name[:_LONGEST_NAME]!r}"
    if not separator or not name:
        raise UserError(f"{where}: write it as section.key=value")
    *sections, last = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"{where}: {section[:_LONGEST_NAME]!r} has no keys below it")
        values = inner
    values[last] = parse_yaml(text, where=where)


def _models_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Sections that a validation error's location may point into; tagged unions add their tag to it."""
    models = [model]
    for part in location:
        fields = [one.model_fields[str(part)] for one in models if str(part) in one.model_fields]
        models = [inner for field in fields for inner in _models_in(field.annotation)] or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
