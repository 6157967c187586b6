"""From the setting `model.prompt_style` to a style."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from rest_core.config import ModelConfig
from rest_core.errors import UserError, nearest
from rest_core.styles.native import NativeStyle
from rest_core.styles.style import Style
from rest_core.styles.template_style import TemplateStyle

NATIVE, FILE = "native", "file:"
_FOLDER = Path(__file__).parent / "templates"


def built_in_styles() -> list[str]:
    """The names of the template files that come with the project."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@cache
def built_in_style(name: str) -> TemplateStyle:
    """The style of a template file that comes with the project."""
    if name not in built_in_styles():
        known = [*built_in_styles(), NATIVE]
        raise UserError(
            f"model.prompt_style: no style {name!r}{nearest(name, known)} (known: {', '.join(known)}, {FILE}PATH)"
        )
    return TemplateStyle(_FOLDER / f"{name}.yaml", built_in=True)


def create_style(model: ModelConfig, tokenizer: Any) -> Style:
    """The style that a configuration names.

    Raises:
        UserError: there is none, its file is wrong, or the tokenizer's chat template takes no tools (`native`).
    """
    setting = model.prompt_style
    if setting == NATIVE:
        return NativeStyle(tokenizer, model.tool_parser)
    if setting.startswith(FILE):
        return TemplateStyle(Path(setting.removeprefix(FILE)).expanduser())
    return built_in_style(setting)


def training_style(model: ModelConfig, tokenizer: Any) -> Style:
    """The same, for a training.

    Raises:
        UserError: its reading rule is one for measuring, which has no places of calls in the text.
    """
    style = create_style(model, tokenizer)
    if not style.for_training:
        raise UserError(
            f"model.prompt_style={model.prompt_style} reads responses by the published rule, which is for evaluation; "
            "train in another style"
        )
    return style
