"""`rest schedule`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from fake_kfp import FakeKfp

Rest = Callable[..., Any]


@pytest.fixture
def create(at_server: Rest) -> Rest:
    return lambda *arguments: at_server("schedule", "create", "--profile", "tiny", *arguments)


@pytest.mark.parametrize(
    ("arguments", "trigger", "shown"),
    [
        (["--cron", "0 3 * * 0"], {"cron_schedule": {"cron": "0 0 3 * * 0"}}, "cron 0 0 3 * * 0"),
        (["--cron", "30 0 3 * * 0"], {"cron_schedule": {"cron": "30 0 3 * * 0"}}, "cron 30 0 3 * * 0"),
        (["--every", "12h"], {"periodic_schedule": {"interval_second": "43200"}}, "every 12 h"),
        (["--every", "7d"], {"periodic_schedule": {"interval_second": "604800"}}, "every 7 d"),
        (
            ["--every", "90s", "--start", "2026-01-31T00:00:00Z", "--end", "2026-02-01T00:00:00+01:00"],
            {
                "periodic_schedule": {
                    "interval_second": "90",
                    "start_time": "2026-01-31T00:00:00Z",
                    "end_time": "2026-02-01T00:00:00+01:00",
                }
            },
            "every 90 s",
        ),
    ],
)
def test_create(create: Rest, kfp_server: FakeKfp, arguments: list[str], trigger: dict[str, Any], shown: str) -> None:
    outcome = create("--name", "weekly", *arguments)
    assert outcome.code == 0, outcome
    [schedule] = kfp_server.schedules.values()
    assert outcome.out == f"scheduled weekly, {shown}\n{schedule['recurring_run_id']}\n"
    assert schedule["trigger"] == trigger
    assert (schedule["mode"], schedule["max_concurrency"], schedule["no_catchup"]) == ("ENABLE", "1", True)
    assert schedule["runtime_config"]["parameters"]["rl"]["steps"] == 2
    assert schedule["experiment_id"] in kfp_server.experiments


def test_settings_and_an_uploaded_version(create: Rest, kfp_server: FakeKfp) -> None:
    assert create("--every", "1d", "--upload", "--disabled", "--catch-up", "--max-concurrency", "3").code == 0
    [schedule] = kfp_server.schedules.values()
    [version_id] = kfp_server.versions
    assert schedule["pipeline_version_reference"]["pipeline_version_id"] == version_id
    assert (schedule["mode"], schedule["max_concurrency"], schedule["no_catchup"]) == ("DISABLE", "3", False)


def test_a_dry_run_sends_nothing(create: Rest, kfp_server: FakeKfp) -> None:
    printed = yaml.safe_load(create("--every", "1d", "--dry-run").out)
    assert printed["recurring_run"]["trigger"] == {"periodic_schedule": {"interval_second": "86400"}}
    assert kfp_server.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--cron or --every"),
        (["--cron", "0 3 * * 0", "--every", "1d"], "not both"),
        (["--cron", "3 *"], "minute hour day month weekday"),
        (["--every", "daily"], "--every 'daily'"),
        (["--every", "5s"], "at least 60 s"),
        (["--every", "1d", "--max-concurrency", "11"], "--max-concurrency"),
    ],
)
def test_a_trigger_that_cannot_be_read(create: Rest, kfp_server: FakeKfp, arguments: list[str], message: str) -> None:
    assert message in create(*arguments).error
    assert kfp_server.requests == []


@pytest.mark.parametrize("time", ["tomorrow", "2026-01-31T00:00:00"])
def test_a_time_that_kfp_cannot_read_is_refused(create: Rest, kfp_server: FakeKfp, time: str) -> None:
    assert f"'{time}'" in create("--every", "1d", "--start", time).error
    assert kfp_server.schedules == {}
    kfp_server.problems.clear()


@pytest.mark.parametrize("after", [False, True], ids=["lost request", "lost answer"])
@pytest.mark.parametrize("how", ["drop", "page", 503])
def test_a_schedule_is_never_created_twice(create: Rest, kfp_server: FakeKfp, how: int | str, after: bool) -> None:
    kfp_server.fail("POST", "/recurringruns", how, after=after)
    outcome = create("--every", "1d", "--name", "daily")
    assert len(kfp_server.sent("POST", "/recurringruns")) == 1
    if after:
        assert outcome.code == 0
        assert next(iter(kfp_server.schedules)) in outcome.out
    else:
        assert "it is not known whether it was carried out" in outcome.error


def test_list_disable_enable_delete(at_server: Rest, create: Rest, kfp_server: FakeKfp) -> None:
    create("--every", "12h", "--name", "mine")
    [schedule_id] = kfp_server.schedules
    line = next(line for line in at_server("schedule", "list").out.splitlines() if "mine" in line)
    assert line.split() == ["mine", "enabled", "every", "12", "h", schedule_id]
    assert at_server("schedule", "disable", "mine").out == "disabled mine\n"
    assert kfp_server.schedules[schedule_id]["status"] == "DISABLED"
    assert at_server("schedule", "enable", schedule_id).out == "enabled mine\n"
    assert kfp_server.schedules[schedule_id]["status"] == "ENABLED"
    assert at_server("schedule", "delete", "mine").out == "deleted mine\n"
    assert kfp_server.schedules == {}
    assert "no schedule is named 'mine'" in at_server("schedule", "delete", "mine").error


@pytest.mark.parametrize("command", ["disable", "enable", "delete"])
def test_a_change_is_sent_once(at_server: Rest, create: Rest, kfp_server: FakeKfp, command: str) -> None:
    create("--every", "1d", "--name", "mine")
    kfp_server.requests.clear()
    method = "DELETE" if command == "delete" else "POST"
    kfp_server.fail(method, "/recurringruns/", 503, after=True)
    assert "not known whether it was carried out" in at_server("schedule", command, "mine").error
    assert sum(request.method == method for request in kfp_server.requests) == 1


@pytest.mark.parametrize("trigger", [None, {}, {"periodic_schedule": {}}])
def test_a_schedule_without_times_is_listed(at_server: Rest, kfp_server: FakeKfp, trigger: Any) -> None:
    schedule = {"recurring_run_id": "an-id", "display_name": "mine", "status": "ENABLED", "trigger": trigger}
    kfp_server.fail("GET", "/recurringruns", json.dumps({"recurringRuns": [schedule]}).encode())
    assert "an-id" in at_server("schedule", "list").out
