"""Our side: the step that `RlTrainer.train` runs, with responses that never stop before the wanted length."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rest_core.algorithm.rest import Judgement, ResT
from rest_core.algorithm.rewards import Reward
from rest_core.config import ModelConfig, RlConfig
from rest_core.response import Response, parse
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task

from .measure import Clock, PeakMemory, TokenCount, compilation
from .models import model_of, tokenizer_of
from .work import Work, conversations, encode

_REFERENCE = (
    "<think> The city is known, so the tool can be called. </think>\n<tool_call>\n"
    '{"name": "weather_now", "parameters": {"place": "Paris", "unit": "celsius"}}\n</tool_call>'
)


class _Graded(ResT):
    """ResT whose reward is the response's place in its group, so that no group is ever without a signal.

    The response is parsed and rewarded as ever; only the figure is replaced.
    """

    _judged = 0

    def judge(self, ids: Sequence[int], reference: str | Response, step: int) -> Judgement:
        judgement = super().judge(ids, reference, step)
        place = self._judged % self.config.group_size
        self._judged += 1
        return dataclasses.replace(judgement, reward=Reward(format=0.0, correctness=float(place)))


class Ours:
    """`settings` are fields of `rest_core.config.RlConfig` beside those that the work fixes."""

    def __init__(self, spec: dict[str, Any], work: Work, device: torch.device, folder: Path) -> None:
        self.work, self.device = work, device
        self.tokenizer = tokenizer_of(spec["model"], spec["tokenizer"])
        model = model_of(spec["model"], self.tokenizer)
        self.prompts = [encode(self.tokenizer, messages) for messages in conversations(self.tokenizer, work)]
        config = RlConfig(
            steps=spec["rounds"],
            prompts_per_step=work.prompts,
            group_size=work.group,
            max_response_tokens=work.new_tokens,
            learning_rate=1e-6,
            reward_probe_prompts=0,
            table_every=10**9,
            **spec["settings"],
        )
        nothing = Observer(metrics=lambda metrics, step: None, table=lambda rows, name: None)
        reference = parse(_REFERENCE)
        self.trainer = RlTrainer(
            model,
            self.tokenizer,
            [Task(f"prompt/{n}", ids, reference) for n, ids in enumerate(self.prompts)],
            config,
            ModelConfig(source=spec["model"]),
            folder=folder,
            fingerprint="benchmark",
            observer=nothing,
            algorithm=_Graded(config, self.tokenizer),
        )
        if not work.stops:
            self.trainer.engine = None  # type: ignore[assignment]  # its memory first, then the one that never stops
            self.trainer.engine = TransformersEngine.copy_of(
                self.trainer.model, dtype=torch.bfloat16, stop_ids=frozenset(), pad_id=self.tokenizer.pad_token_id
            )
        self.model = self.trainer.model
        self.clock, self.count, self.memory = Clock(device), TokenCount(self.model), PeakMemory(device)
        self.clock.around(self.trainer.engine, "generate", "rollout")
        self.clock.around(self.trainer.engine, "synchronise", "synchronise")
        self.clock.around(self.trainer.update, "run", "update.run")
        self.clock.around(self.trainer.optimizer, "step", "optimizer")
        self.clock.around(self.trainer.accelerator, "clip_grad_norm_", "optimizer")
        self._step = 0

    def step(self) -> dict[str, Any]:
        self._step += 1
        self.clock.reset()
        self.count.reset()
        self.memory.begin()
        compiled = compilation()
        begin, processor = self.clock.now(), time.process_time()
        metrics = self.trainer.train_step(self._step)
        wall = self.clock.now() - begin
        if metrics["tokens/trained"] != metrics["tokens/generated"]:
            raise RuntimeError(f"only {metrics['tokens/trained']:.0f} tokens of the step were trained")
        seconds = self.clock.seconds
        phases = {
            "rollout": seconds["rollout"],
            "reward": metrics["seconds/reward"],
            "update": seconds["update.run"] - seconds["optimizer"],
            "optimizer": seconds["optimizer"],
            "synchronise": seconds["synchronise"],
        }
        generated = int(metrics["tokens/generated"])
        return {
            "wall": wall,
            "cpu": time.process_time() - processor,
            "phases": phases | {"other": wall - sum(phases.values())},
            "generated": generated,
            "body_tokens": self.count.body,
            # A fused head is no call of the head's module: it runs on the trained positions.
            "head_tokens": self.count.head or generated,
            "memory": self.memory.end(),
            "compilation": {name: value - compiled[name] for name, value in compilation().items()},  # in all phases
            "check": {"loss": metrics["loss"], "grad_norm": metrics.get("grad_norm")},
        }
