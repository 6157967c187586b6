"""One side in a process of its own, so that peak memory and caches are its own.

    python -m stepbench.child SPEC

The process writes a line of JSON when the side is loaded and for each line `step` that it reads; it exits when its
input ends. What libraries write to standard output goes to standard error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from rest_core.algorithm.rest import ResT
from rest_core.config import ModelConfig, RlConfig
from rest_core.response import parse
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task

from .work import Work, conversation, encode, model_of, tokenizer_of

_PEAK = "/proc/self/clear_refs"
_REFERENCE = '<tool_call>\n{"name": "weather_now", "parameters": {"place": "Paris", "day": "now"}}\n</tool_call>'


class Meter:
    """What a step costs: seconds by phase, processor seconds and peak memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.exact = os.access(_PEAK, os.W_OK)  # the kernel lets a process reset the peak of its resident set
        self.around(torch.optim.AdamW, "step", "optimizer")
        self.around(Accelerator, "clip_grad_norm_", "optimizer")

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def around(self, owner: Any, method: str, phase: str) -> None:
        """Count the time of a method, of an object or of a class, as `phase`."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[phase] += self.now() - begin

        setattr(owner, method, timed)

    def begin(self) -> None:
        self.seconds.clear()
        if self.exact:
            Path(_PEAK).write_text("5")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._begin, self._processor = self.now(), time.process_time()

    def end(self, phases: dict[str, float], generated: float, computed: float) -> dict[str, Any]:
        """The figures of the step; `computed` are the tokens in the forward passes of its update."""
        wall, cpu, memory = self.now() - self._begin, time.process_time() - self._processor, {"rss": peak_rss()}
        if self.device.type == "cuda":
            memory["gpu_allocated"] = torch.cuda.max_memory_allocated(self.device)
            memory["gpu_reserved"] = torch.cuda.max_memory_reserved(self.device)
        phases["other"] = wall - sum(phases.values())
        tokens = {"generated": generated, "body_tokens": computed}
        return tokens | {"wall": wall, "cpu": cpu, "phases": phases, "memory": memory}


def peak_rss() -> int:
    """Bytes of the largest resident set since it was reset, else since the process began; on a Mac what it is now."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else "")
    return int(found[1]) * 1024 if found else psutil.Process().memory_info().rss


class Side:
    """What every side starts from. `settings` are fields of its configuration beside those that the work fixes."""

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        self.settings, self.rounds, self.directory = spec["settings"], spec["rounds"], str(directory)
        self.device, self.work = torch.device(spec["device"]), Work(**spec["work"])
        self.tokenizer = tokenizer_of(spec["model"], spec["tokenizer"])
        self.messages = [conversation(self.tokenizer, n, self.work.prompt_tokens) for n in range(self.work.prompts)]
        self.prompts = [encode(self.tokenizer, messages) for messages in self.messages]
        self.model = model_of(spec["model"], self.tokenizer)
        self.meter = Meter(self.device)


class _Graded(ResT):
    """ResT with advantages by the response's place in its group, so that no group is without a signal."""

    def advantages(self, rewards: torch.Tensor, everyone: torch.Tensor | None = None) -> torch.Tensor:
        return super().advantages(torch.arange(rewards.shape[1]).expand(rewards.shape).to(rewards))


class Ours(Side):
    """The step that `RlTrainer.train` runs."""

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        super().__init__(spec, directory)
        work, tokenizer, reference = self.work, self.tokenizer, parse(_REFERENCE)
        sizes = {"prompts_per_step": work.prompts, "group_size": work.group, "max_response_tokens": work.new_tokens}
        rest = {"learning_rate": 1e-6, "reward_probe_prompts": 0, "table_every": 10**9}
        config = RlConfig(steps=self.rounds, **sizes, **rest, **self.settings)
        tasks = [Task(f"prompt/{n}", ids, reference) for n, ids in enumerate(self.prompts)]
        more = {"folder": directory, "fingerprint": "benchmark", "algorithm": _Graded(config, tokenizer)}
        nothing = Observer(metrics=lambda metrics, step: None, table=lambda rows, name: None)
        self.trainer = RlTrainer(self.model, tokenizer, tasks, config, ModelConfig(), observer=nothing, **more)
        if not work.stops:  # an engine whose responses never stop before the wanted length
            dtype = next(self.trainer.engine.model.parameters()).dtype
            self.trainer.engine = None  # frees its memory
            stops = {"stop_ids": frozenset(), "pad_id": tokenizer.pad_token_id}
            self.trainer.engine = TransformersEngine.copy_of(self.trainer.model, dtype=dtype, **stops)
        self.meter.around(self.trainer.engine, "generate", "rollout")
        self.meter.around(self.trainer.engine, "synchronise", "synchronise")
        self.meter.around(self.trainer.update, "run", "update")

    def run(self, wanted: Callable[[], bool], report: Callable[[dict[str, Any]], None]) -> None:
        number = 0
        while wanted():
            number += 1
            self.meter.begin()
            metrics = self.trainer.train_step(number)
            if metrics["tokens/trained"] != metrics["tokens/generated"]:
                raise RuntimeError(f"only {metrics['tokens/trained']:.0f} tokens of the step were trained")
            seconds = self.meter.seconds
            phases = {name: seconds[name] for name in ("rollout", "optimizer", "synchronise")}
            phases |= {"reward": metrics["seconds/reward"], "update": seconds["update"] - seconds["optimizer"]}
            step = self.meter.end(phases, metrics["tokens/generated"], metrics["tokens/computed"])
            report(step | {"check": {name: metrics[name] for name in ("loss", "grad_norm")}})


class Trl(Side):
    """`GRPOTrainer.train()` itself, held by a callback before each step until the next one is wanted."""

    def __init__(self, spec: dict[str, Any], directory: Path) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        super().__init__(spec, directory)
        work, settings = self.work, self.settings
        micro = min(settings.pop("per_device_train_batch_size", 8), work.responses)  # 8: TRL's default
        settings |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": work.responses // micro}
        settings |= {"num_generations": work.group, "max_completion_length": work.new_tokens, "learning_rate": 1e-6}
        settings |= {"generation_kwargs": {"min_new_tokens": work.new_tokens}, "max_steps": self.rounds}
        settings |= {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
        settings |= {"shuffle_dataset": False}  # so that every step has the same prompts
        arguments = GRPOConfig(self.directory, use_cpu=self.device.type == "cpu", **settings)
        rows = Dataset.from_list([{"prompt": one} for one in self.messages] * (self.rounds + 1))
        self.trainer = GRPOTrainer(self.model, self._reward, arguments, rows, processing_class=self.tokenizer)
        self.meter.around(self.trainer, "_generate_single_turn", "rollout")
        self.meter.around(self.trainer, "_generate_and_score_completions", "experience")
        self.meter.around(self.trainer, "training_step", "training_step")

    def _reward(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """The response's place in its group: no group is without a signal."""
        self.generated = sum(map(len, completion_ids))
        return [float(n % self.work.group) for n in range(len(completion_ids))]

    def run(self, wanted: Callable[[], bool], report: Callable[[dict[str, Any]], None]) -> None:
        from transformers import TrainerCallback

        class Held(TrainerCallback):
            def on_step_begin(held, *args: Any, **kwargs: Any) -> None:
                if not wanted():
                    sys.exit()
                self.meter.begin()

            def on_step_end(held, *args: Any, **kwargs: Any) -> None:
                seconds, work = self.meter.seconds, self.work
                phases = {name: seconds[name] for name in ("rollout", "optimizer")}
                phases["reward"] = seconds["experience"] - seconds["rollout"]
                phases["update"] = seconds["training_step"] - seconds["experience"]
                computed = work.responses * (work.prompt_tokens + work.new_tokens)  # a prompt before each response
                report(self.meter.end(phases, self.generated, computed))

        self.trainer.add_callback(Held())
        self.trainer.train()


def count(model: Any) -> dict[str, int]:
    """Parameters of `body` and `head` (an embedding that is not the head is a lookup and in neither), and `kv_bytes`:
    those of the keys and values that a cached token takes over all layers, in bf16.
    """
    config, head, table = model.config, model.get_output_embeddings().weight, model.get_input_embeddings().weight
    others = sum(parameter.numel() for parameter in model.parameters() if parameter is not head)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * width
    return {"body": others - (0 if head is table else table.numel()), "head": head.numel(), "kv_bytes": kv}


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])

    def answer(message: dict[str, Any]) -> None:
        if spec["device"] == "cuda":
            torch.cuda.empty_cache()  # leaves memory that is not in use to the other side, which is next
        os.write(answers, (json.dumps(message) + "\n").encode())

    with tempfile.TemporaryDirectory() as directory:
        side = (Ours if spec["side"] == "ours" else Trl)(spec, Path(directory))
        prompts = hashlib.sha256(json.dumps(side.prompts).encode()).hexdigest()
        answer({"prompts": prompts, "rss_exact": side.meter.exact, "parameters": count(side.model)})
        side.run(lambda: sys.stdin.readline().strip() == "step", answer)


if __name__ == "__main__":
    main()
