"""Is the fast path right on this device? Each check runs in a process of its own and writes one report.

    python benchmarks/gpu_checks.py attention|decode|step [--device cuda] [--model random:smollm2-135m]

Exits with 1 if a comparison fails. What is compared, and why the limits are what they are: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from rl_step import command, say, write
from stepbench import check_attention, check_decode, check_step, machine, summary
from stepbench.checking import Found
from stepbench.models import model_of, tokenizer_of

from rest_core.errors import UserError

_CHECKS = {"attention": check_attention, "decode": check_decode, "step": check_step}
_SIZES = ("prompts", "prompt_tokens", "group", "new_tokens")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=list(_CHECKS))
    for name in _SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="of the check's work; small on a CPU")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="checkpoint, embedded: or random:")
    parser.add_argument("--tokenizer", help="folder of the tokenizer, where it is not the model's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="CPU threads")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder for the report")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    logging.basicConfig(level=logging.WARNING)
    device = machine.device_of(options.device)
    report: dict[str, Any] = {
        "file": machine.short_name(device),
        "command": command(sys.argv[1:], script="gpu_checks.py"),
        "model": options.model,
        "threads": options.threads,
        "machine": machine.describe(device),
        "precision": {
            "float32 products": torch.get_float32_matmul_precision(),
            "TF32 in cuDNN": torch.backends.cudnn.allow_tf32,
        },
    }
    try:
        found = run(options, device)
    except Exception as error:
        report["checks"] = {options.check: {"passed": False, "error": f"{type(error).__name__}: {error}"}}
        write(report, options.output, report["file"], options.check, prefix="check")
        if not isinstance(error, UserError):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2
    report["checks"] = {options.check: found.to_dict()}
    write(report, options.output, report["file"], options.check, prefix="check")
    sys.stdout.write(summary.table(report) + "\n")
    return 0 if report["checks"][options.check]["passed"] else 1


def run(options: argparse.Namespace, device: torch.device) -> Found:
    sizes = {name: getattr(options, name) for name in _SIZES if getattr(options, name) is not None}
    work = dataclasses.replace(_CHECKS[options.check].WORK[device.type], **sizes)  # type: ignore[attr-defined]
    torch.set_num_threads(options.threads)
    common = {"model": options.model, "tokenizer": options.tokenizer, "threads": options.threads}
    if options.check == "step":
        found = check_step.check(common | {"device": device.type}, work, say)
    else:
        model = model_of(options.model, tokenizer_of(options.model, options.tokenizer)).to(device)
        check = check_attention.check if options.check == "attention" else check_decode.check
        found = check(model, device, work, say)
    return dataclasses.replace(found, figures={"work": work.to_dict()} | found.figures)


if __name__ == "__main__":
    sys.exit(main())
