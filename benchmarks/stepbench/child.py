"""One side in a process of its own, so that peak memory and caches are its own; it works only when it is told to.

    python -m stepbench.child SPEC

SPEC is JSON. The parent writes one word a line, `step` or `stop`; each answer is one line of JSON. What libraries
write to standard output goes to standard error.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_ANSWERS = os.dup(1)
os.dup2(2, 1)


def answer(message: dict[str, Any]) -> None:
    os.write(_ANSWERS, (json.dumps(message) + "\n").encode())


def told_to_step() -> bool:
    """Sleep until the parent has a word."""
    word = sys.stdin.readline().strip()
    if word not in ("step", "stop", ""):
        raise ValueError(f"unknown command {word!r}")
    return word == "step"


def main() -> None:
    spec = json.loads(sys.argv[1])
    begin = time.perf_counter()

    import torch

    from .flops import ceiling, count_parameters
    from .work import Work

    device = torch.device(spec["device"])
    torch.set_num_threads(spec["threads"])
    if spec["side"] == "decode":
        from .decode import measure

        answer(measure(spec, device, progress=lambda text: answer({"progress": text})))
        return
    if spec["side"] == "ceiling":
        answer(ceiling(device).to_dict())
        return
    if spec["side"] == "update":
        from .check_step import update

        answer(update(spec, device))
        return
    work = Work(**spec["work"])

    def report(message: dict[str, Any]) -> None:
        """Answer, and leave a GPU's memory that is not in use to the other side, which is next."""
        if spec["company"] and device.type == "cuda":
            torch.cuda.empty_cache()
        answer(message)

    with tempfile.TemporaryDirectory() as folder:
        if spec["side"] == "ours":
            from .side_ours import Ours

            side: Any = Ours(spec, work, device, Path(folder))
        else:
            from .side_trl import Trl

            side = Trl(spec, work, device, Path(folder))
        report(
            {
                "ready": True,
                "seconds": time.perf_counter() - begin,
                "prompts": hashlib.sha256(json.dumps(side.prompts).encode()).hexdigest(),
                "prompt_tokens": [len(ids) for ids in side.prompts],
                "parameters": count_parameters(side.model).to_dict(),
                "rss_exact": side.memory.exact,
                "rss_loading": side.memory.loading,
                "rss_loaded": side.memory.process.memory_info().rss,
            }
        )
        if spec["side"] == "ours":
            while told_to_step():
                report(side.step())
        else:
            from .side_trl import StopTraining

            try:
                side.run(told_to_step, report)
                while told_to_step():
                    raise RuntimeError("more steps were asked for than were announced")
            except StopTraining:
                pass
        answer({"stopped": True})


if __name__ == "__main__":
    main()
