"""Prompt tokens that BFCL's dialogues cost with and without reuse of what prompts begin with.

    python benchmarks/prefix_reuse.py [--dialogues 50] [--style toolrl] [--gib 2]

Official answers are played back, one call a step, through the loop and the engine of the evaluation, with SmolLM2's
tokens. Only the model is small (random, two layers): how many tokens an engine computes does not depend on it. `--gib`
is the memory that SmolLM2-135M's keys and values would have in float32 (`bfcl.generation.prefix_cache_gib`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from multi_turn_gold import CATEGORIES, entries, gold_calls

from rest_core.config import GenerationConfig, ModelConfig
from rest_core.environments.dialogue import run_dialogues
from rest_core.evaluation.bfcl.executor import Executor
from rest_core.evaluation.bfcl.multi_turn import MAX_STEPS, BfclDialogue
from rest_core.evaluation.evaluate import seeded_subset
from rest_core.evaluation.local_policy import LocalPolicy
from rest_core.evaluation.policy import Answer, Chat, Progress
from rest_core.model.loading import load_model, load_tokenizer
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.styles.create import create_style

MODEL = "embedded:tiny-random"
BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 4  # SmolLM2-135M: layers, keys and values, heads, size, float32


class Gold(LocalPolicy):
    """Answers officially, whatever the model samples; `fresh` counts the tokens of all its prompts."""

    def __init__(self, engine: TransformersEngine, tokenizer: Any, model: ModelConfig, category: str) -> None:
        super().__init__("gold", engine, tokenizer, create_style(model, tokenizer))
        self.fresh = self.steps = 0
        self._steps = {key(entry): self._texts(gold_calls(category)[id_]) for id_, entry in entries(category).items()}

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        """See `Policy.respond`. Each prompt is computed, and some tokens are sampled; then the official text counts."""
        answers = super().respond(chats, config, on_progress)
        self.fresh += sum(answer.prompt_tokens for answer in answers if answer.skipped is None)
        self.steps += len(answers)
        made = []
        for chat, answer in zip(chats, answers, strict=True):
            text = next(self._steps[(chat.history[0].content, chat.tools[0].name)])
            made.append(Answer(text, answer.prompt_tokens, 1, True, answer.skipped, read=self.reader(chat)))
        return made

    def _texts(self, turns: Sequence[Sequence[Any]]) -> Iterator[str]:
        for calls in turns:
            for call in calls:
                yield self.style.write(think="I call the tool.", calls=[call], response=None)
            yield self.style.write(think="All is done.", calls=[], response="Done.")


def key(entry: dict[str, Any]) -> tuple[str, str]:
    """What tells the dialogues of a category apart in their first chats."""
    return entry["question"][0][0]["content"], entry["function"][0]["name"]


def replay(category: str, options: argparse.Namespace) -> dict[str, float]:
    """Tokens of a category's dialogues with the memory that `--gib` allows."""
    config = ModelConfig(source=MODEL, prompt_style=options.style)
    tokenizer, model = load_tokenizer(MODEL, config), load_model(MODEL, config)
    text = model.config.get_text_config()
    own = text.num_hidden_layers * 2 * text.num_key_value_heads * model.model.layers[0].self_attn.head_dim * 4
    engine = TransformersEngine(
        model,
        stop_ids=frozenset({tokenizer.eos_token_id}),
        pad_id=tokenizer.pad_token_id,
        prefix_bytes=int(options.gib * 2**30 * own / BYTES_PER_TOKEN),
    )
    policy = Gold(engine, tokenizer, config, category)
    chosen = seeded_subset(list(entries(category).values()), options.dialogues, seed=0, name=category)
    limits = GenerationConfig(max_response_tokens=8, max_prompt_tokens=49152)
    executor = Executor()
    try:
        environments = [BfclDialogue(entry, executor, native_tools=policy.native_tools) for entry in chosen]
        dialogues = run_dialogues(environments, policy, limits, max_steps=MAX_STEPS)
        valid = sum(dialogue.environment.verdict(dialogue.stop or "failed").valid for dialogue in dialogues)
    finally:
        executor.close()
    assert engine.prefixes is not None
    computed = engine.prefixes.computed
    return {
        "dialogues": len(dialogues),
        "valid": valid,
        "steps": policy.steps,
        "fresh_tokens": policy.fresh,
        "computed_tokens": computed,
        "share": computed / policy.fresh,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=50, help="of each category")
    parser.add_argument("--style", default="toolrl")
    parser.add_argument("--gib", type=float, default=GenerationConfig().prefix_cache_gib)
    parser.add_argument("--category", choices=CATEGORIES, action="append", dest="categories")
    options = parser.parse_args()
    torch.set_num_threads(2)
    found = {category: replay(category, options) for category in options.categories or CATEGORIES}
    fresh, computed = (sum(one[name] for one in found.values()) for name in ("fresh_tokens", "computed_tokens"))
    report = {"style": options.style, "gib": options.gib, **found, "share": computed / fresh}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
