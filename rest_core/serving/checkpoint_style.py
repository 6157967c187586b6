"""The style that a checkpoint was trained in."""

from __future__ import annotations

from pathlib import Path

from rest_core.config import STYLE_TEMPLATES
from rest_core.styles.chat_template import style_of

_TEMPLATE_FILE = "chat_template.jinja"  # transformers' name


def trained_style(checkpoint: Path) -> str | None:
    """The built-in style that a checkpoint's chat template names; None where it names none."""
    file = checkpoint / _TEMPLATE_FILE
    name = style_of(file.read_text(encoding="utf-8")) if file.is_file() else None
    return name if name == "native" or (STYLE_TEMPLATES / f"{name}.yaml").is_file() else None
