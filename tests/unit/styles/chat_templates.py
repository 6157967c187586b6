"""Chat templates of model families: those that TRL comes with (Apache-2.0), and small ones in the way of others."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Calls as Mistral's templates write them, with ids.
MISTRAL = """\
{{- bos_token }}
{%- set users = messages | selectattr("role", "equalto", "user") | list %}
{%- for m in messages %}
  {%- if m.role == "user" %}
    {%- if tools and m == users[-1] %}{{ "[AVAILABLE_TOOLS] " + tools | tojson + "[/AVAILABLE_TOOLS]" }}{% endif %}
    {{- "[INST] " + m.content + "[/INST]" }}
  {%- elif m.tool_calls is defined %}
    {{- m.content + "[TOOL_CALLS] [" }}
    {%- for call in m.tool_calls %}
      {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (", " if not loop.last else "]") }}
    {%- endfor %}
    {{- eos_token }}
  {%- elif m.role == "tool" %}
    {{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
  {%- else %}
    {{- " " + m.content + eos_token }}
  {%- endif %}
{%- endfor %}"""
# Calls in Hermes' own order of keys.
HERMES = """\
{%- if tools %}{{ "<|im_start|>system\\n<tools>" + tools | tojson + "</tools><|im_end|>\\n" }}{% endif %}
{%- for m in messages %}
  {{- "<|im_start|>" + m.role + "\\n" + m.content }}
  {%- for call in m.tool_calls or () %}
    {{- ("\\n" if m.content or not loop.first else "") + '<tool_call>\\n{"arguments": ' }}
    {{- call.function.arguments | tojson + ', "name": "' + call.function.name + '"}\\n</tool_call>' }}
  {%- endfor %}
  {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""

FAMILIES = {
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_instruct_2507": "hermes",
    "hermes": "hermes",
    "llama3_1": "llama3_json",
    "llama3_2": "llama3_json",
    "lfm2_v2": "pythonic",
    "qwen3_5_nothink": "qwen3_coder",
    "qwen3_5_think": "qwen3_coder",
    "qwen3_8": "qwen3_coder",
    "mistral": "mistral",
}
_OWN = {"mistral": (MISTRAL, "</s>"), "hermes": (HERMES, "<|im_end|>")}


def template(name: str) -> tuple[str, str]:
    """A chat template, and the token that ends its turns."""
    if name in _OWN:
        return _OWN[name]
    text = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return text, "<|eot_id|>" if name.startswith("llama") else "<|im_end|>"


def tokenizer(name: str) -> Any:
    """A tokenizer of one token a byte with a family's chat template."""
    text, end = template(name)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=end, pad_token="<pad>")
    made.chat_template = text
    return made
