"""The RL loop: rollouts → rewards → weights → update, step by step, resumable at every checkpoint.

All randomness of a step is derived from the seed and the step's number (`rest_core.seeds`), so that a training which
resumes from a checkpoint continues exactly as if it had not been stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from rest_core.algorithm.rest import ResT
from rest_core.config import ModelConfig, RlConfig
from rest_core.errors import Preempted, UserError
from rest_core.memory import keep_freed_memory
from rest_core.model.precision import compute_dtype
from rest_core.rollout.engine import Engine
from rest_core.seeds import derive, seed_everything
from rest_core.styles.few_calls import FEW, FEW_CALLS
from rest_core.training.checkpoint import Best, TrainingState
from rest_core.training.checks import check, identity
from rest_core.training.distributed import create_accelerator, gather_lists
from rest_core.training.experience import make_experience
from rest_core.training.groups import Judge
from rest_core.training.metrics import completions, function_metrics, resampling_metrics, step_metrics
from rest_core.training.probe import Probe
from rest_core.training.progress import Observer, Progress
from rest_core.training.sampling import Sampler, finite_logits, resample, timed
from rest_core.training.schedule import Schedule
from rest_core.training.setup import set_up
from rest_core.training.stop import GraceOver, Stopper, StopRequested
from rest_core.training.tasks import Task, prompt_lengths

log = logging.getLogger(__name__)


class RlTrainer:
    """Trains `model` (float32, in place) on `tasks`.

    Args:
        model: causal language model in float32, the master weights.
        tasks: the training prompts, in a fixed order.
        folder: where checkpoints and tables of completions go.
        fingerprint: what else decides the result (hash of the data, the model's source …).
        validation: held-out prompts that task accuracy and reward are measured on.
        algorithm: what judges and weighs responses; by default ResT as `config` has it.
        mirror: where else checkpoints go; None = as `config` has it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tasks: Sequence[Task],
        config: RlConfig,
        model_config: ModelConfig,
        *,
        folder: Path,
        fingerprint: str,
        observer: Observer,
        validation: Sequence[Task] = (),
        algorithm: ResT | None = None,
        mirror: str | None = None,
    ) -> None:
        self.config = config
        check(config, prompt_lengths(tasks), held_out=prompt_lengths(validation))
        keep_freed_memory()
        dtype = compute_dtype(model_config)
        self.accelerator = create_accelerator(half=dtype is torch.bfloat16)
        main, gather = self.accelerator.is_main_process, partial(gather_lists, self.accelerator)
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        self._main, self._gather = main, gather
        self._stop = Stopper(config.grace_seconds, alone=processes == 1)
        torch.manual_seed(derive(config.seed, "init"))
        self.model, engine, self.update = set_up(
            model,
            tokenizer,
            config,
            self.accelerator,
            dtype=dtype,
            max_tokens=max(prompt_lengths((*tasks, *validation))) + config.max_response_tokens,
            before_update=self._stop.hold,
        )
        self.optimizer = self.update.optimizer
        self.algorithm = algorithm or ResT(config, tokenizer)
        self.schedule = Schedule(config, len(tasks), process, processes)
        judge = Judge(self.algorithm, config, gather=gather, main=main)
        self.sampler = Sampler(engine, judge, tasks, self.schedule, main=main)
        self.probe = Probe(self.sampler, validation, self.algorithm, gather)
        training = identity(fingerprint, model_config, config)
        self.progress = Progress(
            folder, observer, training=training, keep=config.keep_checkpoints, mirror=mirror or config.mirror
        )
        self.state: TrainingState | None = None  # that of the last step's end
        self._warned_of_few_calls = False

    @property
    def engine(self) -> Engine:
        """What samples the responses; another one may be put in its place."""
        return self.sampler.engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self.sampler.engine = engine

    def train(self) -> dict[str, float]:
        """Run all steps that are left; returns reward and task accuracy, and totals.

        Raises:
            Preempted: SIGTERM or SIGINT has come; there is a checkpoint to resume from.
            UserError: something that the user can mend; it names the last good checkpoint.
        """
        with self._stop:
            try:
                self.state = self._resume()
                try:
                    self._run()
                    return self._finish()
                except UserError as error:
                    raise UserError(f"{error}; {self.progress.last_good}") from error.__cause__
            except StopRequested:
                with self._stop.shielded():
                    self._leave()
            except GraceOver:
                raise Preempted(
                    f"what was begun did not end within {self.config.grace_seconds:g} s (rl.grace_seconds); "
                    f"{self.progress.last_good}, and what came after it is done again"
                ) from None

    def _run(self) -> None:
        config, state = self.config, self.state
        if state is None:
            with self._stop.at_once():
                before = self.probe.rewards()
            entropy = self.algorithm.entropy.state()
            state = self.state = TrainingState(step=0, rewards_before=before, region_entropy=entropy)
        hidden = None if self._main else True  # None: hidden where there is no terminal
        with tqdm(total=config.steps, initial=state.step, desc="rest-rl", unit="step", disable=hidden) as bar:
            while True:
                if self.probe.accuracy_is_due(state.step) and state.evaluated != state.step:
                    state = self.state = self._evaluate(state)
                best = state.best is not None and state.best.step == state.step
                if state.step % config.checkpoint_every == 0 or state.step == config.steps or best:
                    self._save(state)
                self._stop.agree(self._gather)
                if state.step == config.steps:
                    break
                step = state.step + 1
                with self._stop.at_once():
                    metrics = self.train_step(step)
                changes = {
                    "step": step,
                    "version": self.update.version,
                    "learning_rate": self.update.learning_rate,
                    "region_entropy": self.algorithm.entropy.state(),
                }
                state = self.state = state.model_copy(update=changes)
                self.progress.record(metrics, step)
                bar.set_postfix(reward=f"{metrics['reward/total']:.2f}", len=f"{metrics['response/tokens']:.0f}")
                bar.update()

    def train_step(self, step: int) -> dict[str, float]:
        """Sample, judge, weigh and update; returns the step's metrics."""
        config, gather, process = self.config, self._gather, self.schedule.process
        seconds: dict[str, float] = {}
        seed_everything(derive(config.seed, "update", step))
        self.progress.observer.phase("rollout", step)
        places = self.schedule.places
        groups = self.sampler.groups(step, 0, places, seconds)
        resampled = resample(
            groups,
            config.resample_rounds,
            lambda number, wanting: self.sampler.groups(step, number, [places[n] for n in wanting], seconds),
            gather,
        )
        with timed(seconds, "seconds/reward"), finite_logits(f"step {step}: entropies", self.update.version):
            experience = make_experience(
                groups, self.algorithm, step, entropies=self.update.entropies, gather=gather, process=process
            )
        self.progress.observer.phase("update", step)
        with timed(seconds, "seconds/update"), finite_logits(f"step {step}: update", self.update.version):
            statistics = self.update.run(experience)
            self.engine.synchronise(self.model, self.update.version)
        self._stop.hold()
        everyone = gather([statistics])
        statistics.merge([other for n, other in enumerate(everyone) if n != process])
        step_entropy = self.algorithm.observe(statistics.entropy_sums, statistics.entropy_counts)
        if step % config.table_every == 0 or step == 1:
            self.progress.record_table(completions(groups, step), step)
        metrics = step_metrics(groups, experience, step_entropy, resampled, seconds, gather)
        metrics |= statistics.metrics() | {"learning_rate": self.update.learning_rate}
        if metrics.get("response/call_share", 1.0) < FEW and self._main and not self._warned_of_few_calls:
            log.warning("step %d: %s", step, FEW_CALLS)
            self._warned_of_few_calls = True
        if config.resample_rounds:
            metrics |= resampling_metrics(resampled, gather)
        if config.reward_functions:
            metrics |= function_metrics(groups, gather)
        return metrics

    def _evaluate(self, state: TrainingState) -> TrainingState:
        """Measure task accuracy on held-out prompts; the state with the result."""
        self.progress.observer.phase("evaluate", state.step)
        seconds: dict[str, float] = {}
        with self._stop.at_once(), timed(seconds, "seconds/evaluate"):
            found = self.probe.task_accuracy()
        self.progress.record({f"task/{name}": value for name, value in found.items()} | seconds, state.step)
        best = state.best
        if best is None or found["accuracy"] > best.accuracy:
            best = Best(step=state.step, accuracy=found["accuracy"])
        last = {name: value for name, value in found.items() if name.endswith("accuracy")}
        return state.model_copy(update={"evaluated": state.step, "last": last, "best": best})

    def _finish(self) -> dict[str, float]:
        assert self.state is not None
        state = self.state
        result = {"rl/steps": float(self.config.steps), "rl/updates": float(self.update.version)}
        if state.evaluated == state.step:
            result |= {f"task/last/{name}": value for name, value in state.last.items()}
        if state.best is not None:
            result |= {"rl/best_step": float(state.best.step), "task/best": state.best.accuracy}
            if self.config.final == "best" and state.best.step != state.step:
                log.info("handing on the weights after step %d, the best on the task", state.best.step)
                self.progress.load_best(state.best.step, self.model)
                self.engine.synchronise(self.model, self.update.version)
        with self._stop.at_once():
            after = self.probe.rewards()
        if state.rewards_before is not None and after is not None:
            result |= self.probe.change(state.rewards_before, after)
        return result | self.progress.finish(state)

    def _resume(self) -> TrainingState | None:
        """Resume from the newest checkpoint; None without one."""
        state = self.progress.resume(self.model, self.optimizer)
        if state is not None:
            self.update.resume(state.version, state.learning_rate)
            self.algorithm.entropy.load_state(state.region_entropy)
            self.engine.synchronise(self.model, state.version)
        return state

    def _save(self, state: TrainingState) -> None:
        self.progress.observer.phase("checkpoint", state.step)
        with self._stop.shielded():
            self.progress.save(state, self.model, self.optimizer)

    def _leave(self) -> NoReturn:
        """Write what there is as a checkpoint; called where memory holds the state of `self.state`."""
        if self.state is None:
            raise self._stop.preempted("nothing had been trained yet; start again")
        self._save(self.state)
        self.progress.leave_mirror(self._stop.seconds_left)
        raise self._stop.preempted(
            f"left after step {self.state.step} of {self.config.steps}; start again to resume from {self.progress.last}"
        )
