"""Does reweighting reduce the variance of the policy gradient? Measured on all parameters, without training.

    python benchmarks/gradient_variance.py --policy FOLDER --dataset FOLDER --out FOLDER [--groups N] [--profile NAME]
    python benchmarks/gradient_variance.py --out FOLDER --report

Responses are sampled once, and judged, as `rest train` does it. Then each group's policy gradient is computed under
each scheme of token weights, from the same forward pass, and kept as a sketch: a linear map to 32,771 numbers that
keeps scalar products (random signs, coordinates added up modulo a prime; a relative error of about 1 %). All figures
come from scalar products of these. What a run has done stands in --out, and is not done again.

Two sketches are kept: of the gradient as it is, and of it in AdamW's scale, each coordinate divided by the root of its
mean square over the groups under `uniform`. AdamW steps by coordinates in this scale, and few coordinates carry most of
the norm of the other.

The last part measures the theory's terms: the squared norm of single tokens' scores, over the parameters, beside
1 - exp(-H) and 1 - Σp², which stand for it in the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence.recorded import PARTS, SCHEMES, UNIFORM, Recorded
from evidence.sketch import Sketch
from evidence.variance import shares, table, tokens_table, without_largest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from stepbench.machine import describe
from torch import Tensor
from tqdm import tqdm

from rest_core.algorithm.regions import Region
from rest_core.algorithm.rest import ResT
from rest_core.config import Config, load
from rest_core.data.store import load_split, to_sample
from rest_core.errors import UserError
from rest_core.model.batch import Batch, Group, shared_batch, shared_passes
from rest_core.model.loading import load_model, load_tokenizer
from rest_core.model.logprobs import Policy
from rest_core.model.precision import compute_dtype
from rest_core.records import Rollout
from rest_core.rollout.create import create_engine
from rest_core.seeds import derive
from rest_core.styles.create import training_style
from rest_core.training.groups import Judge
from rest_core.training.sampling import Sampler
from rest_core.training.schedule import Schedule
from rest_core.training.tasks import make_tasks

ROLLOUTS, TOKENS, SETTINGS, SQUARES = "rollouts.jsonl", "tokens.jsonl", "settings.json", "squares.safetensors"
SKETCHES = "group-*.npy"  # one a group, of (SCALES, SCHEMES, numbers)
SCALES = ("plain", "adamw")
EPSILON = 1e-8  # of torch's AdamW
AT_ONCE = 8  # groups that are sampled, and whose squares are saved, together
FEWEST = 3  # gradients that figures need: products of two groups, also without the largest one


class Measurement:
    """The parts of one measurement, each of which resumes from what stands in its folder."""

    def __init__(self, options: argparse.Namespace, config: Config) -> None:
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.tokens_a_region, self.config = options.tokens, config
        self.tokenizer = load_tokenizer(options.policy, config.model)
        self.model = load_model(options.policy, config.model)
        self.dtype = compute_dtype(config.model)
        self.policy = Policy(self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        style = training_style(config.model, self.tokenizer)
        self.tasks = make_tasks(self.tokenizer, map(to_sample, load_split(options.dataset, "rl")), style)
        self.algorithm = ResT(config.rl, self.tokenizer, style.format)
        self.groups = min(options.groups or len(self.tasks), len(self.tasks))

    def sample(self) -> None:
        """Sample and judge groups until there are enough; one line each."""
        done = self._whole(ROLLOUTS)
        if done >= self.groups:
            return
        rl = self.config.rl.model_copy(update={"prompts_per_step": AT_ONCE, "reward_probe_prompts": 0})
        engine = create_engine(rl.engine, self.model, self.tokenizer, dtype=self.dtype, max_tokens=4096)
        judge = Judge(self.algorithm, rl, gather=list, main=True)
        schedule = Schedule(rl, len(self.tasks))
        sampler = Sampler(engine, judge, self.tasks, schedule, main=True)
        for step in range(done // AT_ONCE + 1, -(-self.groups // AT_ONCE) + 1):
            groups = sampler.groups(step, 0, schedule.places, {})
            advantages = self.algorithm.advantages(groups.rewards)
            lines = []
            for n, rollouts in enumerate(groups.rollouts):
                entropies = self._entropies(rollouts)
                lines.append(
                    {
                        "prompt": rollouts[0].prompt_ids,
                        "responses": [rollout.response_ids for rollout in rollouts],
                        "regions": [judged.regions.tolist() for judged in groups.judgements[n]],
                        "entropies": entropies,
                        "rewards": groups.rewards[n].tolist(),
                        "advantages": advantages[n].tolist(),
                    }
                )
            self._append(ROLLOUTS, lines[max(0, done - (step - 1) * AT_ONCE) :])

    def squares(self) -> None:
        """The sum over the groups of each coordinate's squared gradient under `uniform`, saved every few groups."""
        file, recorded = self.out / SQUARES, self._recorded()
        groups, weights = recorded.with_signal(), recorded.weights(UNIFORM)
        done, total = 0, torch.zeros(sum(p.numel() for p in self.parameters))
        if file.exists():
            saved = load_file(file)
            done, total = int(saved["groups"]), saved["sum"]
        if done < len(groups) and (some := len(list(self.out.glob(SKETCHES)))):
            raise UserError(f"{self.out}: {some} gradients are in the scale of {done} groups; give another --out")
        for n, k in enumerate(tqdm(groups[done:], desc="squares", unit="group"), start=done + 1):
            factors = recorded.loss_weights(k, weights)
            gradient: list[Tensor] = []
            for logp, batch in self._passes(recorded.rollouts(k)):
                found = self._gradient((factors[batch.rows, batch.columns] * logp).sum(), last=True)
                gradient = [one.add_(other) for one, other in zip(gradient, found, strict=True)] if gradient else found
            place = 0
            for part in gradient:
                flat = part.flatten()
                total[place : place + len(flat)].addcmul_(flat, flat)
                place += len(flat)
            if n % AT_ONCE == 0 or n == len(groups):
                aside = file.with_suffix(".tmp")
                save_file({"sum": total, "groups": torch.tensor(n)}, aside)
                aside.replace(file)

    def gradients(self) -> None:
        """The sketches of every group with signal under every scheme: a file each, of (SCALES, SCHEMES, numbers)."""
        recorded = self._recorded()
        weights = {name: recorded.weights(name) for name in SCHEMES}
        if not recorded.with_signal():
            return
        counts = [p.numel() for p in self.parameters]
        sketches = [Sketch(counts), Sketch(counts, scale=self._adamw_scale())]
        for k in tqdm(recorded.with_signal(), desc="gradients", unit="group"):
            if self._sketch(k).exists():
                continue
            factors = [recorded.loss_weights(k, weights[name]) for name in SCHEMES]
            first = [next(n for n, other in enumerate(factors) if torch.equal(other, one)) for one in factors]
            found = torch.zeros(len(SCALES), len(SCHEMES), sketches[0].size)
            for logp, batch in self._passes(recorded.rollouts(k)):
                for n in set(first):
                    of_tokens = factors[n][batch.rows, batch.columns]
                    if of_tokens.any():
                        gradient = self._gradient((of_tokens * logp).sum())
                        found[:, n] += torch.stack([sketch(gradient) for sketch in sketches])
            aside = self._sketch(k).with_suffix(".tmp")
            with aside.open("wb") as file:
                np.save(file, found[:, first].numpy())
            aside.replace(self._sketch(k))

    def scores(self) -> None:
        """The squared norm of the gradient of single tokens' log-probs, as many of each region."""
        recorded = self._recorded()
        done = self._whole(TOKENS)
        chosen = recorded.some_tokens(self.tokens_a_region, seed=derive(0, "tokens"))
        for row, column in tqdm(chosen[done:], desc="scores", unit="token"):
            rollout = recorded.rollout(row)
            before = [*rollout.prompt_ids, *rollout.response_ids[:column]]
            with self._autocast():
                logits = self.model(input_ids=torch.tensor([before]), logits_to_keep=1, use_cache=False).logits[0, -1]
            logps = logits.float().log_softmax(-1)
            gradient = self._gradient(logps[rollout.response_ids[column]])
            p = logps.detach().double().exp()
            self._append(
                TOKENS,
                [
                    {
                        "region": Region(int(recorded.regions[row, column])).name,
                        "entropy": float(-(p * logps.detach().double()).sum()),
                        "logit_score": float(1 - (p * p).sum()),
                        "squared_score": float(sum(g.norm().double() ** 2 for g in gradient)),
                        "probability": float(p[rollout.response_ids[column]]),
                    }
                ],
            )

    def settings(self) -> None:
        """What the report says of how it was made."""
        recorded = self._recorded()
        values = {"groups": self.groups, "with_signal": len(recorded.with_signal()), **recorded.summary()}
        values |= {
            "parameters": sum(p.numel() for p in self.parameters),
            "machine": describe("cpu"),
            "dtype": str(self.dtype),
        }
        (self.out / SETTINGS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _recorded(self) -> Recorded:
        return Recorded([json.loads(line) for line in self._lines(ROLLOUTS)][: self.groups])

    @torch.no_grad()
    def _entropies(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        batch = shared_batch(rollouts, [Group(tuple(range(len(rollouts))))], pad_id=self.tokenizer.pad_token_id)
        with self._autocast():
            _, _, entropy = self.policy(batch)
        rows: list[list[float]] = [[] for _ in rollouts]
        for row, value in zip(batch.rows.tolist(), entropy.tolist(), strict=True):
            rows[row].append(value)
        return rows

    def _passes(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[Tensor, Batch]]:
        """Log-probs (N,) of sampled tokens with their graph, and the batch that says where they stand.

        A group that is larger than rl.micro_batch_tokens comes in several: sketches and gradients add up over them.
        """
        budget = self.config.rl.micro_batch_tokens
        for groups in shared_passes(rollouts, range(len(rollouts)), budget):
            batch = shared_batch(rollouts, groups, pad_id=self.tokenizer.pad_token_id)
            with self._autocast():
                hidden, head = self.policy.inputs_of_head(batch)
                assert head is not None
                logits = head(hidden)
            yield logits.float().log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0], batch

    def _autocast(self) -> torch.autocast:
        """The precision of `rest train` on this machine."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _adamw_scale(self) -> Tensor:
        """(parameters,) what each coordinate is multiplied by in AdamW's scale."""
        saved = load_file(self.out / SQUARES)
        return saved["sum"].div_(saved["groups"]).sqrt_().add_(EPSILON).reciprocal_()

    def _gradient(self, value: Tensor, *, last: bool = False) -> list[Tensor]:
        """By parameter; the graph stays unless this is the last use of it."""
        return list(torch.autograd.grad(value, self.parameters, retain_graph=not last, materialize_grads=True))

    def _sketch(self, group: int) -> Path:
        return self.out / SKETCHES.replace("*", f"{group:05d}")

    def _lines(self, name: str) -> Iterator[str]:
        if (self.out / name).exists():
            with (self.out / name).open(encoding="utf-8") as file:
                yield from (line for line in file if line.endswith("\n"))

    def _whole(self, name: str) -> int:
        """How many lines a file has, after a line that was cut off has been taken away."""
        lines = list(self._lines(name))
        if lines:
            os.truncate(self.out / name, sum(len(line.encode()) for line in lines))
        return len(lines)

    def _append(self, name: str, values: Sequence[Any]) -> None:
        with (self.out / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(value) + "\n" for value in values)


def report(out: Path) -> dict[str, Any]:
    """All figures, from what the measurement has left in its folder: also where it has not come to all groups yet."""
    if not (out / TOKENS).exists():
        raise UserError(f"{out}: nothing has been measured there; without --report it is")
    tokens = [json.loads(line) for line in (out / TOKENS).read_text(encoding="utf-8").splitlines()]
    settings = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    files = sorted(out.glob(SKETCHES))
    if len(files) < min(FEWEST, settings["with_signal"]):
        raise UserError(f"{out}: figures need the gradients of {FEWEST} groups; without --report they are measured")
    found = {"settings": settings | {"measured": len(files)}, "tokens": tokens_table(tokens)}
    if len(files) >= FEWEST:
        sketches = np.stack([np.load(file) for file in files], axis=2).astype(np.float64)  # (SCALES, SCHEMES, K, size)
        found |= {name: _figures(one) for name, one in zip(SCALES, sketches, strict=True)}
    return found


def _figures(sketches: NDArray[np.float64]) -> dict[str, Any]:
    """Of sketches (SCHEMES, K, numbers) in one scale: the table of the schemes, and the regions' shares."""
    base = SCHEMES.index(UNIFORM)
    own = np.einsum("skd,sld->skl", sketches, sketches, optimize=True)  # (SCHEMES, K, K)
    with_uniform = np.einsum("skd,ld->skl", sketches, sketches[base], optimize=True)
    unit = np.trace(own[base]) / own.shape[1]  # uniform's mean squared norm becomes 1
    own, with_uniform = own / unit, with_uniform / unit
    whole = [n for n, name in enumerate(SCHEMES) if name not in PARTS]
    of_schemes = own[whole], with_uniform[whole], [SCHEMES[n] for n in whole]
    return {
        "schemes": table(*of_schemes),
        "without_largest_group": without_largest(*of_schemes),
        "regions": shares({name.removeprefix("part "): with_uniform[SCHEMES.index(name)] for name in PARTS}, own[base]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="a checkpoint's folder, or embedded:NAME")
    parser.add_argument("--dataset", type=Path, help="a prepared dataset, whose split rl is used")
    parser.add_argument("--profile", default="quickstart", help="the model's and rollouts' settings")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--groups", type=int, help="at most one a request, so that they are independent; default: all")
    parser.add_argument("--tokens", type=int, default=40, help="of each region, whose scores are measured")
    parser.add_argument("--out", type=Path, required=True, help="where the parts stand, and stay")
    parser.add_argument("--report", action="store_true", help="only report what is there")
    parser.add_argument("--results", type=Path, help="file for the figures; default: they are printed")
    options = parser.parse_args()
    try:
        if not options.report:
            measurement = Measurement(options, load(options.profile, tuple(options.overrides)))
            measurement.sample()
            measurement.settings()
            measurement.scores()
            measurement.squares()
            measurement.gradients()
        figures = json.dumps(report(options.out), indent=2) + "\n"
        if options.results is None:
            sys.stdout.write(figures)
        else:
            options.results.write_text(figures, encoding="utf-8")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
