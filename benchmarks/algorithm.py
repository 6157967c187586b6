"""Seconds for regions, weights and rewards of one rollout, on one core.

    python benchmarks/algorithm.py [--responses 2048] [--tokens 400] [--repeats 5] [--against COMMIT]

With --against another commit does the same work in turns with this one, each with its own code and in a process of its
own. The responses are reference answers of the embedded data and their corruptions, cut or filled up to the wanted
number of tokens of the embedded model's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from stepbench.machine import TOP, checkout
from stepbench.report import ratio, spread

from rest_core.algorithm.regions import read_response
from rest_core.algorithm.rewards import tool_reward
from rest_core.algorithm.weights import token_weights
from rest_core.config import ModelConfig
from rest_core.data.readers import read_embedded
from rest_core.errors import UserError
from rest_core.manifest import git_commit
from rest_core.model.loading import load_tokenizer
from rest_core.records import Sample
from rest_core.response import parse
from rest_core.styles.create import built_in_style

MACHINE = f"{platform.machine()}, one thread, Python {platform.python_version()}"

PARTS = ("parse + regions", "rewards", "weights", "total")


def responses(tokenizer: Any, count: int, tokens: int) -> list[tuple[list[int], str]]:
    """(sampled ids, reference) pairs of exactly `tokens` ids."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    references = [entry.reference for entry in read_embedded(built_in_style("compact")) if isinstance(entry, Sample)]
    filler = ids("I should look at what each tool needs before I choose one. ") * tokens
    generator, made = random.Random(0), []
    for n in range(count):
        reference = references[n % len(references)]
        cut, unclosed = reference[: len(reference) * 3 // 4], reference.replace("</tool_call>", "")
        head, _, rest = generator.choice([reference, cut, reference + " and more", unclosed]).partition(" </think>")
        before, after = ids(head), ids(" </think>" + rest)
        missing = max(0, tokens - len(before) - len(after))
        made.append(((before + filler[:missing] + after)[:tokens], reference))
    return made


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Median, least and most seconds of each part, over the repeats."""
    torch.set_num_threads(1)
    config = ModelConfig()
    tokenizer = load_tokenizer(config.source, config)
    pairs = responses(tokenizer, options.responses, options.tokens)
    mask = torch.ones(options.responses, options.tokens, dtype=torch.bool)
    common: dict[str, Any] = {"scheme": "paper", "step": 1, "total_steps": 10}
    common["region_entropy"] = torch.tensor([0.1, 0.3, 0.01, 0.8, 0.7, 0.2])
    repeats = []
    for _ in range(options.repeats + 1):
        times = [time.perf_counter()]
        read = [read_response(ids, tokenizer) for ids, _ in pairs]
        times.append(time.perf_counter())
        for (response, _), (_, reference) in zip(read, pairs, strict=True):
            tool_reward(response, parse(reference), scheme="strict")
        times.append(time.perf_counter())
        token_weights(torch.stack([regions for _, regions in read]), mask, **common)
        times.append(time.perf_counter())
        repeats.append([*(after - before for before, after in pairwise(times)), times[-1] - times[0]])
    return {
        "responses": options.responses,
        "tokens": options.tokens,
        "seconds": {part: spread(values[1:]) for part, values in zip(PARTS, zip(*repeats, strict=True), strict=True)},
        "machine": MACHINE,
        "commit": git_commit(),
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both commits in turns: medians, and the ratio of the totals of each round."""
    seconds: dict[str, dict[str, list[float]]] = {"this": defaultdict(list), "other": defaultdict(list)}
    sizes = ["--responses", str(options.responses), "--tokens", str(options.tokens), "--repeats", "3"]
    with checkout(options.against) as (other, commit):
        for number in range(options.repeats):
            for side, tree in [("this", TOP), ("other", other)][:: 1 if number % 2 else -1]:
                command = [sys.executable, str(tree / "benchmarks" / "algorithm.py"), *sizes]
                environment = os.environ | {"PYTHONPATH": str(tree)}
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
                for part, found in json.loads(done.stdout)["seconds"].items():
                    seconds[side][part].append(found["median"])
    medians = {side: {part: median(values) for part, values in parts.items()} for side, parts in seconds.items()}
    totals = [seconds[side]["total"] for side in ("other", "this")]
    report: dict[str, Any] = {"responses": options.responses, "tokens": options.tokens, "machine": MACHINE}
    for side, made_by in (("this", git_commit()), ("other", commit)):
        report[side] = {"commit": made_by, "seconds": medians[side]}
    return report | {"this/other": ratio(*totals)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("responses", 2048), ("tokens", 400), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit, in turns")
    options = parser.parse_args()
    try:
        report = compare(options) if options.against else measure(options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
