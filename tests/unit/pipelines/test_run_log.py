"""The two logs of a local run."""

from __future__ import annotations

import io
import random

from pipelines.run_log import RunLog, warnings_in

LOG = """\
00:29:37.597 - INFO - Running pipeline: \x1b[95m'rest-pipeline'\x1b[0m
--------------------------------------------------------------------------------
00:29:37.611 - INFO - Executing task \x1b[96m'prepare-data'\x1b[0m
00:29:37.611 - INFO - Streamed logs:

    [KFP Executor 2026-11-29 00:29:37,709 INFO]: Loading KFP component "prepare_data" from /tmp/x.py
    [KFP Executor 2026-11-29 00:29:37,710 INFO]: Got executor_input:
    {
        "inputs": {
            "seed": 0.0
        }
    }
    00:30:03 INFO rest_core.data.prepare: prepared {'sft': 157} out of 456 records
    Loading weights:  40%|████      | 1/272 [00:00<03:58,  1.13it/s]
    Traceback (most recent call last):
      File "x.py", line 3
    00:30:15 INFO root: Wrote executor output file to /x/executor_output.json.

00:30:16.581 - INFO - Task \x1b[96m'prepare-data'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
00:30:16.583 - INFO - Task \x1b[96m'prepare-data'\x1b[0m outputs:
    dataset: Dataset( name='dataset',
                      metadata={'sha256': '87bf'} )
--------------------------------------------------------------------------------
00:30:16.585 - INFO - Executing task \x1b[96m'sft-warmup'\x1b[0m
    00:31:04 WARNING rest_core.model.precision: this CPU cannot multiply bfloat16
"""

READABLE = """
prepare-data
    00:30:03 INFO rest_core.data.prepare: prepared {'sft': 157} out of 456 records
    Traceback (most recent call last):
      File "x.py", line 3

sft-warmup
    00:31:04 WARNING rest_core.model.precision: this CPU cannot multiply bfloat16
"""


def test_stages_lines_are_kept_apart_from_kfps() -> None:
    generator = random.Random(0)
    for _ in range(20):
        whole, readable = io.StringIO(), io.StringIO()
        log, start = RunLog(whole, readable), 0
        while start < len(LOG):  # it comes in pieces of any length
            end = start + generator.randint(1, 200)
            log.write(LOG[start:end])
            start = end
        log.flush()
        assert whole.getvalue() == LOG
        assert readable.getvalue() == READABLE


def test_each_warning_is_told_once_with_its_stages() -> None:
    precision = "    00:31:04 WARNING rest_core.model.precision: this CPU cannot multiply bfloat16"
    lines = [
        "",
        "sft-warmup",
        precision,
        precision,
        "    00:31:05 WARNING rest_core.stages.stage: sft-warmup is skipped: off",
        "",
        "rest-rl",
        precision,
        "    00:32:00 INFO rest_core.training.rl: resuming",
        "    WARNING: of another program",
        "",
        "rest-rl",
        precision,
    ]
    assert warnings_in("\n".join(lines)) == {"this CPU cannot multiply bfloat16": ["sft-warmup", "rest-rl"]}
