"""What every section of the configuration has in common."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A section: unknown keys are refused, values are immutable, the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_null(cls, values: Any) -> Any:
        """A KFP parameter holds no null; the string "null" stands for it (`to_parameter`)."""
        return {k: None if v == "null" else v for k, v in values.items()} if isinstance(values, dict) else values

    def to_parameter(self) -> dict[str, Any]:
        """The section as a KFP parameter: plain JSON types, every null as the string "null"; `validate` reads it."""
        plain: dict[str, Any] = json.loads(json.dumps(self.model_dump(mode="json")), object_hook=_without_null)
        return plain


def _without_null(values: dict[str, Any]) -> dict[str, Any]:
    return {key: "null" if value is None else value for key, value in values.items()}
