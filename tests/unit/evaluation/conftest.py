"""A small tokenizer, an engine that answers by a script, and evaluations of scripted policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from counting_benchmark import Counting
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rest_core.evaluation.evaluate import evaluate
from rest_core.records import Rollout

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")
    made.chat_template = CHAT_TEMPLATE
    return made


class ScriptedEngine:
    """An `Engine` whose answer to a prompt is chosen by a function of the prompt's text and its position."""

    def __init__(self, tokenizer: Any, script: Callable[[str, int], str]) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.prompts: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        batch_tokens: int = 65536,
        seeds: Sequence[int] | None = None,
        on_progress: Callable[[int], None] | None = None,
        continued: bool = False,
    ) -> list[list[Rollout]]:
        self.calls.append(
            {
                "samples": samples,
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "batch_tokens": batch_tokens,
            }
        )
        self.prompts += [self.tokenizer.decode(list(ids)) for ids in prompts]
        results = []
        for position, ids in enumerate(prompts):
            text = self.script(self.tokenizer.decode(list(ids)), position)
            sampled = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
            finished = len(sampled) <= max_new_tokens
            sampled = sampled[:max_new_tokens]
            results.append([Rollout(list(ids), sampled, [0.0] * len(sampled), finished, 0) for _ in range(samples)])
            if on_progress is not None:
                on_progress(samples)
        return results


@pytest.fixture
def scripted(tokenizer: PreTrainedTokenizerFast) -> Callable[[Callable[[str, int], str]], ScriptedEngine]:
    """scripted(function of prompt text and position → response text) is an engine."""
    return lambda script: ScriptedEngine(tokenizer, script)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory):
    """evaluated(policy, benchmark settings) is the output directory of an evaluation; each is made once."""
    known = {}  # with the policies, so that their ids stay theirs

    def make(policy, **settings):
        key = (id(policy), str(settings))
        if key not in known:
            known[key] = (policy, tmp_path_factory.mktemp("evaluation"))
            evaluate(Counting(**settings), policy, out=known[key][1])
        return known[key][1]

    return make
