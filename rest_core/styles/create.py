"""From the setting `model.prompt_style` to a style."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from rest_core.config import STYLE_TEMPLATES, ModelConfig
from rest_core.errors import UserError
from rest_core.styles.native import NativeStyle
from rest_core.styles.style import Style
from rest_core.styles.template_style import TemplateStyle

NATIVE, FILE = "native", "file:"


@cache
def built_in_style(name: str) -> TemplateStyle:
    """The style of a template file that comes with the project."""
    return TemplateStyle(STYLE_TEMPLATES / f"{name}.yaml", built_in=True)


def create_style(model: ModelConfig, tokenizer: Any) -> Style:
    """The style that a configuration names.

    Raises:
        UserError: its file is wrong, or the tokenizer's chat template takes no tools (`native`).
    """
    setting = model.prompt_style
    if setting == NATIVE:
        return NativeStyle(tokenizer, model.tool_parser)
    if setting.startswith(FILE):
        return TemplateStyle(Path(setting.removeprefix(FILE)).expanduser())
    return built_in_style(setting)


def training_style(model: ModelConfig, tokenizer: Any) -> Style:
    """The same, for training.

    Raises:
        UserError: it reads responses by the published rule, which gives no spans of calls.
    """
    style = create_style(model, tokenizer)
    if not style.for_training:
        raise UserError(
            f"model.prompt_style={model.prompt_style} reads responses by the published rule, which is for evaluation; "
            "train in another style"
        )
    return style
