"""Decoding as a CUDA graph against decoding without, and the engine's log-probs against those of training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rest_core.model.batch import Group, pad_rows, padded_batch
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout
from rest_core.rollout import cuda_graph
from rest_core.rollout.transformers_engine import TransformersEngine

from .checking import Check, Found, Progress, largest, random_rollouts, rms
from .measure import Clock
from .work import Work

WORK = {
    "cuda": Work("decode", prompts=4, prompt_tokens=200, group=4, new_tokens=96),
    "cpu": Work("decode", prompts=2, prompt_tokens=20, group=3, new_tokens=24),
}
_BLOCK = 8  # buffers grow, and the step is captured anew, several times in so short a response

# A capture replays the very kernels that run without it: a token can differ only where another kernel was chosen and
# its rounding moved the sum past a draw, at odds of about 1e-6 a token in float32.
_SAME = "a graph replays the same kernels on the same numbers"
REPLAYED = 1e-5
# Cached keys and one token at a time against whole rows: float32 in another order, through 30 layers.
VALUES = 5e-4
_ORDER = "float32 in another order; a wrong cache, position or mask is off by 1e-1"
# The engine has its weights and all that flows between layers in bfloat16: with SmolLM2-135M on a CPU 0.1 nats.
HALF = 0.3
_USABLE = "three times what bfloat16 makes of SmolLM2-135M on a CPU; a wrong cache, position or mask is off by 1"


def check(model: Any, device: torch.device, work: Work, progress: Progress) -> Found:
    """Decode the same draws with and without a graph, in both types; `model` is in float32 and on `device`."""
    vocabulary = model.get_input_embeddings().num_embeddings
    prompts = [rollout.prompt_ids for rollout in random_rollouts(work, vocabulary)[:: work.group]]
    # Some rows end early, so that the batch shrinks on the way; with other weights other rows.
    stops = frozenset(range(0, vocabulary, work.new_tokens))
    policy, clock = Policy(model.eval(), shared=False), Clock(device)
    checks: list[Check] = []
    figures: dict[str, Any] = {"seconds": {}}
    if device.type != "cuda":
        figures["skipped"] = "decoding as a CUDA graph: there is no GPU"
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        engine = TransformersEngine.copy_of(model, dtype=dtype, stop_ids=stops, pad_id=0)
        checks.append(Check(f"{name}: prompts that are not shared", float(not engine.shares_prefix), 0.0, "all are"))
        made = {}
        for capture in (False, True) if device.type == "cuda" else (False,):
            engine.pace = replace(engine.pace, block=_BLOCK, capture=capture)
            with _warnings() as said:
                begin = clock.now()
                groups = engine.generate(
                    prompts, samples=work.group, max_new_tokens=work.new_tokens, seeds=list(range(len(prompts)))
                )
                seconds = clock.now() - begin
            figures["seconds"][f"{name}, {'captured' if capture else 'uncaptured'}"] = seconds
            progress(f"{name}, {'captured' if capture else 'uncaptured'}: {seconds:.2f} s")
            made[capture] = [rollout for group in groups for rollout in group]
            if capture:
                checks.append(Check(f"{name}: captures that failed", float(len(said)), 0.0, "; ".join(said) or "none"))
        figures[f"{name}, ended early"] = sum(rollout.finished for rollout in made[False])
        if True in made:
            checks += _replayed(name, made[True], made[False])
        checks += _trained(name, made[False], policy, device)
    return Found(checks, figures)


def _replayed(name: str, captured: list[Rollout], uncaptured: list[Rollout]) -> list[Check]:
    pairs = list(zip(captured, uncaptured, strict=True))
    same = [(a, b) for a, b in pairs if a.response_ids == b.response_ids]
    checks = [Check(f"{name}: responses whose ids differ with a graph", float(len(pairs) - len(same)), 0.0, _SAME)]
    for what in ("logps", "entropies"):
        gap = max((largest(torch.tensor(getattr(a, what)), torch.tensor(getattr(b, what))) for a, b in same), default=0)
        checks.append(Check(f"{name}: largest difference of {what} with a graph", gap, REPLAYED, _SAME))
    return checks


@torch.no_grad()
def _trained(name: str, rollouts: list[Rollout], policy: Policy, device: torch.device) -> list[Check]:
    """The engine's values against those of one row a response in float32."""
    groups = [Group((n,)) for n in range(len(rollouts))]
    batch = padded_batch(rollouts, groups, pad_id=0).to(device)
    _, logp, entropy = policy(batch)

    def sampled(values: list[Any]) -> Tensor:
        width = max(map(len, values))
        return pad_rows(values, width, torch.float64)[batch.rows.cpu(), batch.columns.cpu()]

    engine = {
        "log-prob": (sampled([rollout.logps for rollout in rollouts]), logp),
        "entropy": (sampled([rollout.entropies for rollout in rollouts]), entropy),
    }
    if name == "float32":
        return [
            Check(f"{name}: largest difference of a {what} from training", largest(*pair), VALUES, _ORDER)
            for what, pair in engine.items()
        ]
    return [
        Check(f"{name}: error of a {what} against training in float32", rms(*pair), HALF, _USABLE)
        for what, pair in engine.items()
    ]


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What `cuda_graph` warns of meanwhile: that a step could not be captured."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    cuda_graph.log.addHandler(handler)
    try:
        yield said
    finally:
        cuda_graph.log.removeHandler(handler)
