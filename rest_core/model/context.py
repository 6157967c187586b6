"""How many tokens a model can see at once."""

from __future__ import annotations

from typing import Any


def context_of(architecture: Any) -> int | None:
    """Tokens of prompt and response together, by a model's configuration (transformers); None where it has no limit.

    Rotary positions that are scaled reach further than the model was first trained for: by their factor.
    """
    text = architecture.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return None
    scaling = getattr(text, "rope_parameters", None) or {}
    kind, factor = scaling.get("rope_type"), scaling.get("factor") or 1
    if kind == "yarn":  # whether max_position_embeddings counts the factor differs from checkpoint to checkpoint
        return max(positions, int((scaling.get("original_max_position_embeddings") or 0) * factor))
    return int(positions * factor) if kind in ("linear", "dynamic") else positions
