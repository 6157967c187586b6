"""TRL's side: `GRPOTrainer.train()` itself, held between its steps by a callback until the next one is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from .measure import Clock, PeakMemory, TokenCount
from .models import model_of, tokenizer_of
from .work import Work, conversations, encode


class Trl:
    """`settings` are fields of `GRPOConfig` beside those that the work fixes; all others keep TRL's defaults."""

    def __init__(self, spec: dict[str, Any], work: Work, device: torch.device, folder: Path) -> None:
        self.work, self.device = work, device
        self.tokenizer = tokenizer_of(spec["model"], spec["tokenizer"])
        messages = conversations(self.tokenizer, work)
        self.prompts = [encode(self.tokenizer, one) for one in messages]
        settings = dict(spec["settings"])
        micro = min(settings.pop("per_device_train_batch_size", 8), work.responses)  # 8: TRL's default
        if work.responses % micro:
            raise ValueError(f"per_device_train_batch_size ({micro}) does not divide {work.responses} responses")
        settings["generation_kwargs"] = {"min_new_tokens": work.new_tokens} | settings.pop("generation_kwargs", {})
        arguments = GRPOConfig(
            output_dir=str(folder),
            use_cpu=device.type == "cpu",
            max_steps=spec["rounds"],
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=work.responses // micro,
            num_generations=work.group,
            max_completion_length=work.new_tokens,
            learning_rate=1e-6,
            shuffle_dataset=False,  # so that every step has the same prompts
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        rows = [{"prompt": messages[n % work.prompts]} for n in range(work.prompts * (spec["rounds"] + 1))]
        self.trainer = GRPOTrainer(
            model=model_of(spec["model"], self.tokenizer),
            reward_funcs=self._reward,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        self.model = self.trainer.model
        self.clock, self.count, self.memory = Clock(device), TokenCount(self.model), PeakMemory(device)
        self.clock.around(self.trainer, "_generate_single_turn", "rollout")
        self.clock.around(self.trainer, "_calculate_rewards", "reward")
        self.clock.around(self.trainer, "_get_per_token_logps_and_entropies", "log-probs")
        self._mark_old_log_probs()
        self.clock.around(self.trainer, "_generate_and_score_completions", "experience")
        self.clock.around(self.trainer, "training_step", "training_step")
        self.clock.around(self.trainer.accelerator, "clip_grad_norm_", "optimizer")
        self.generated = 0
        self.logged: dict[str, Any] = {}

    def _mark_old_log_probs(self) -> None:
        """Log-probs are computed in the loss too: those before its first call were a pass for old log-probs."""
        inner = self.trainer._generate_and_score_completions

        def marked(*args: Any, **kwargs: Any) -> Any:
            made = inner(*args, **kwargs)
            self.clock.seconds["old log-probs"] = self.clock.seconds["log-probs"]
            return made

        self.trainer._generate_and_score_completions = marked

    def _reward(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """The response's place in its group: no group is ever without a signal."""
        self.generated = sum(map(len, completion_ids))
        return [float(n % self.work.group) for n in range(len(completion_ids))]

    def run(self, wait: Callable[[], bool], report: Callable[[dict[str, Any]], None]) -> None:
        """Train; before each step ask `wait` (False: stop), after it hand its figures to `report`."""
        self.trainer.add_callback(_Held(self, wait, report))
        self.trainer.train()

    def begin(self) -> None:
        self.clock.reset()
        self.count.reset()
        self.memory.begin()
        self._begin, self._processor = self.clock.now(), time.process_time()

    def end(self) -> dict[str, Any]:
        wall = self.clock.now() - self._begin
        seconds = self.clock.seconds
        old = seconds["old log-probs"]
        phases = {
            "rollout": seconds["rollout"],
            "reward": seconds["experience"] - seconds["rollout"] - old,
            "old log-probs": old,
            "update": seconds["training_step"] - seconds["experience"],
            "optimizer": seconds["optimizer"],
        }
        return {
            "wall": wall,
            "cpu": time.process_time() - self._processor,
            "phases": phases | {"other": wall - sum(phases.values())},
            "generated": self.generated,
            "body_tokens": self.count.body,
            "head_tokens": self.count.head or self.generated,
            "memory": self.memory.end(),
            "check": {},
        }


class _Held(TrainerCallback):
    def __init__(self, side: Trl, wait: Callable[[], bool], report: Callable[[dict[str, Any]], None]) -> None:
        self.side, self.wait, self.report = side, wait, report

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if not self.wait():
            raise StopTraining
        self.side.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._begin = self.side.clock.now()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.side.clock.seconds["optimizer"] += self.side.clock.now() - self._begin

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.report(self.side.end())


class StopTraining(Exception):
    """The parent has asked for no further step."""
