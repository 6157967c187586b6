"""vLLM's parsers for the project's own format, both under the name `rest` (vLLM 0.32).

    vllm serve MODEL --enable-auto-tool-choice --tool-call-parser rest --tool-parser-plugin MODEL/rest_vllm_parser.py \\
        --reasoning-parser rest --reasoning-parser-plugin MODEL/rest_vllm_parser.py

That file comes with each checkpoint (`rest_core.serving.plugin`); it needs nothing but vLLM. Calls of a stream are sent
when their block is closed: before that they are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
)
from vllm.entrypoints.generate.base.protocol import ToolCall as VllmToolCall
from vllm.reasoning.abs_reasoning_parsers import ReasoningParser, ReasoningParserManager
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

from rest_core.call_json import dumped
from rest_core.serving.chat_view import END_THINK, THINK, content_and_calls, split_reasoning

_PROMPT_TAIL = 16  # tokens that may hold an opened <think>


class RestReasoningParser(ReasoningParser):  # type: ignore[misc, no-any-unimported]
    """The think block as reasoning. Tags may be several tokens: it reads text, and decodes ids where it gets ids."""

    def __init__(self, tokenizer: Any, *arguments: Any, **settings: Any) -> None:
        super().__init__(tokenizer, *arguments, **settings)
        self._opened = False

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        tail = self.model_tokenizer.decode(list(prompt_token_ids)[-_PROMPT_TAIL:])
        self._opened = tail.rstrip().endswith(THINK)

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """False: it is asked of prompts, whose instructions and earlier turns have tags of their own."""
        return False

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        text = self.model_tokenizer.decode(list(input_ids))
        return split_reasoning(text, final=False, opened=self._opened)[1] is not None

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        return input_ids  # not used: the tool parser reads text

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        begun = model_output.lstrip().startswith(THINK)
        reasoning, rest = split_reasoning(model_output, final=True, opened=not begun and END_THINK in model_output)
        content, calls = content_and_calls(rest or "", final=True)
        # What has no call vLLM passes on as it is, past the tool parser.
        return reasoning or None, (rest if calls else content) or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> Any:
        before, _ = split_reasoning(previous_text, final=False, opened=self._opened)
        now, rest = split_reasoning(current_text, final=False, opened=self._opened)
        news = now.removeprefix(before)
        return DeltaMessage(reasoning=news or None, content=rest or None) if news or rest else None


class RestToolParser(ToolParser):  # type: ignore[misc, no-any-unimported]
    """Calls of the tool_call blocks; the content of the response block as content."""

    supports_required_and_named = False  # a JSON grammar would be none of this format

    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        super().__init__(tokenizer, tools)
        self._sent = ""

    def adjust_request(self, request: Any) -> Any:
        request = super().adjust_request(request)
        request.skip_special_tokens = False  # in some vocabularies the tags are special
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        content, calls = content_and_calls(model_output, final=True)
        made = [VllmToolCall(function=FunctionCall(name=call.name, arguments=dumped(call.arguments))) for call in calls]
        return ExtractedToolCallInformation(tools_called=bool(made), tool_calls=made, content=content or None)

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> Any:
        content, calls = content_and_calls(current_text, final=False)
        news = content.removeprefix(self._sent) if content.startswith(self._sent) else ""
        self._sent += news
        made = []
        for index in range(len(self.prev_tool_call_arr), len(calls)):
            arguments = dumped(calls[index].arguments)
            self.prev_tool_call_arr.append({"name": calls[index].name, "arguments": arguments})
            self.streamed_args_for_tool.append(arguments)
            self.current_tool_id = index
            function = DeltaFunctionCall(name=calls[index].name, arguments=arguments)
            made.append(DeltaToolCall(id=make_tool_call_id(), type="function", index=index, function=function))
        return DeltaMessage(content=news or None, tool_calls=made) if news or made else None


ReasoningParserManager.register_module("rest", module=RestReasoningParser)
ToolParserManager.register_module("rest", module=RestToolParser)
