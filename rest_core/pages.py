"""HTML pages from templates that lie beside the code; whatever is put into them is escaped."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2


def render(package: str, name: str, **values: Any) -> str:
    """The template `name` of a package with values in it; functions among them may be called by it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files(package).joinpath(name).read_text("utf-8")).render(**values)
