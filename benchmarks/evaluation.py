"""Questions a minute of an evaluation: our engine, transformers' `generate`, and vLLM, on the same prompts.

    python benchmarks/evaluation.py                              # 13 categories of BFCL, 8 questions each
    python benchmarks/evaluation.py --limit 31 --rounds 2        # 400 questions
    python benchmarks/evaluation.py --vllm .venv-vllm/bin/python

Every side gets the same prompt ids and decodes greedily, in float32 where the CPU cannot multiply bfloat16. The sides
take turns, each round in a process of its own, which loads the model, answers a few questions to warm up, and is timed
from there. `generate` gets batches of 16 prompts of like length, `--generate-batch` chooses another size.

The floor is what the arithmetic takes: two operations a weight and token, for the prompts and for what was sampled, at
the speed of a large matrix product on this machine, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answers = list[list[int]]
_RESULT = '{"seconds"'


def ours(work: dict[str, Any]) -> Callable[[Answers], Answers]:
    import torch

    from rest_core.config import ModelConfig
    from rest_core.memory import keep_freed_memory
    from rest_core.model.loading import load_model
    from rest_core.rollout.transformers_engine import TransformersEngine

    keep_freed_memory()
    dtype = getattr(torch, work["dtype"])
    engine = TransformersEngine.taking_over(
        load_model(work["model"], ModelConfig(), dtype=dtype),
        dtype=dtype,
        stop_ids=frozenset(work["stop"]),
        pad_id=work["pad"],
        prefix_bytes=2**30,
    )

    def answer(prompts: Answers) -> Answers:
        groups = engine.generate(
            prompts, max_new_tokens=work["max_new_tokens"], temperature=0.0, batch_tokens=work["batch_tokens"]
        )
        return [group[0].response_ids for group in groups]

    return answer


def generate(work: dict[str, Any]) -> Callable[[Answers], Answers]:
    import torch

    from rest_core.config import ModelConfig
    from rest_core.model.loading import load_model
    from rest_core.rollout.prefill import left_padded

    model = load_model(work["model"], ModelConfig(), dtype=getattr(torch, work["dtype"])).eval()
    stop = set(work["stop"])

    @torch.inference_mode()
    def answer(prompts: Answers) -> Answers:
        found: dict[int, list[int]] = {}
        order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
        for start in range(0, len(order), work["generate_batch"]):
            part = order[start : start + work["generate_batch"]]
            ids, mask, _ = left_padded([prompts[n] for n in part], work["pad"], torch.device("cpu"))
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids) if mask is None else mask,
                do_sample=False,
                max_new_tokens=work["max_new_tokens"],
                eos_token_id=work["stop"],
                pad_token_id=work["pad"],
            )
            for n, row in zip(part, made[:, ids.shape[1] :].tolist(), strict=True):
                end = next((k + 1 for k, token in enumerate(row) if token in stop), len(row))
                found[n] = row[:end]
        return [found[n] for n in range(len(prompts))]

    return answer


def vllm(work: dict[str, Any]) -> Callable[[Answers], Answers]:
    """Runs in vLLM's own environment, without this project."""
    from vllm import LLM, SamplingParams

    llm = LLM(work["model"], dtype=work["dtype"], max_model_len=work["longest"] + work["max_new_tokens"], seed=0)
    greedy = SamplingParams(temperature=0.0, max_tokens=work["max_new_tokens"], stop_token_ids=work["stop"])

    def answer(prompts: Answers) -> Answers:
        made = llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False)
        return [list(request.outputs[0].token_ids) for request in made]

    return answer


ARMS: dict[str, Callable[[dict[str, Any]], Callable[[Answers], Answers]]] = {
    "ours": ours,
    "generate": generate,
    "vllm": vllm,
}


def child(arm: str, work_file: str) -> None:
    """One round of one side: its seconds, answers and peak memory as a line of JSON."""
    work = json.loads(Path(work_file).read_text(encoding="utf-8"))
    answer = ARMS[arm](work)
    answer(work["prompts"][:2])
    start = time.perf_counter()
    answers = answer(work["prompts"])
    seconds = time.perf_counter() - start
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "answers": answers, "peak_gib": peak_gib()}) + "\n")


def peak_gib() -> float:
    """The largest resident set of this process and of its children together: vLLM computes in one of its own."""
    own = str(os.getpid())
    largest = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:  # the process has ended meanwhile
            continue
        if own in (fields["Pid"], fields["PPid"]):
            largest += int(fields.get("VmHWM", "0 kB").split()[0])
    return largest / 2**20


def work_of(options: argparse.Namespace) -> dict[str, Any]:
    """The prompts and what else every side needs."""
    from rest_core.chat import encode_prompt
    from rest_core.config import BfclConfig, ModelConfig
    from rest_core.evaluation.bfcl.benchmark import Bfcl
    from rest_core.evaluation.evaluate import seeded_subset
    from rest_core.model.loading import load_tokenizer, resolve
    from rest_core.model.precision import compute_dtype
    from rest_core.styles.create import create_style
    from rest_core.token_bytes import stop_ids

    config = ModelConfig(source=options.model, prompt_style="compact")
    tokenizer = load_tokenizer(config.source, config)
    benchmark = Bfcl(BfclConfig())
    chats = [
        benchmark.chat(question)
        for category, questions in benchmark.questions().items()
        for question in seeded_subset(questions, options.limit, seed=0, name=category)
    ]
    style = create_style(config, tokenizer)
    encoded = [encode_prompt(tokenizer, style.render(chat.tools, chat.history)) for chat in chats]
    ids = [prompt for prompt in encoded if len(prompt) <= options.longest]
    return {
        "prompts": ids,
        "longest": max(map(len, ids)),
        "model": str(resolve(config.source)),
        "stop": sorted(stop_ids(tokenizer)),
        "pad": tokenizer.pad_token_id,
        "dtype": str(compute_dtype(config)).removeprefix("torch."),
        "max_new_tokens": options.new_tokens,
        "batch_tokens": options.batch_tokens,
        "generate_batch": options.generate_batch,
    }


def floor_seconds(work: dict[str, Any], sampled: int) -> dict[str, float]:
    """What the arithmetic takes at the speed of a large matrix product, measured here."""
    import torch

    from rest_core.config import ModelConfig
    from rest_core.model.loading import load_model

    dtype = getattr(torch, work["dtype"])
    model = load_model(work["model"], ModelConfig(), dtype=dtype)
    embedding = model.get_input_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.parameters()) - embedding
    left, right = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    speed = 2 * 2048**3 / min(times)
    prompts = 2 * body * sum(map(len, work["prompts"])) / speed
    return {"prompts": prompts, "sampled": 2 * (body + embedding) * sampled / speed, "gflops": speed / 1e9}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turns; their figures, ratios and how many answers are the same."""
    from stepbench.machine import describe
    from stepbench.report import ratio, spread

    from rest_core.manifest import git_commit

    work = work_of(options)
    arms = {"ours": sys.executable, "generate": sys.executable} | ({"vllm": options.vllm} if options.vllm else {})
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    # vLLM keeps a core for itself by default, and takes all memory that is free for keys and values.
    environment = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}", "VLLM_CPU_KVCACHE_SPACE": "2"}
    environment |= os.environ
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "work.json")
        file.write_text(json.dumps(work), encoding="utf-8")
        for number in range(options.rounds):
            for arm in list(arms)[:: 1 if number % 2 == 0 else -1]:
                command = [arms[arm], __file__, "--arm", arm, "--work", str(file)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                # vLLM says more when it ends.
                result = next(line for line in reversed(done.stdout.splitlines()) if line.startswith(_RESULT))
                found[arm].append(json.loads(result))
                sys.stderr.write(f"{arm:9} round {number + 1}: {found[arm][-1]['seconds']:.1f} s\n")
    answers = {arm: rounds[0]["answers"] for arm, rounds in found.items()}
    sampled = sum(map(len, answers["ours"]))
    floor = floor_seconds(work, sampled)
    seconds = {arm: [one["seconds"] for one in rounds] for arm, rounds in found.items()}
    count = len(work["prompts"])
    report: dict[str, Any] = {
        "questions": count,
        "prompt_tokens": sum(map(len, work["prompts"])),
        "sampled_tokens": sampled,
        "dtype": work["dtype"],
        "floor_seconds": floor,
        "machine": describe("cpu"),
        "commit": git_commit(),
    }
    for arm, values in seconds.items():
        report[arm] = {
            "seconds": spread(values),
            "questions_a_minute": spread([60 * count / value for value in values]),
            "peak_gib": max(one["peak_gib"] for one in found[arm]),
            "share_of_floor": (floor["prompts"] + floor["sampled"]) / spread(values)["median"],
            "same_answers_as_ours": sum(a == b for a, b in zip(answers["ours"], answers[arm], strict=True)),
            "times_ours": ratio(seconds["ours"], values),
        }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    for name, default in (("limit", 8), ("rounds", 3), ("longest", 2048), ("new-tokens", 112)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("batch-tokens", 32768), ("generate-batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--output", type=Path, help="JSON file to write besides")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        child(options.arm, options.work)
        return 0
    text = json.dumps(measure(options), indent=2) + "\n"
    sys.stdout.write(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
