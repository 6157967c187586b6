"""The RL loop: rollouts → rewards → weights → update, step by step, resumable at every checkpoint.

All randomness of a step is derived from the seed and the step's number (`rest_core.seeds`), so that a training which
is taken up again continues exactly as it would have gone on.
"""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from tqdm import tqdm

from rest_core.algorithm.regions import Region, read_response
from rest_core.algorithm.rest import ResT
from rest_core.algorithm.success import succeeds
from rest_core.config import ModelConfig, RlConfig
from rest_core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, NotFiniteLogits, Preempted, UserError
from rest_core.memory import keep_freed_memory, out_of_memory_names
from rest_core.model.batch import pad_rows
from rest_core.model.loading import with_lora
from rest_core.model.logprobs import Policy
from rest_core.model.precision import compute_dtype
from rest_core.records import Rollout
from rest_core.rollout.create import create_engine
from rest_core.seeds import derive
from rest_core.training.checkpoint import Best, TrainingState
from rest_core.training.distributed import create_accelerator, gather_lists, prepare, prepare_frozen
from rest_core.training.folder import TrainingFolder, on_first
from rest_core.training.judging import Judge, Judged, Task
from rest_core.training.mirror import Mirror
from rest_core.training.report import completions, function_metrics, step_metrics
from rest_core.training.stop import GraceOver, Stopper, StopRequested
from rest_core.training.update import Experience, PolicyUpdate

log = logging.getLogger(__name__)

# What a user changes to get a stopped training going again: a checkpoint is taken up all the same.
_REMEDIES = {
    "engine",
    "learning_rate",
    "max_grad_norm",
    "max_loss",
    "micro_batch_tokens",
    "rollout_batch_tokens",
    "gradient_checkpointing",
    "checkpoint_every",
    "keep_checkpoints",
    "table_every",
    # and what changes nothing in the training itself
    "mirror",
    "grace_seconds",
    "evaluate_every",
    "final",
}


@dataclass(frozen=True)
class Observer:
    """Where the trainer reports to: scalars of a step, and tables of completions.

    A training that is taken up again first reports what had been reported up to its checkpoint.
    """

    metrics: Callable[[dict[str, float], int], None]
    table: Callable[[list[dict[str, Any]], str], None]
    phase: Callable[[str, int], None] = lambda name, step: None  # what is begun: rollout, update, checkpoint …


@dataclass
class Resampled:
    """What the extra rounds of a step came to, of this process."""

    rounds: int = 0
    replaced: int = 0  # groups
    discarded: int = 0  # tokens, of groups that were replaced and of further ones that had no signal either


class RlTrainer:
    """Trains `model` (float32, in place) on `tasks`.

    Args:
        model: causal language model in float32, the master weights.
        tasks: the training prompts, in a fixed order.
        folder: where checkpoints and history go.
        fingerprint: what else decides the result (hash of the data, the model's source …).
        validation: held-out prompts that task accuracy is measured on.
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
        self.config, self.tokenizer, self.tasks, self.observer = config, tokenizer, tasks, observer
        self.validation = validation
        keep_freed_memory()
        half = compute_dtype(model_config) is torch.bfloat16
        self.accelerator = create_accelerator(half=half)
        prompts = [len(task.prompt_ids) for task in tasks]
        asked = prompts + [len(task.prompt_ids) for task in validation]  # of the engine
        _check(config, prompts)
        if config.evaluate_every is not None and not validation:
            raise UserError(
                "rl.evaluate_every is set, but there are no held-out prompts (the dataset's split 'rl_validation' is "
                "empty): prepare the data with a larger data.validation_fraction, or set rl.evaluate_every=null"
            )
        torch.manual_seed(derive(config.seed, "init"))
        reference = None
        if config.loss.kl_coefficient:
            reference = Policy(copy.deepcopy(model).requires_grad_(False).eval()).to(self.accelerator.device)
        if config.lora is not None:
            model = with_lora(model, config.lora)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.to(self.accelerator.device).train()
        self.model = model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.engine = create_engine(
            config.engine,
            model,
            tokenizer,
            dtype=torch.bfloat16 if half else torch.float32,
            max_tokens=max(asked) + config.max_response_tokens,
        )
        # From here on the parameters may be shards: whoever wants whole ones has made its copy.
        policy, self.optimizer = prepare(self.accelerator, Policy(model), optimizer)
        if reference is not None:
            reference = prepare_frozen(self.accelerator, reference)
        self.update = PolicyUpdate(
            policy, self.optimizer, self.accelerator, config, pad_id=tokenizer.pad_token_id, reference=reference
        )
        self.algorithm = algorithm or ResT(config, tokenizer)
        self.judge = Judge(self.algorithm, config, gather=self._gather, main=self.accelerator.is_main_process)
        self.folder = TrainingFolder(
            folder,
            training={
                "inputs": fingerprint,
                "model": model_config.model_dump(mode="json"),
                "rl": config.model_dump(mode="json", exclude=_REMEDIES),
            },
            keep=config.keep_checkpoints,
            mirror=mirror or config.mirror,
        )
        self.state: TrainingState | None = None  # that of the last step's end
        self._stop = Stopper(config.grace_seconds, alone=self.accelerator.num_processes == 1)
        self._told: str | None = None  # the signal that all processes have agreed to stop for
        optimizer.register_step_pre_hook(self._stop.hold)

    def train(self) -> dict[str, float]:
        """Run all steps that are left; returns reward and task accuracy, and totals.

        Raises:
            Preempted: SIGTERM or SIGINT has come; a checkpoint is there to go on from.
            UserError: something that the user can mend.
        """
        with self._stop:
            try:
                self._run()
                return self._finish()
            except StopRequested:
                with self._stop.shielded():
                    self._leave()
            except GraceOver:
                raise Preempted(
                    f"what was begun did not end within {self.config.grace_seconds:g} s (rl.grace_seconds); "
                    f"{self._last_good()}, and what came after it is done again"
                ) from None

    def _run(self) -> None:
        state = self.state = self._resume()
        if state is None:
            with self._stop.at_once():
                before = self.probe()
            state = self.state = TrainingState(
                step=0, reward_before=before, region_entropy=self.algorithm.state()["region_entropy"]
            )
        main = self.accelerator.is_main_process
        with tqdm(
            total=self.config.steps, initial=state.step, desc="rest-rl", unit="step", disable=None if main else True
        ) as bar:
            while True:
                step = state.step
                if self._evaluation_is_due(state):
                    state = self.state = self._evaluated(state)
                best = state.best is not None and state.best.step == step
                if step % self.config.checkpoint_every == 0 or step == self.config.steps or best:
                    self._save()
                self._agree_to_stop()
                if step == self.config.steps:
                    break
                with self._stop.at_once():
                    metrics = self.train_step(step + 1)
                state = self.state = state.model_copy(
                    update={
                        "step": step + 1,
                        "version": self.update.version,
                        "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
                        "region_entropy": self.algorithm.state()["region_entropy"],
                    }
                )
                self._record(metrics, step + 1)
                bar.set_postfix(reward=f"{metrics['reward/total']:.2f}", len=f"{metrics['response/tokens']:.0f}")
                bar.update()

    def _finish(self) -> dict[str, float]:
        assert self.state is not None
        state = self.state
        result = {"rl/steps": float(self.config.steps), "rl/updates": float(self.update.version)}
        if state.best is not None:
            result |= {"rl/best_step": float(state.best.step), "task/best": state.best.accuracy}
            if self.config.final == "best" and state.best.step != state.step:
                log.info("handing on the weights after step %d, the best on the task", state.best.step)
                self.folder.load_weights(state.best.step, self.model)
                self.engine.synchronise(self.model, self.update.version)
        with self._stop.at_once():
            after = self.probe()
        if state.reward_before is not None and after is not None:
            result |= {"reward/before": state.reward_before, "reward/after": after}
        timed = [entry for entry in self.folder.history.entries if "seconds/step" in entry]
        if timed:
            seconds = sum(entry["seconds/step"] for entry in timed)
            result["rl/tokens_per_second"] = sum(entry["tokens/generated"] for entry in timed) / seconds
        if (mirror := self.folder.mirror) is not None:
            on_first(lambda: self._wait_for_mirror(mirror, state))
            result["checkpoint/mirror_failures"] = float(mirror.failures)
        return result

    def _wait_for_mirror(self, mirror: Mirror, state: TrainingState) -> None:
        mirror.retry(state.model_copy(update={"tables": dict(self.folder.history.tables)}))
        mirror.close()

    def _evaluation_is_due(self, state: TrainingState) -> bool:
        every = self.config.evaluate_every
        if every is None or state.evaluated == state.step:
            return False
        return state.step % every == 0 or state.step == self.config.steps

    def _evaluated(self, state: TrainingState) -> TrainingState:
        """Measure the policy on held-out prompts; the state with the result."""
        self.observer.phase("evaluate", state.step)
        seconds: dict[str, float] = {}
        with self._stop.at_once(), _timed(seconds, "seconds/evaluate"):
            accuracy, tokens = self.evaluate()
        self._record({"task/accuracy": accuracy, "task/response_tokens": tokens, **seconds}, state.step)
        best = state.best
        if best is None or accuracy > best.accuracy:
            best = Best(step=state.step, accuracy=accuracy)
        return state.model_copy(update={"evaluated": state.step, "best": best})

    def evaluate(self) -> tuple[float, float]:
        """Share of held-out prompts whose most likely response does the task exactly, and mean tokens a response.

        What counts is `rest_core.algorithm.success`, never the reward.
        """
        order = torch.randperm(
            len(self.validation), generator=torch.Generator().manual_seed(derive(self.config.seed, "evaluation"))
        ).tolist()
        chosen = sorted(order[: self.config.evaluate_prompts])
        mine = chosen[self.accelerator.process_index :: self.accelerator.num_processes]
        tasks = [self.validation[n] for n in mine]
        groups = self._rollouts(tasks, None, "evaluation") if tasks else []
        outcomes = [
            (
                succeeds(read_response(rollout.response_ids, self.tokenizer)[0], task.reference),
                len(rollout.response_ids),
            )
            for task, (rollout,) in zip(tasks, groups, strict=True)
        ]
        every = self._gather(outcomes)
        return sum(success for success, _ in every) / len(every), sum(tokens for _, tokens in every) / len(every)

    def _record(self, metrics: dict[str, float], step: int) -> None:
        if self.accelerator.is_main_process:
            if self.folder.mirror is not None:
                metrics = {**metrics, "checkpoint/mirror_failures": float(self.folder.mirror.failures)}
            self.folder.record(metrics, step)
            self.observer.metrics(metrics, step)

    def _record_table(self, rows: list[dict[str, Any]], step: int) -> None:
        if self.accelerator.is_main_process:
            self.folder.record_table(rows, step)
            self.observer.table(rows, f"completions_step_{step:06d}")

    def _agree_to_stop(self) -> None:
        """Leave, all processes together, when any has been told to stop."""
        told = [name for name in self._gather([self._stop.signal and self._stop.signal.name]) if name]
        if told:
            self._told = told[0]
            raise StopRequested

    def _leave(self) -> NoReturn:
        """Write what there is as a checkpoint; called where memory holds the state of `self.state`."""
        told = self._told or (self._stop.signal.name if self._stop.signal is not None else "a signal")
        exit_code = EXIT_INTERRUPTED if told == "SIGINT" else EXIT_PREEMPTED
        if self.state is None:
            raise Preempted(f"{told}: nothing had been trained yet; start again", exit_code=exit_code)
        self._save()
        if self.folder.mirror is not None and self.accelerator.is_main_process:
            try:
                self.folder.mirror.close(timeout=self._stop.seconds_left)
            except UserError as error:
                log.error("%s", error)
        raise Preempted(
            f"{told}: left after step {self.state.step} of {self.config.steps}; "
            f"start again to go on from {self.folder.last}",
            exit_code=exit_code,
        )

    def probe(self) -> float | None:
        """Mean reward of sampled responses to the prompts that are trained first, on the ranges of the last step.

        The same prompts, the same random numbers and the same reward before and after, so that the two can be
        compared.
        """
        count = min(self.config.reward_probe_prompts, len(self.tasks))
        if not count:
            return None
        mine = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        tasks = [self.tasks[n] for n in self._visited(mine)]
        rollouts = self._rollouts(tasks, [derive(self.config.seed, "probe", n) for n in mine], "reward probe")
        judged = self._judge(tasks, rollouts, self.config.steps, "reward probe")
        gathered = self._gather(judged.rewards[~judged.dropped].reshape(-1).tolist())
        return sum(gathered) / len(gathered)

    def train_step(self, step: int) -> dict[str, float]:
        seconds: dict[str, float] = {}
        _seed_everything(derive(self.config.seed, "update", step))
        self.observer.phase("rollout", step)
        tasks, groups, judged = self._sample(step, 0, self._places(), seconds)
        resampled = self._resample(step, tasks, groups, judged, seconds)
        with _timed(seconds, "seconds/reward"), self._finite_logits(f"step {step}: entropies"):
            experience = self._experience(groups, judged, step)
        self.observer.phase("update", step)
        with _timed(seconds, "seconds/update"), self._finite_logits(f"step {step}: update"):
            statistics = self.update.run(experience, self._last_good())
            self.engine.synchronise(self.model, self.update.version)
        self._stop.hold()
        everyone = self._gather([statistics])
        statistics.merge([other for n, other in enumerate(everyone) if n != self.accelerator.process_index])
        step_entropy = self.algorithm.observe(statistics.entropy_sums, statistics.entropy_counts)
        if step % self.config.table_every == 0 or step == 1:
            self._record_table(completions(tasks, groups, judged, step), step)
        metrics = (
            step_metrics(judged, experience, step_entropy, seconds, self._gather, discarded=resampled.discarded)
            | statistics.metrics()
        )
        if self.config.resample_rounds:
            replaced, discarded = (sum(self._gather([n])) for n in (resampled.replaced, resampled.discarded))
            metrics |= {"resample/rounds": float(resampled.rounds), "resample/replaced_groups": float(replaced)}
            metrics["tokens/discarded"] = float(discarded)
        metrics["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        if self.config.reward_functions:
            metrics |= function_metrics(judged, self._gather)
        return metrics

    def _sample(
        self, step: int, number: int, places: Sequence[int], seconds: dict[str, float]
    ) -> tuple[list[Task], list[list[Rollout]], Judged]:
        """Round `number` of a step, 0 or one of its extra rounds: judged groups for `places` of its list of prompts."""
        extra = [number] if number else []
        where = f"step {step}, extra round {number}" if number else f"step {step}"
        tasks = [self.tasks[n] for n in self._positions(step, places, number)]
        seeds = [derive(self.config.seed, "rollout", step, place, *extra) for place in places]
        with _timed(seconds, "seconds/rollout"):
            groups = self._rollouts(tasks, seeds, f"{where}: rollout") if tasks else []
        with _timed(seconds, "seconds/reward"):
            judged = self._judge(tasks, groups, step, where, spare=number > 0)
        return tasks, groups, judged

    def _resample(
        self,
        step: int,
        tasks: list[Task],
        groups: list[list[Rollout]],
        judged: Judged,
        seconds: dict[str, float],
    ) -> Resampled:
        """Replace groups without signal by such of further prompts that have one, in the lists that are given.

        A place of the step's list of prompts is filled by the process that it belongs to, with prompts and random
        numbers that follow from step, round and place alone. So nothing of it has to be stored for a resume, and the
        result does not depend on the number of processes.
        """
        done = Resampled()
        places, masked = self._places(), self.config.mask_truncated
        for number in range(1, self.config.resample_rounds + 1):
            wanting = [n for n, found in enumerate(judged.with_signal(groups, mask_truncated=masked)) if not found]
            if not sum(self._gather([len(wanting)])):  # of all processes: rounds are collectives
                break
            done.rounds = number
            others = self._sample(step, number, [places[n] for n in wanting], seconds)
            found = others[2].with_signal(others[1], mask_truncated=masked)
            for n, here in enumerate(wanting):
                left = groups[here] if found[n] else others[1][n]
                done.discarded += sum(len(rollout.response_ids) for rollout in left)
                if found[n]:
                    done.replaced += 1
                    tasks[here], groups[here] = others[0][n], others[1][n]
                    judged.exchange(here, others[2], n)
        return done

    def _experience(self, groups: list[list[Rollout]], judged: Judged, step: int) -> Experience:
        """This process's rollouts with their weights.

        Weights are made of the rollouts of all processes at once, before any split: schemes that compare tokens with
        the rest of the rollout give the same on any number of processes.
        """
        rollouts = [rollout for group in groups for rollout in group]
        dropped = judged.untrained(groups, mask_truncated=self.config.mask_truncated).reshape(-1)  # (B,)
        own = [
            (rollout.response_ids, judgement.regions.tolist(), gone)
            for rollout, judgement, gone in zip(
                rollouts, chain.from_iterable(judged.judgements), dropped.tolist(), strict=True
            )
        ]
        every = self._gather(own)  # in the order of the processes
        width = max(len(row[0]) for row in every)
        mask = pad_rows([[1] * len(row[0]) for row in every], width, torch.bool)
        ids = pad_rows([row[0] for row in every], width, torch.int64)
        regions = pad_rows([row[1] for row in every], width, torch.int64, Region.OTHER)
        compared = mask & ~torch.tensor([row[2] for row in every])[:, None]  # dropped rows are compared with nothing
        entropies = None
        if self.algorithm.wants_entropies(regions, compared):
            entropies = pad_rows(self._sampling_entropies(rollouts), width, torch.float32)
        weights = self.algorithm.weights(ids, regions, compared, entropies, step)
        start = sum(self._gather([len(own)])[: self.accelerator.process_index])
        mine = slice(start, start + len(own))
        everyone = torch.tensor(self._gather(judged.rewards[~judged.dropped].tolist()), dtype=torch.float64)  # (P', G)
        return Experience(
            rollouts=rollouts,
            advantages=self.algorithm.advantages(judged.rewards, everyone).reshape(-1).float(),  # 0 in a dropped group
            regions=regions[mine],
            mask=mask[mine],
            weights=weights[mine],
            dropped=dropped,
        )

    def _sampling_entropies(self, rollouts: list[Rollout]) -> list[list[float]]:
        """Entropies (nats) of the sampling policy at every token of all processes' rollouts, computed where needed."""
        own = [rollout.entropies for rollout in rollouts]
        if any(self._gather([values is None for values in own])):  # the same answer on every process: a forward meets
            return self._gather(self.update.entropies(rollouts))
        return self._gather(own)

    def _rollouts(self, tasks: Sequence[Task], seeds: Sequence[int] | None, what: str) -> list[list[Rollout]]:
        """A group of sampled responses to each task; without seeds the most likely response alone."""
        config = self.config
        samples, temperature = (1, 0.0) if seeds is None else (config.group_size, config.temperature)
        main = self.accelerator.is_main_process
        longest = max((len(task.prompt_ids) for task in tasks), default=0)
        asked = len(tasks) * (longest + samples * config.max_response_tokens)
        with (
            self._finite_logits(what),
            out_of_memory_names(
                "rl.rollout_batch_tokens", config.rollout_batch_tokens, min(asked, config.rollout_batch_tokens)
            ),
            tqdm(
                total=len(tasks) * samples,
                desc=what,
                unit="response",
                leave=False,
                disable=None if main else True,
            ) as bar,
        ):
            return self.engine.generate(
                [task.prompt_ids for task in tasks],
                samples=samples,
                max_new_tokens=config.max_response_tokens,
                temperature=temperature,
                batch_tokens=config.rollout_batch_tokens,
                seeds=seeds,
                on_progress=bar.update,
            )

    @contextmanager
    def _finite_logits(self, what: str) -> Iterator[None]:
        """Logits that are none are told with `what` was computed, the likely cause and where to go back to."""
        try:
            yield
        except NotFiniteLogits:
            cause = (
                "it has diverged: lower rl.learning_rate or rl.max_grad_norm"
                if self.update.version
                else "it was so before the first update: take another policy, or set model.dtype=float32"
            )
            told = f"{what}: the policy's logits are NaN or infinite; {cause}; {self._last_good()}"
            raise UserError(told) from None

    def _places(self) -> range:
        """Places in the step's list of prompts that belong to this process."""
        return range(self.accelerator.process_index, self.config.prompts_per_step, self.accelerator.num_processes)

    def _positions(self, step: int, places: Sequence[int], number: int = 0) -> list[int]:
        """Indices of the tasks at `places` of a step, in round `number`; extra rounds come after all planned visits."""
        rounds = self.config.resample_rounds
        before = self.config.steps + (step - 1) * rounds + number - 1 if number else step - 1
        return self._visited(before * self.config.prompts_per_step + place for place in places)

    def _visited(self, numbers: Iterable[int]) -> list[int]:
        """Indices of the tasks that are visited as number n, counted from 0: seeded permutations without end."""
        orders: dict[int, list[int]] = {}
        visited = []
        for number in numbers:
            epoch, place = divmod(number, len(self.tasks))
            if epoch not in orders:
                generator = torch.Generator().manual_seed(derive(self.config.seed, "order", epoch))
                orders[epoch] = torch.randperm(len(self.tasks), generator=generator).tolist()
            visited.append(orders[epoch][place])
        return visited

    def _judge(
        self, tasks: Sequence[Task], groups: list[list[Rollout]], step: int, where: str, *, spare: bool = False
    ) -> Judged:
        return self.judge(tasks, groups, step, where=where, last_good=self._last_good(), spare=spare)

    def _gather(self, values: list[Any]) -> list[Any]:
        return gather_lists(self.accelerator, values)

    def _save(self) -> None:
        assert self.state is not None
        self.observer.phase("checkpoint", self.state.step)
        with self._stop.shielded():
            self.folder.save(self.state, self.model, self.optimizer)

    def _resume(self) -> TrainingState | None:
        """Take up the newest checkpoint, and report again what had been logged up to it; None without one."""
        state = self.folder.resume(self.model, self.optimizer)
        if state is None:
            return None
        self.update.version = state.version
        self.algorithm.load_state({"region_entropy": state.region_entropy})
        if state.learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = state.learning_rate
        self.engine.synchronise(self.model, state.version)
        log.info("going on after step %d (%s)", state.step, self.folder.last)
        if self.accelerator.is_main_process:
            for entry in self.folder.history.entries:
                metrics = dict(entry)
                step = int(metrics.pop("step"))
                self.observer.metrics(metrics, step)
            for name in sorted(self.folder.history.tables):
                self.observer.table(
                    self.folder.history.read_table(name), f"completions_{Path(name).stem.replace('-', '_')}"
                )
        return state

    def _last_good(self) -> str:
        return self.folder.last_good


def _check(config: RlConfig, lengths: Sequence[int]) -> None:
    """Prompts that the settings do not fit are refused.

    Args:
        lengths: tokens of each training prompt.
    """
    if not lengths:
        raise UserError("there are no training prompts: the dataset's split 'rl' is empty")
    longest, response = max(lengths), config.max_response_tokens
    budgets = {  # the least that each budget has to hold at once
        "micro_batch_tokens": ("response", longest + response),
        "rollout_batch_tokens": (f"group of {config.group_size}", longest + config.group_size * response),
    }
    for name, (what, needed) in budgets.items():
        if getattr(config, name) < needed:
            raise UserError(
                f"rl.{name} ({getattr(config, name)}) does not hold one {what}: the longest prompt has {longest} "
                f"tokens, a response up to {response} (rl.max_response_tokens); set rl.{name}={needed} or more"
            )


def _seed_everything(seed: int) -> None:
    """Everything that draws without a generator of its own: dropout, and reward functions that were given to us."""
    torch.manual_seed(seed)  # of all devices
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 (others may use it)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
