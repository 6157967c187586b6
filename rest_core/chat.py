"""From messages to ids: the one place that encodes text, and that knows what a prompt has begun of the response.

Some chat templates end the prompt with an opened `<think>`. A model continues from there, so the tag counts as the
beginning of its response: `opening` says which, for a tokenizer. Readers of sampled ids put it before what was sampled
(`rest_core.algorithm.regions`), and `continuation` leaves it out of what is to be learnt.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from rest_core.call_json import without_surrogates
from rest_core.errors import UserError, one_line
from rest_core.records import Message, Sample, Tool
from rest_core.response import Kind, parse
from rest_core.token_bytes import stop_ids, token_bytes

_NAMES = "|".join(kind.value for kind in Kind)
_LAST_TAGS = re.compile(rf"(?:</?(?:{_NAMES})>\s*)+\Z")
_THINK = f"<{Kind.THINK.value}>"
_NO_THOUGHTS = re.compile(rf"{_THINK}\s*</{Kind.THINK.value}>\s*")
_REMEDY = (
    f"a response may have been begun with one {_THINK} and nothing else; choose another chat template or another model"
)
_LONGEST = 400  # characters of a template's own error
_TAIL = 64  # tokens or characters that are looked at: more than such tags have
_PROBES = ((Message("system", "s"), Message("user", "u")), (Message("user", "u"),))


@dataclass(frozen=True)
class Opening:
    """What a prompt has already written of the assistant's turn."""

    text: str = ""  # "<think>" and the white space behind it, or nothing: how the response begins
    no_thoughts: bool = False  # a closed and empty think block, as templates write it that switch thinking off

    def __str__(self) -> str:
        return "an empty think block" if self.no_thoughts else repr(self.text) if self.text else "nothing"


NOTHING = Opening()


def opening(tokenizer: Any) -> Opening:
    """What the tokenizer's chat template opens, with the template's variables that are set on the tokenizer.

    Computed once a template. Nothing where there is no template.

    Raises:
        UserError: the template ends its prompts in other tags of the response format.
    """
    known = _CACHE.get(tokenizer)
    key = (tokenizer.chat_template, tuple(template_variables(tokenizer).items()))
    if known is None or known[0] != key:
        known = _CACHE[tokenizer] = (key, _opened_by_template(tokenizer))
    return known[1]


_CACHE: weakref.WeakKeyDictionary[Any, tuple[Any, Opening]] = weakref.WeakKeyDictionary()


class Refused(UserError):
    """A chat template does not take these messages."""


class ChatInput(Protocol):
    """What brings a prompt into the form that chat templates take (`rest_core.styles.style.Style`)."""

    def chat_input(
        self, prompt: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Messages, and further variables of the template."""
        ...


def _opened_by_template(tokenizer: Any) -> Opening:
    if not tokenizer.chat_template:
        return NOTHING
    for probe in _PROBES:
        try:
            ids = _encode(tokenizer, _plain(probe))
            unopened = _encode(tokenizer, _plain(probe), add_generation_prompt=False)
        except Refused:  # some refuse system messages
            continue
        opened = opened_by(tokenizer, ids)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, unopened, strict=False)))
        begun, _ = token_bytes(tokenizer).text(ids[shared:])
        if opened == NOTHING and parse(begun).tags:
            raise UserError(f"{_template(tokenizer)} ends the prompt in {begun!r}: {_REMEDY}")
        return opened
    return NOTHING  # the prompts themselves will show what it wants, and are compared with this


def opened_by(tokenizer: Any, prompt: Sequence[int] | str) -> Opening:
    """What one prompt opens, as ids or as text.

    Raises:
        UserError: it ends in other tags of the response format than one `<think>` or an empty think block.
    """
    match = _LAST_TAGS.search(_end(tokenizer, prompt))
    if match is None:
        return NOTHING
    tags = match[0]
    if tags.rstrip() == _THINK:
        return Opening(tags)
    if _NO_THOUGHTS.fullmatch(tags):
        return Opening(no_thoughts=True)
    what = "a prompt that is plain text ends" if isinstance(prompt, str) else f"{_template(tokenizer)} ends the prompt"
    raise UserError(f"{what} in {tags!r}: {_REMEDY}")


def _end(tokenizer: Any, prompt: Sequence[int] | str) -> str:
    if isinstance(prompt, str):
        return prompt[-_TAIL:]
    table = token_bytes(tokenizer)
    closed = not prompt or prompt[-1] in table.end_ids  # nothing stands between that turn's end and the response
    return "" if closed else table.text(prompt[-_TAIL:])[0]


def encode_prompt(
    tokenizer: Any, prompt: Sequence[Message], style: ChatInput | None = None, tools: Sequence[Tool] = ()
) -> list[int]:
    """Ids of a chat up to where the assistant's turn begins.

    Args:
        style: brings the prompt into the form of the chat template; None = its messages are plain texts.
        tools: those that the style may list.

    Raises:
        UserError: the model's chat template refuses these messages, or opens something else than with others.
    """
    messages, variables = (_plain(prompt), {}) if style is None else style.chat_input(prompt, tools)
    try:
        # A model may have written half of a surrogate pair in a call of an earlier turn; tokenizers refuse it.
        ids = _encode(tokenizer, without_surrogates(messages), **variables)
    except Refused as error:
        raise UserError(
            f"{_template(tokenizer)} refuses messages of the roles {_roles(prompt)} ({error}); choose a model whose "
            "template takes them"
        ) from None
    here, usual = opened_by(tokenizer, ids), opening(tokenizer)
    if here != usual:
        raise UserError(
            f"{_template(tokenizer)} opens {here} after messages of the roles {_roles(prompt)}, and {usual} after "
            "others: responses would not begin alike; choose a chat template that ends all prompts alike"
        )
    return ids


def encode_response(tokenizer: Any, text: str) -> list[int]:
    """Ids of a reference response less what the prompt opens, end of sequence included.

    Raises:
        UserError: see `continuation`.
    """
    return [*tokenizer(continuation(tokenizer, text), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def continuation(tokenizer: Any, reference: str, opened: Opening | None = None) -> str:
    """What of a reference response is left to say where the prompt has been written.

    Without the tag that the prompt opens; where the prompt has white space behind the tag, that stands in the place of
    the reference's, so that neither is doubled.

    Args:
        opened: by the prompt; None = as the tokenizer's chat template does.

    Raises:
        UserError: the reference does not continue what the prompt opens.
    """
    opened = opening(tokenizer) if opened is None else opened
    thinks = reference.lstrip().startswith(_THINK)
    if opened.no_thoughts and thinks:
        raise UserError(
            f"{_template(tokenizer)} ends the prompt in an empty think block, and the reference {_short(reference)} "
            "has thoughts: they would be a second block; choose a chat template that leaves thinking on"
        )
    if not opened.text:
        return reference
    if not thinks:
        raise UserError(
            f"{_template(tokenizer)} opens {_THINK} in the prompt, and the reference {_short(reference)} does not "
            "begin with it; choose a chat template that opens nothing, or references with thoughts"
        )
    rest = reference.lstrip().removeprefix(_THINK)
    return rest if opened.text == _THINK else rest.lstrip()


def encode_sample(tokenizer: Any, sample: Sample, style: ChatInput | None = None) -> tuple[list[int], list[int]]:
    """Ids of a sample's prompt and of its reference response, see `encode_prompt` and `encode_response`.

    Raises:
        UserError: one of them cannot be encoded; it names the sample.
    """
    try:
        prompt = encode_prompt(tokenizer, sample.prompt, style, sample.tools)
        return prompt, encode_response(tokenizer, sample.reference)
    except UserError as error:
        raise UserError(f"sample {sample.id}: {error}") from None


def with_template(tokenizer: Any, messages: Sequence[dict[str, Any]], **options: Any) -> Any:
    """What the tokenizer's chat template makes of messages, with the variables that are set on the tokenizer.

    Raises:
        Refused: there is no template, or it fails.
    """
    try:
        return tokenizer.apply_chat_template(messages, **template_variables(tokenizer), **options)
    except MemoryError:
        raise
    except Exception as error:  # a template is somebody else's program: any exception may come of it
        raise Refused(one_line(error, longest=_LONGEST) or type(error).__name__) from error


def template_text(tokenizer: Any) -> str:
    """The chat template for prompts with tools; a tokenizer may have several."""
    found: str = tokenizer.get_chat_template(tools=[{}])
    return found


def stop_texts(tokenizer: Any) -> list[str]:
    """The texts of the ids that end a response."""
    return [str(tokenizer.convert_ids_to_tokens(n)) for n in sorted(stop_ids(tokenizer))]


def _encode(
    tokenizer: Any, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
) -> list[int]:
    encoded = with_template(
        tokenizer, messages, add_generation_prompt=add_generation_prompt, tokenize=True, **variables
    )
    return list(encoded["input_ids"])


def _plain(prompt: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in prompt]


def template_variables(tokenizer: Any) -> dict[str, Any]:
    """Of the chat template: `rest_core.model.loading.load_tokenizer` leaves them on the tokenizer."""
    return dict(getattr(tokenizer, "template_variables", {}))


def _template(tokenizer: Any) -> str:
    return f"the chat template of {tokenizer.name_or_path!r}"


def _roles(prompt: Sequence[Message]) -> str:
    return ", ".join(message.role for message in prompt)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
