"""How a checkpoint was prompted in its training, as far as its chat template says."""

from __future__ import annotations

from pathlib import Path

from rest_core.config import STYLE_TEMPLATES, ModelConfig
from rest_core.errors import UserError
from rest_core.styles.chat_template import style_of, variables_of

_TEMPLATE_FILE = "chat_template.jinja"  # transformers' name


def as_trained(checkpoint: Path, model: ModelConfig) -> ModelConfig:
    """The settings with the style and the thinking that a checkpoint was trained with.

    Raises:
        UserError: it was trained in a style of a file, and the settings name none.
    """
    file = checkpoint / _TEMPLATE_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    style, thinking = style_of(text), variables_of(text).get("enable_thinking")
    changed = {} if thinking is None else {"enable_thinking": thinking}
    if style is None or model.prompt_style.startswith("file:"):
        return model.model_copy(update=changed)
    if style != "native" and not (STYLE_TEMPLATES / f"{style}.yaml").is_file():
        raise UserError(f"{checkpoint}: was trained in the style {style}; set model.prompt_style=file:PATH to its file")
    return model.model_copy(update=changed | {"prompt_style": style})
