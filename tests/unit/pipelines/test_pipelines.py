"""The pipeline's graph and YAML, the components' common code, and what surrounds a local run."""

from __future__ import annotations

import io
import json
import queue
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from compiled import STAGES
from google.protobuf import json_format, struct_pb2
from rich.console import Console

from pipelines.graph import compile_to
from pipelines.local import StageFailed, _link, run_local
from pipelines.monitor import Monitor, StageRun
from pipelines.rest_pipeline import build
from pipelines.summary import (
    StageSummary,
    Summary,
    comparison_tables,
    duration,
    figures,
    reward_line,
    show,
    summarize,
)
from rest_core import config, manifest
from rest_core.config import Config
from rest_core.errors import EXIT_PREEMPTED, Preempted, UserError
from rest_core.operations.catalogue import SECTIONS
from rest_core.operations.preflight.sources import require_local

TOP = Path(__file__).resolve().parents[3]


def test_a_local_run_is_the_stages_alone() -> None:
    spec = build(config.load("tiny")).pipeline_spec
    assert set(spec.root.dag.tasks) == set(STAGES)
    assert not any(task.HasField("retry_policy") for task in spec.root.dag.tasks.values())
    # The cache is the run's own, for `rest run --resume`.
    assert all(task.caching_options.enable_cache for task in spec.root.dag.tasks.values())


@pytest.mark.parametrize("variable", ["COMPILE", "COMPILE_ABLATION"])
def test_the_committed_yaml_is_what_make_compile_writes(variable: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pipelines.cli import cli

    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    line = re.search(rf"^{variable} := (.*) --output (\S+)$", makefile, re.MULTILINE)
    assert line is not None
    result = CliRunner().invoke(cli, [*line[1].split(), "--output", str(tmp_path / "new.yaml")])
    assert result.exit_code == 0, result.output
    new, committed = (path.read_text(encoding="utf-8") for path in (tmp_path / "new.yaml", TOP / line[2]))
    assert new == committed, "stale: run `make compile`"


def test_a_platform_that_does_not_fit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pipelines.cli import cli

    (tmp_path / "platform.yaml").write_text("stages: {rest_rl: {cpu: eight}}", encoding="utf-8")
    files = ("--platform", str(tmp_path / "platform.yaml"), "--output", str(tmp_path / "rest.yaml"))
    result = CliRunner().invoke(cli, ["compile", "--profile", "tiny", *files])
    assert isinstance(result.exception, UserError)
    assert "stages.rest_rl.cpu" in str(result.exception)
    assert not (tmp_path / "rest.yaml").exists()


def test_data_that_has_changed_is_another_input_of_a_local_run(tmp_path: Path) -> None:
    """So a run that is resumed after its data has changed takes nothing from kfp.local's cache that was made of it."""
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")

    def states() -> dict[str, str]:
        spec = build(config.load("tiny", (f"data.sources=[{{location: {data}}}]",))).pipeline_spec
        inputs = spec.root.dag.tasks["prepare-data"].inputs.parameters
        return {
            name: one.runtime_value.constant.string_value for name, one in inputs.items() if name.endswith("_state")
        }

    before = states()
    assert set(before) == {"model_state", "data_state", "api_bank_state"} and states() == before
    data.write_text("[]\n\n")
    assert states() == before | {"data_state": states()["data_state"]} != before


def test_yaml_goes_into_a_yaml_file_that_can_be_written(tmp_path: Path) -> None:
    pipeline = build(config.load("tiny"))
    with pytest.raises(UserError, match=r"\.yaml"):
        compile_to(tmp_path / "pipeline.json", pipeline)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        compile_to(tmp_path / "file" / "pipeline.yaml", pipeline)


@pytest.mark.parametrize("profile", config.profiles())
def test_sections_survive_the_way_through_kfp(profile: str) -> None:
    """KFP's parameters are protobuf structs: every number a double, and no null from the SDK."""
    for name in SECTIONS:
        section = getattr(config.load(profile), name)
        struct = struct_pb2.Struct()
        struct.update(section.to_parameter())
        assert config.validate(type(section), json_format.MessageToDict(struct), where=name) == section


def test_an_explicit_null_is_no_default() -> None:
    section = config.load("tiny", ("rl.loss.dual_clip=null",)).rl
    assert section.loss.dual_clip is None
    assert config.validate(config.RlConfig, section.to_parameter(), where="rl").loss.dual_clip is None


def test_the_monitor_tells_each_start_and_end_once_and_times_add_up(tmp_path: Path) -> None:
    events: queue.Queue[str] = queue.Queue()
    before_all = time.monotonic()
    with Monitor(
        tmp_path,
        on_start=lambda stage, number: events.put(f"start {number} {stage.name}"),
        on_done=lambda stage: events.put(f"done {stage.name}"),
    ) as monitor:
        began = time.monotonic()
        one, two = tmp_path / "pipeline-2026" / "one", tmp_path / "pipeline-2026" / "two"
        one.mkdir(parents=True)
        assert events.get(timeout=60) == "start 1 one"
        (one / "executor_output.json").touch()
        assert events.get(timeout=60) == "done one"
        two.mkdir()
        assert events.get(timeout=60) == "start 2 two"
        before = psutil.Process().memory_info().rss / 2**20
        ballast = b"x" * (64 * 2**20)
        grown, deadline = before + 60, time.monotonic() + 60
        while monitor.stages["two"].peak_rss_mib < grown and time.monotonic() < deadline:
            time.sleep(0.05)
        assert monitor.stages["two"].peak_rss_mib >= grown and ballast
        elapsed = time.monotonic() - began
    assert events.empty()
    first, second = monitor.stages["one"], monitor.stages["two"]
    assert (first.done, second.done) == (True, False)
    assert elapsed <= first.seconds + second.seconds <= time.monotonic() - before_all
    assert second.peak_rss_mib <= monitor.peak_rss_mib


def test_a_last_event_is_not_missed(tmp_path: Path) -> None:
    with Monitor(tmp_path) as monitor:
        task = tmp_path / "pipeline-2026" / "one"
        task.mkdir(parents=True)
        (task / "executor_output.json").touch()
    assert monitor.stages["one"].done


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="already holds something"):
        run_local(config.load("tiny"), folder=tmp_path, console=Console())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_kfp_local_would_rewrite_python3_in_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python3"):
        run_local(config.load("tiny"), folder=tmp_path / "python3-runs", console=Console())
    with pytest.raises(UserError, match="python3"):
        run_local(config.load("tiny", ("model.source=/models/python3",)), folder=tmp_path / "run", console=Console())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_told_in_the_words_of_its_stage(tmp_path: Path) -> None:
    from pipelines.local import explain
    from pipelines.run_log import KFP_LOG_FILE

    failed = StageRun("prepare-data", tmp_path / "prepare-data")
    (failed.folder / "dataset").mkdir(parents=True)
    (tmp_path / KFP_LOG_FILE).write_text("\n".join(f"line {n}" for n in range(100)), encoding="utf-8")
    monitor: Any = SimpleNamespace(stages={"prepare-data": failed})
    with pytest.raises(StageFailed) as defect:
        explain(tmp_path, monitor, RuntimeError("kfp"))
    assert "line 99" in str(defect.value)
    assert "line 80\n" not in str(defect.value)
    (failed.folder / "dataset" / "error.json").write_text(json.dumps({"message": "x.json, line 3: not JSON"}))
    with pytest.raises(UserError, match=r"^prepare-data: x\.json, line 3: not JSON$"):
        explain(tmp_path, monitor, RuntimeError("kfp"))
    stopped = {"message": "SIGTERM: left after step 3 of 9", "exit_code": EXIT_PREEMPTED}
    (failed.folder / "dataset" / "error.json").write_text(json.dumps(stopped))
    with pytest.raises(Preempted, match=r"^prepare-data: SIGTERM: left after step 3 of 9$") as preempted:
        explain(tmp_path, monitor, RuntimeError("kfp"))
    assert preempted.value.exit_code == 75


def test_a_failure_in_a_loop_is_told_in_the_log_of_its_own_round(tmp_path: Path) -> None:
    from pipelines.local import explain
    from pipelines.run_log import KFP_LOG_FILE

    log = "".join(
        f"12:00 - Executing task 'train'\n  path: /x/loop-{n}/train/metrics\n  said by {n}\n" for n in range(3)
    )
    (tmp_path / KFP_LOG_FILE).write_text(log, encoding="utf-8")
    rounds = {f"train · {n}": StageRun(f"train · {n}", tmp_path / f"loop-{n}" / "train", done=n != 1) for n in range(3)}
    monitor: Any = SimpleNamespace(stages=rounds)
    with pytest.raises(StageFailed) as defect:
        explain(tmp_path, monitor, RuntimeError("kfp"))
    told = str(defect.value).splitlines()
    assert told[-2:] == ["  said by 1", f"train · 1 has failed; the whole log: {tmp_path / KFP_LOG_FILE}"]
    assert "said by 2" not in str(defect.value)


def _summary(*stage: StageSummary, **values: Any) -> Summary:
    given = {one.name: one for one in stage}
    every = tuple(given.get(name, StageSummary(name, "not run")) for name in STAGES)
    settings: dict[str, Any] = {
        "run": "r",
        "profile": "p",
        "status": "succeeded",
        "seconds": 61.0,
        "peak_rss_mib": 2048.0,
        "folder": "/runs/r",
        "mlflow": "rest ui, then http://127.0.0.1:5000/#/experiments/1/runs/0123456789abcdef",
        "unsent": 0,
    }
    return Summary(stages=every, **(settings | values))


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.9, "higher"), (-0.1, 0.9, "no clear change"), (-0.9, -0.1, "LOWER")]
)
def test_the_reward_line_says_whether_it_rose(low: float, high: float, verdict: str) -> None:
    change = (low + high) / 2
    metrics = {"reward/before": 1.0, "reward/after": 1.0 + change, "reward/change": change}
    metrics |= {"reward/low/change": low, "reward/high/change": high, "reward/held_out_prompts": 16.0}
    line = reward_line(_summary(StageSummary("rest-rl", "done", metrics=metrics)))
    assert line.startswith(f"Reward on 16 held-out prompts: +1.000 before, {1 + change:+.3f} after, {change:+.3f} (")
    assert f"]{verdict}[/]" in line


def test_one_prompt_decides_nothing() -> None:
    metrics = {"reward/before": 1.0, "reward/after": 2.0, "reward/change": 1.0, "reward/training_prompts": 1.0}
    line = reward_line(_summary(StageSummary("rest-rl", "done", metrics=metrics)))
    assert line.endswith("1 training prompts: +1.000 before, +2.000 after, +1.000: [yellow]no clear change[/]")


def test_without_a_probe_the_reward_line_claims_nothing() -> None:
    assert "not measured" in reward_line(_summary(StageSummary("rest-rl", "done", metrics={"rl/steps": 2.0})))


def test_the_summary_is_loud_about_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = StageSummary("evaluate-api-bank-trained", "skipped", note="no network and no [path]")
    off = StageSummary("sft-warmup", "off", note="switched off (sft.enabled=false)")
    show(_summary(skipped, off, unsent=7), Console(width=80))
    out = capsys.readouterr().out
    assert "SKIPPED evaluate-api-bank-trained: no network and no [path]" in out
    assert "MLflow has not got 7 records: rest sync /runs/r" in out
    assert "SKIPPED sft-warmup" not in out
    assert "1 min 01 s, at most 2.0 GiB" in out


def test_stages_that_are_skipped_for_one_reason_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("evaluate-api-bank-base", "evaluate-api-bank-trained")
    show(_summary(*(StageSummary(name, "skipped", note="no network") for name in names)), Console(width=200))
    assert capsys.readouterr().out.count("no network") == 1


def test_the_summary_shows_the_gate_and_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    conditions = [
        {"name": "questions behind call_accuracy", "wanted": "at least 40", "found": "48", "met": True},
        {"name": "call_accuracy against base model", "wanted": "above 0", "found": "0.0 points [x]", "met": False},
    ]
    made = {"name": "tools", "version": "3", "conditions": conditions}
    options = {"options": ("--set", "tracking.uri=x"), "gate_options": ("--set", "gate.metric=bfcl/x")}
    show(_summary(registered=made, **options), Console(width=200))
    out = capsys.readouterr().out
    assert "✓  questions behind call_accuracy" in out and "0.0 points [x]" in out
    promote = "rest promote --dry-run --set tracking.uri=x --set gate.metric=bfcl/x  (what it lacks to become champion)"
    assert promote in out and "rest chat tools@3" in out and "--set tracking.uri=x  (talk to version 3)" in out
    conditions[1]["met"] = True
    show(_summary(registered=made), Console(width=200))
    assert "rest promote  (make it the champion)" in capsys.readouterr().out
    show(_summary(), Console(width=200))
    assert "Next:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.sources=[{location: data/calls.jsonl}]", r"data\.sources: data/calls\.jsonl: no such file or folder"),
        ("data.sources=[{location: /none/*.json}]", r"data\.sources: /none/\*\.json: no file matches"),
        ("model.source=./none", r"model\.source: \./none: no such file or folder"),
        ("api_bank.location=none", r"api_bank\.location: none: no such file or folder"),
    ],
)
def test_a_missing_file_costs_no_run(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_local(config.load("tiny", (setting,)), folder=tmp_path / "run", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", ["owner/name", "s3://bucket/key", "embedded:bfcl-retired", "published:toolrl"])
def test_what_lies_elsewhere_is_left_to_the_stages(location: str) -> None:
    require_local(config.load("tiny", (f"data.sources=[{{location: '{location}'}}]",)))


def test_links_lead_to_the_newest_run_and_keep_what_is_no_link(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _link(tmp_path / "latest", Path(name))
        assert (tmp_path / "latest").readlink() == Path(name)
    (tmp_path / "model").mkdir()
    _link(tmp_path / "model", Path("a"))
    assert (tmp_path / "model").is_dir() and not (tmp_path / "model").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "model"]


def test_the_policies_stand_side_by_side_with_their_differences(capsys: pytest.CaptureFixture[str]) -> None:
    measured = [("base", 0.0, 0.0, 0.08), ("ResT", 0.25, 0.14, 0.4)]
    row = {
        "figure": "bfcl/call_accuracy",
        "policies": [{"policy": name, "value": v, "low": low, "high": high} for name, v, low, high in measured],
        "differences": [{"pair": "ResT - base", "value": 0.25, "low": 0.1, "high": 0.4, "clear": True}],
    }
    show(_summary(comparison=(row, {**row, "figure": "bfcl/irrelevance_accuracy"})), Console(width=80))
    out = capsys.readouterr().out
    assert "call accuracy" in out and "irrelevance accuracy" in out
    assert out.count("25.0% (14.0% to 40.0%)") == out.count("+25.0% (+10.0% to +40.0%)") == 2
    assert out.count("ResT - base") == 1


@pytest.mark.parametrize("width", [40, 70, 80])
def test_a_narrow_terminal_shows_whose_figures_they_are(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"value": 0.25, "low": 0.1, "high": 0.4}
    row = {
        "policies": [{"policy": "warm-up", **figure}],
        "differences": [{"pair": "ResT - warm-up", "clear": True, **figure}],
    }
    rules = ("soft", "strict", "published")
    (table,) = comparison_tables([{"figure": f"api_bank/overall_{rule}", **row} for rule in rules])
    Console(width=width).print(table)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in ("warm-up ", "ResT - warm-up ", "api_bank "):
        assert sum(line.startswith(name) for line in lines) == 1
    assert "…" not in "".join(lines)


def test_the_summary_says_why_records_were_dropped(tmp_path: Path) -> None:
    made = tmp_path / "dataset"
    report = {
        "sources": {"a.jsonl": {"read": 3, "dropped": {"field missing": 1}}},
        "dropped": {"field missing": 1},
        "examples": {"field missing": ["a.jsonl: line 2: field 'tools': field missing"]},
    }
    made.mkdir()
    (made / "report.json").write_text(json.dumps(report), encoding="utf-8")
    manifest.write(made, stage="prepare-data", config={}, inputs={}, counts={}, files={})
    monitor = Monitor(tmp_path)
    monitor.stages["prepare-data"] = StageRun("prepare-data", tmp_path, done=True)
    said = summarize(Config(), tmp_path, monitor, run="r", status="succeeded", seconds=1.0)
    shown = io.StringIO()
    show(said, Console(width=80, file=shown))
    assert "dropped 1 of 3" in shown.getvalue()
    assert "1  field missing, e.g. a.jsonl: line 2: field 'tools'\n" in shown.getvalue()


def test_figures_of_a_stage_without_its_usual_ones() -> None:
    metrics = {"bfcl/simple_python": 0.25, "stage/seconds": 3.0}
    assert figures(StageSummary("evaluate-bfcl-base", "done", metrics=metrics)) == "bfcl/simple_python 0.25"
    metrics = {"bfcl/call_accuracy": 0.5, "bfcl/irrelevance_accuracy": 1.0}
    metrics |= {"bfcl/low/call_accuracy": 0.25, "bfcl/high/call_accuracy": 0.75}
    shown = figures(StageSummary("evaluate-bfcl-base", "done", metrics=metrics))
    assert shown == "call accuracy 50.0% (25.0%–75.0%), irrelevance 100.0%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (725, "12 min 05 s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
