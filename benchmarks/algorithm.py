"""Seconds for regions, weights and rewards of one rollout, on one core.

    python benchmarks/algorithm.py [--responses 2048] [--tokens 400] [--repeats 5] [--against COMMIT]

With --against the code of another commit does the same work in turns with this one, each time in a process of its own.

The responses are reference answers of the embedded data and their corruptions (cut off, a call doubled, junk around),
cut or filled up to the wanted number of tokens of the embedded model's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rest_core.algorithm.regions import read_response
from rest_core.algorithm.rewards import tool_reward
from rest_core.algorithm.weights import token_weights
from rest_core.config import ModelConfig
from rest_core.data.readers import read_embedded
from rest_core.manifest import git_commit
from rest_core.model.loading import load_tokenizer
from rest_core.records import Sample
from rest_core.response import parse


def responses(tokenizer: Any, references: list[str], count: int, tokens: int) -> list[tuple[list[int], str]]:
    """(sampled ids, reference) pairs of exactly `tokens` ids."""
    generator = random.Random(0)
    filler = tokenizer("I should look at what each tool needs before I choose one. ", add_special_tokens=False)[
        "input_ids"
    ]
    made = []
    for n in range(count):
        reference = references[n % len(references)]
        text = generator.choice(
            [
                reference,
                reference[: len(reference) * 3 // 4],
                reference + " and more",
                reference.replace("</tool_call>", ""),
            ]
        )
        head, _, rest = text.partition(" </think>")
        head_ids = tokenizer(head, add_special_tokens=False)["input_ids"]
        rest_ids = tokenizer(" </think>" + rest, add_special_tokens=False)["input_ids"]
        missing = max(0, tokens - len(head_ids) - len(rest_ids))
        padding = (filler * (missing // len(filler) + 1))[:missing]
        made.append((([*head_ids, *padding, *rest_ids])[:tokens], reference))
    return made


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--responses", type=int, default=2048)
    arguments.add_argument("--tokens", type=int, default=400)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--against", metavar="COMMIT", help="compare with this commit, in turns")
    options = arguments.parse_args()

    torch.set_num_threads(1)
    if options.against is not None:
        sys.stdout.write(json.dumps(compare(options), indent=2) + "\n")
        return
    sys.stdout.write(json.dumps(measure(options), indent=2) + "\n")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both commits in turns: medians, and the ratio of the totals of each round."""
    here = Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        git = ["git", "-C", str(here.parents[1]), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), options.against], check=True)
        try:
            rounds: list[tuple[dict[str, Any], ...]] = []
            for turn in range(options.repeats):
                both = [here.parents[1], other]
                done = {tree: _run(here, tree, options) for tree in (both if turn % 2 else both[::-1])}
                rounds.append(tuple(done[tree] for tree in both))
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    ratios = [mine["seconds"]["total"]["median"] / theirs["seconds"]["total"]["median"] for mine, theirs in rounds]
    mine, theirs = (
        {
            "commit": side[0]["commit"],
            "seconds": {
                name: statistics.median(one["seconds"][name]["median"] for one in side) for name in side[0]["seconds"]
            },
        }
        for side in zip(*rounds, strict=True)
    )
    return {
        "responses": options.responses,
        "tokens": options.tokens,
        "this": mine,
        "other": theirs,
        "this/other": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "rounds": options.repeats,
        "machine": rounds[0][0]["machine"],
    }


def _run(script: Path, tree: Path, options: argparse.Namespace) -> dict[str, Any]:
    """This script with the package of `tree`."""
    command = [sys.executable, str(script), "--responses", str(options.responses), "--tokens", str(options.tokens)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    made = subprocess.run([*command, "--repeats", "3"], check=True, capture_output=True, env=environment, cwd=tree)
    report: dict[str, Any] = json.loads(made.stdout)
    return report


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Median, least and most seconds of each part, over the repeats."""
    config = ModelConfig()
    tokenizer = load_tokenizer(config.source, config)
    references = [entry.reference for entry in read_embedded("compact") if isinstance(entry, Sample)]
    pairs = responses(tokenizer, references, options.responses, options.tokens)
    entropy = torch.tensor([0.1, 0.3, 0.01, 0.8, 0.7, 0.2])
    mask = torch.ones(options.responses, options.tokens, dtype=torch.bool)

    parts: dict[str, list[float]] = {"parse + regions": [], "rewards": [], "weights": [], "total": []}
    for _ in range(options.repeats + 1):  # the first is warm-up
        begin = time.perf_counter()
        read = [read_response(ids, tokenizer) for ids, _ in pairs]
        regions_done = time.perf_counter()
        for (response, _), (_, reference) in zip(read, pairs, strict=True):
            tool_reward(response, parse(reference), scheme="strict")
        rewards_done = time.perf_counter()
        token_weights(
            torch.stack([regions for _, regions in read]),
            mask,
            scheme="paper",
            step=1,
            total_steps=10,
            region_entropy=entropy,
        )
        end = time.perf_counter()
        for name, seconds in zip(
            parts, (regions_done - begin, rewards_done - regions_done, end - rewards_done, end - begin), strict=True
        ):
            parts[name].append(seconds)
    return {
        "responses": options.responses,
        "tokens": options.tokens,
        "seconds": {
            name: {"median": statistics.median(v[1:]), "min": min(v[1:]), "max": max(v[1:])}
            for name, v in parts.items()
        },
        "machine": f"{platform.machine()}, one thread, Python {platform.python_version()}",
        "commit": git_commit(),
    }


if __name__ == "__main__":
    main()
