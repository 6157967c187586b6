"""How responses are written: the project's own format, and those of model families by vLLM's names of their parsers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rest_core.records import Tool, ToolCall
from rest_core.response import TAGGED, Response, parse, render
from rest_core.styles.formats.hermes import Hermes
from rest_core.styles.formats.llama3_json import Llama3Json
from rest_core.styles.formats.mistral import Mistral
from rest_core.styles.formats.parts import Format
from rest_core.styles.formats.pythonic import Pythonic
from rest_core.styles.formats.qwen3_coder import Qwen3Coder


class Tagged:
    """The project's own format (`rest_core.response`)."""

    dialect = TAGGED

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        return parse(text)

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        return render(think=think, calls=calls, response=response)


FAMILIES: dict[str, Callable[[], Format]] = {
    "hermes": Hermes,
    "llama3_json": Llama3Json,
    "pythonic": Pythonic,
    "mistral": Mistral,
    "qwen3_coder": Qwen3Coder,
}
FORMATS: dict[str, Callable[[], Format]] = {"tagged": Tagged, **FAMILIES}
