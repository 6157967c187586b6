"""Is the fast path right on this device? Each check runs in a process of its own and writes one report.

    python benchmarks/gpu_checks.py attention|decode|step [--device cuda] [--model random:smollm2-135m]

Exits with 1 if a comparison fails. What is compared, and why the limits are what they are: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import logging.handlers
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rl_step import add_common, say, start_report, write
from stepbench.work import Work, model_of, tokenizer_of
from torch import Tensor

from rest_core.config import RlConfig
from rest_core.errors import UserError
from rest_core.model.batch import Batch, Group, pad_rows, padded_batch, shared_batch
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout
from rest_core.rollout import cuda_graph
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.training.distributed import create_accelerator, prepare
from rest_core.training.update import ROW_MULTIPLE_CUDA, Experience, PolicyUpdate

# Nats by which bfloat16 may be off: three times what it makes of SmolLM2-135M on a CPU; a wrong mask is off by 1.
HALF = 0.3


@dataclass(frozen=True)
class Check:
    """One comparison; NaN never passes."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit


# On a GPU the rows of `step` are as long as those of `attention`, so that its kernels are compiled already.
WORKS = {
    "cuda": [Work("attention", 3, 400, 4, 180), Work("decode", 4, 200, 4, 96), Work("step", 2, 400, 4, 96)],
    "cpu": [Work("attention", 2, 40, 3, 20), Work("decode", 2, 20, 3, 24), Work("step", 2, 12, 3, 8)],
}


def largest(found: Tensor, wanted: Tensor) -> float:
    """The largest absolute difference."""
    return float((found.double().cpu() - wanted.double().cpu()).abs().max())


def rms(found: Tensor, wanted: Tensor) -> float:
    """The root of the mean squared difference."""
    return float((found.double().cpu() - wanted.double().cpu()).square().mean().sqrt())


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found - wanted‖ / ‖wanted‖."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def random_rollouts(work: Work, vocabulary: int) -> list[Rollout]:
    """Prompts and responses of random ids, group by group; the same each time.

    The first prompt is the longest, the last a fraction of it; each group has responses from one token to all.
    """
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (max(1, count),), generator=generator).tolist()  # type: ignore[no-any-return]

    rollouts = []
    for number in range(work.prompts):
        prompt = ids(work.prompt_tokens * (work.prompts - number) // work.prompts)
        for place in range(work.group):
            response = ids(work.new_tokens * place // max(1, work.group - 1))
            rollouts.append(Rollout(prompt, response, [0.0] * len(response), True, 0))
    return rollouts


def check_attention(model: Any, work: Work) -> list[Check]:
    """Training on shared prefixes (FlexAttention on a GPU) against one row a response, in both precisions.

    float32 differs by the order of adding, about 1e-5 through 30 layers; a wrong mask is off by 1e-1, TF32 by 1e-3.
    bfloat16 has an error of its own, that of the plain path: the shared path may have twice as much.

    Raises:
        UserError: the model is not trained on shared rows at all.
    """
    rollouts = random_rollouts(work, model.get_input_embeddings().num_embeddings)
    groups = [Group(tuple(range(n, n + work.group))) for n in range(0, len(rollouts), work.group)]
    policy = Policy(model.train())
    if not policy.shared:
        raise UserError("shared rows have failed their trial on this model and device; the reason is above")
    multiple = ROW_MULTIPLE_CUDA if model.device.type == "cuda" else 1
    batches = {
        "plain": padded_batch(rollouts, groups, pad_id=0).to(model.device),
        "shared": shared_batch(rollouts, groups, pad_id=0, multiple=multiple).to(model.device),
    }
    exact, found = (_values(policy, batch, half=False) for batch in batches.values())
    plain, shared = (_values(policy, batch, half=True) for batch in batches.values())
    gradients = [name for name in exact if name.startswith("gradient")]
    errors = torch.tensor([relative(found[name], exact[name]) for name in gradients])
    worst = int(errors.argmax())  # NaN counts as the largest
    checks = [
        Check("float32: largest difference of a log-prob", largest(found["log-probs"], exact["log-probs"]), 2e-4),
        Check("float32: largest difference of an entropy", largest(found["entropies"], exact["entropies"]), 2e-4),
        Check(f"float32: relative difference of the worst {gradients[worst]}", float(errors[worst]), 2e-4),
        Check("bfloat16: error of log-probs", rms(shared["log-probs"], exact["log-probs"]), HALF),
    ]
    for what in ("log-probs", "entropies", "gradient"):  # the gradient as one vector
        own, other = (rms(_joined(rounded, what), _joined(exact, what)) for rounded in (shared, plain))
        checks.append(Check(f"bfloat16: error of {what} over that of the plain path", own / other, 2.0))
    return checks


def _joined(values: dict[str, Tensor], prefix: str) -> Tensor:
    return torch.cat([value.flatten() for name, value in values.items() if name.startswith(prefix)])


def _values(policy: Policy, batch: Batch, *, half: bool) -> dict[str, Tensor]:
    """Log-probs and entropies (N,), and the gradient of each parameter."""
    count = len(batch.targets)
    factors = torch.linspace(-1, 1, count, device=batch.targets.device)  # so that every token has its own

    def loss_of(tokens: slice, logp: Tensor, entropy: Tensor) -> Tensor:
        return (factors[tokens] * logp + 0.1 * factors[tokens].flip(0) * entropy).sum() / count

    with torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=half):
        loss, logp, entropy = policy(batch, loss_of, entropy_gradient=True)
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad(set_to_none=True)
    say(f"{'bfloat16' if half else 'float32'}, {'plain' if batch.trees is None else 'shared'} rows")
    return {"log-probs": logp, "entropies": entropy, **gradients}


def check_decode(model: Any, work: Work) -> list[Check]:
    """Decoding as a CUDA graph against decoding without, and the engine's values against training's."""
    vocabulary = model.get_input_embeddings().num_embeddings
    # Some rows end early, so that the batch shrinks on the way; with other weights other rows.
    stops = frozenset(range(0, vocabulary, work.new_tokens))
    policy, checks = Policy(model.eval(), shared=False), []
    failures = logging.handlers.BufferingHandler(99)
    cuda_graph.log.addHandler(failures)
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        engine = TransformersEngine.copy_of(model, dtype=dtype, stop_ids=stops, pad_id=0)
        checks.append(Check(f"{name}: prompts that are not shared", float(not engine.shares_prefix), 0))
        made = {}
        for capture in (False, True) if model.device.type == "cuda" else (False,):
            # Buffers grow, and the step is captured anew, several times in so short a response.
            engine.pace = replace(engine.pace, block=8, capture=capture)
            made[capture] = _sampled(engine, work, vocabulary)
        if True in made:
            checks += compare_replay(name, made[True], made[False])
        checks += _against_training(name, made[False], policy)
    warnings = [record.getMessage() for record in failures.buffer]
    return [*checks, Check("; ".join(["captures that failed", *warnings]), len(warnings), 0)]


def _sampled(engine: TransformersEngine, work: Work, vocabulary: int) -> list[Rollout]:
    prompts = [rollout.prompt_ids for rollout in random_rollouts(work, vocabulary)[:: work.group]]
    seeds = list(range(work.prompts))
    groups = engine.generate(prompts, samples=work.group, max_new_tokens=work.new_tokens, seeds=seeds)
    return [rollout for group in groups for rollout in group]


def compare_replay(name: str, captured: list[Rollout], uncaptured: list[Rollout]) -> list[Check]:
    """A graph replays the same kernels on the same numbers: the same ids, and values within 1e-5."""
    pairs = list(zip(captured, uncaptured, strict=True))
    same = [(a, b) for a, b in pairs if a.response_ids == b.response_ids]
    checks = [Check(f"{name}: responses whose ids differ with a graph", len(pairs) - len(same), 0)]
    for what in ("logps", "entropies"):
        gap = max((largest(torch.tensor(getattr(a, what)), torch.tensor(getattr(b, what))) for a, b in same), default=0)
        checks.append(Check(f"{name}: largest difference of {what} with a graph", gap, 1e-5))
    return checks


@torch.no_grad()
def _against_training(name: str, rollouts: list[Rollout], policy: Policy) -> list[Check]:
    """The engine's values against those of one row a response in float32."""
    batch = padded_batch(rollouts, [Group((n,)) for n in range(len(rollouts))], pad_id=0).to(policy.model.device)
    _, *trained = policy(batch)
    checks = []
    for what, wanted in zip(("logps", "entropies"), trained, strict=True):
        values = [getattr(rollout, what) for rollout in rollouts]
        sampled = pad_rows(values, max(map(len, values)), torch.float64)[batch.rows.cpu(), batch.columns.cpu()]
        if name == "float32":  # cached keys and one token at a time: float32 in another order
            checks.append(Check(f"float32: largest difference of {what} from training", largest(sampled, wanted), 5e-4))
        else:
            checks.append(Check(f"{name}: error of {what} against training in float32", rms(sampled, wanted), HALF))
    return checks


def check_step(source: str, tokenizer: str | None, work: Work) -> list[Check]:
    """One optimizer update, as training runs it, on this device and on the processor, in float32."""
    found, rollouts = update(source, tokenizer, work, None)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the second process: accelerate takes a GPU where there is one
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        wanted, _ = pool.submit(update, source, tokenizer, work, rollouts).result()
    return compare_update(found, wanted)


def compare_update(found: dict[str, Any], wanted: dict[str, Any]) -> list[Check]:
    """Two results of `update`, the second of which is right: float32 in another order, an error of about 1e-5."""
    checks = [
        Check("difference of the loss", abs(found["loss"] - wanted["loss"]), 1e-4),
        Check("relative difference of the gradient norm", abs(found["grad_norm"] / wanted["grad_norm"] - 1), 5e-4),
    ]
    for name, value in wanted["gradients"].items():
        error = relative(torch.from_numpy(found["gradients"][name]), torch.from_numpy(value))
        checks.append(Check(f"relative difference of the gradient of {name}", error, 5e-4))
    return checks


def update(
    source: str, tokenizer: str | None, work: Work, rollouts: list[Rollout] | None
) -> tuple[dict[str, Any], list[Rollout]]:
    """Loss, gradient norm and some gradients (arrays) of an update on `rollouts`; None samples them first."""
    accelerator = create_accelerator(half=False)
    model = model_of(source, tokenizer_of(source, tokenizer)).to(accelerator.device).train()
    if rollouts is None:
        engine = TransformersEngine.copy_of(model, dtype=torch.float32, stop_ids=frozenset(), pad_id=0)
        rollouts = _sampled(engine, work, model.get_input_embeddings().num_embeddings)
    config = RlConfig(prompts_per_step=work.prompts, group_size=work.group, learning_rate=1e-6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    gradients: dict[str, Any] = {}

    def keep(*_: Any) -> None:
        last = model.config.num_hidden_layers - 1
        parts = [*(f"layers.{number}." for number in {0, last // 2, last}), "model.norm.weight"]
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts) and parameter.grad is not None:
                gradients[name] = parameter.grad.cpu().numpy().copy()

    optimizer.register_step_pre_hook(keep)
    policy, prepared = prepare(accelerator, Policy(model), optimizer)
    # Advantages by the place in the group, weights that differ from token to token.
    mask = torch.ones(len(rollouts), work.new_tokens, dtype=torch.bool)
    places = torch.arange(work.group, dtype=torch.float32).repeat(work.prompts)
    weights = 0.5 + torch.arange(mask.numel()).reshape(mask.shape) % 7 / 4
    experience = Experience(rollouts, (places - places.mean()) / places.std(), mask.long() * 0, mask, weights)
    statistics = PolicyUpdate(policy, prepared, accelerator, config, pad_id=0).run(experience)
    say(f"update on {accelerator.device}: loss {statistics.loss:.6f}, gradient norm {statistics.grad_norms[0]:.6f}")
    result = {"loss": statistics.loss, "grad_norm": statistics.grad_norms[0], "gradients": gradients}
    return result, rollouts


def run(options: argparse.Namespace) -> list[Check]:
    work = next(one for one in WORKS[options.device] if one.name == options.check)
    if options.check == "step":
        return check_step(options.model, options.tokenizer, work)
    model = model_of(options.model, tokenizer_of(options.model, options.tokenizer)).to(options.device)
    return check_attention(model, work) if options.check == "attention" else check_decode(model, work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("attention", "decode", "step"))
    add_common(parser)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    report = start_report(options)
    found: dict[str, Any] = {"passed": False}
    report["checks"] = {options.check: found}
    options.name = options.name or options.check
    try:
        checks = run(options)
        found["checks"] = [asdict(check) | {"passed": check.passed} for check in checks]
        found["passed"] = all(check.passed for check in checks)
    except UserError as error:
        found["error"] = str(error)
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        write(report, options, "check")
    for check in checks:
        verdict = "ok  " if check.passed else "FAIL"
        sys.stdout.write(f"{verdict} {check.value:9.2e} of {check.limit:7.1e}  {check.name}\n")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
