"""Promotion, rollback and history in a real registry on SQLite, by real evaluations of scripted policies."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from counting_benchmark import Counting, Scripted, ids
from mlflow import MlflowClient

from rest_core.config import GateConfig
from rest_core.errors import UserError
from rest_core.evaluation.evaluate import evaluate
from rest_core.operations.tracking import promotion, registry
from rest_core.operations.tracking.evaluations import artifact_directory

NAME = "rest-tool-use"
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer_config.json")
GATE = GateConfig(metric="counting/both", min_questions=30, min_well_formed=0.0)
RIGHT = {
    "base": [],
    "weak": ids("easy", *range(8)),
    "good": [*ids("easy", *range(18)), *ids("hard", *range(4))],
    "best": [*ids("easy", *range(20)), *ids("hard", *range(10))],
}

Evaluated = Callable[..., Path]
Add = Callable[..., str]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    known: dict[tuple[str, ...], Path] = {}

    def make(name: str, title: str | None = None, **settings: Any) -> Path:
        key = (name, str(title), str(settings))
        if key not in known:
            known[key] = tmp_path_factory.mktemp("evaluation")
            evaluate(Counting(**settings), Scripted(title or name, RIGHT[name]), out=known[key])
        return known[key]

    return make


@pytest.fixture
def add(client: MlflowClient, evaluated: Evaluated, tmp_path: Path) -> Add:
    """add("good", base="base", champion=None) registers a version with evaluations of these policies."""
    experiment = client.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    client.create_registered_model(NAME)

    def make(policy: str | None, base: str | None = "base", champion: Path | None = None, **settings: Any) -> str:
        run = str(client.create_run(experiment).info.run_id)
        folders = {None: policy and evaluated(policy, **settings), "base": base and evaluated(base, **settings)}
        for other, folder in {**folders, "champion": champion}.items():
            if folder is not None:
                client.log_artifacts(run, str(folder), artifact_directory("counting", other))
        for name in CHECKPOINT:
            client.log_text(run, "", f"model/{name}")
        version = str(client.create_model_version(NAME, f"runs:/{run}/model", run_id=run).version)
        client.set_registered_model_alias(NAME, registry.CHALLENGER, version)
        return version

    return make


def aliases(client: MlflowClient) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def test_each_clearly_better_version_becomes_champion_and_the_history_knows(
    client: MlflowClient, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    add("weak")
    first, _ = promotion.promote(client, NAME, GATE)
    assert aliases(client) == {"champion": "1"}  # it is no challenger any more
    add("good")
    second, verdict = promotion.promote(client, NAME, GATE, reason="better")
    assert verdict.passed
    assert aliases(client) == {"champion": "2"}
    assert (second.version, second.previous, second.previous_value) == ("2", "1", pytest.approx(0.2))
    assert second.value == pytest.approx((0.9 + 0.4) / 2)
    assert promotion.history(client, NAME) == [first, second]
    assert [(one.actor, one.reason, one.forced) for one in (first, second)] == [
        ("ada", None, False),
        ("ada", "better", False),
    ]
    assert second.describe() == f"{NAME} version 2 is now champion in place of version 1 0.2000: counting/both 0.6500"


def test_the_gate_refuses_and_force_is_noted(client: MlflowClient, add: Add) -> None:
    add("good")
    promotion.promote(client, NAME, GATE)
    for worse in ("weak", "good"):  # a tie is refused, too
        add(worse)
        with pytest.raises(promotion.Refused, match=r"both against champion, version 1: .* --force"):
            promotion.promote(client, NAME, GATE)
        assert aliases(client)["champion"] == "1"
    forced, verdict = promotion.promote(client, NAME, GATE, force=True)
    assert forced.forced and not verdict.passed
    assert promotion.history(client, NAME)[-1].forced
    assert "forced" in forced.describe()


@pytest.mark.parametrize(
    ("policy", "base", "reason"),
    [
        (None, "base", r"evaluation of version 1: .* has no evaluations/counting/report\.json"),
        ("good", None, r"both against base model: base beside rest-tool-use version 1: .*evaluations/counting-base"),
        ("base", "base", "both against base model: 0.0 points"),
    ],
)
def test_what_was_not_evaluated_or_never_calls_is_not_promoted(
    client: MlflowClient, add: Add, policy: str | None, base: str | None, reason: str
) -> None:
    add(policy, base)
    with pytest.raises(promotion.Refused, match=reason):
        promotion.promote(client, NAME, GATE)
    move, _ = promotion.promote(client, NAME, GATE, force=True)
    assert (aliases(client), move.forced) == ({"champion": "1"}, True)


def test_the_champion_is_compared_on_the_candidates_own_questions(
    client: MlflowClient, add: Add, evaluated: Evaluated
) -> None:
    add("weak")
    promotion.promote(client, NAME, GATE)
    add("good", asked="Please add")
    with pytest.raises(promotion.Refused, match="do not compare: questions or tools"):
        promotion.promote(client, NAME, GATE)
    add("good", champion=evaluated("weak", f"{NAME} version 1", asked="Please add"), asked="Please add")
    assert promotion.promote(client, NAME, GATE)[0].version == "3"
    # What was evaluated beside it was not this champion: then both versions' own evaluations count.
    add("best", champion=evaluated("weak", f"{NAME} version 1", asked="Please add"), asked="Please add")
    move, _ = promotion.promote(client, NAME, GATE)
    assert move.previous_value == pytest.approx((0.9 + 0.4) / 2)


def test_a_champion_that_was_not_measured_by_the_figure_is_named(client: MlflowClient, add: Add) -> None:
    add("weak", limit=5)
    promotion.promote(client, NAME, GATE.model_copy(update={"min_questions": 1}), force=True)
    add("good")
    refused, line = promotion.would_promote(client, NAME, GATE.model_copy(update={"metric": "counting/easy"}), "2")
    assert not refused.passed and "do not compare" in line


@pytest.mark.parametrize(
    ("tag", "value"), [("promotion/00001", "{"), ("promotion/00001", "[1]"), ("promotion/1", "{}")]
)
def test_a_record_that_somebody_has_changed_is_named(client: MlflowClient, add: Add, tag: str, value: str) -> None:
    add("weak")
    client.set_registered_model_tag(NAME, "promotion/note", "no record")
    promotion.promote(client, NAME, GATE)
    assert len(promotion.history(client, NAME)) == 1
    client.set_registered_model_tag(NAME, tag, value)
    with pytest.raises(UserError, match=f"its tag {tag} is no record of a promotion"):
        promotion.history(client, NAME)


def test_cards_say_what_has_become_of_their_versions(client: MlflowClient, add: Add) -> None:
    for policy in ("weak", "good"):
        number = add(policy)
        client.update_model_version(
            NAME, number, description=f"**version {number} would become champion**\n\nThe card."
        )
    for version in ("1", "2"):
        move, _ = promotion.promote(client, NAME, GATE, version=version, force=True)
    heads = {number: str(client.get_model_version(NAME, number).description) for number in ("1", "2")}
    assert heads["1"] == f"**{NAME} version 1 was champion until {move.at[:10]}**\n\nThe card."
    assert heads["2"] == f"**{move.describe()}**\n\nThe card."


def test_of_two_promotions_at_the_same_moment_the_history_has_both(
    client: MlflowClient, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("weak")
    add("good")
    before = client.get_registered_model(NAME)
    monkeypatch.setattr(client, "get_registered_model", lambda name: before)  # as each has read it
    for version in ("1", "2"):
        promotion.promote(client, NAME, GATE, version=version, force=True)
    monkeypatch.undo()
    assert {move.version for move in promotion.history(client, NAME)} == {"1", "2"}


def test_the_way_back_needs_no_force_and_goes_on_to_the_one_before(client: MlflowClient, add: Add) -> None:
    for policy in ("weak", "good", "best"):
        add(policy)
        promotion.promote(client, NAME, GATE)
    planned = promotion.roll_back(client, NAME, GATE, dry_run=True, reason=None)
    assert (planned.version, aliases(client)) == ("2", {"champion": "3"})
    back = promotion.roll_back(client, NAME, GATE, dry_run=False, reason="too slow")
    assert (aliases(client), back.kind, back.previous, back.reason) == (
        {"champion": "2"},
        "rollback",
        "3",
        "too slow",
    )
    assert back.describe() == f"{NAME} version 2 is now champion in place of version 3: rolled back"
    assert promotion.roll_back(client, NAME, GATE, dry_run=False, reason=None).version == "1"
    with pytest.raises(UserError, match="version 1 is the first champion"):
        promotion.roll_back(client, NAME, GATE, dry_run=False, reason=None)
    assert [move.kind for move in promotion.history(client, NAME)] == ["promotion"] * 3 + ["rollback"] * 2


def test_a_rollback_needs_a_champion_and_a_version_that_is_there(client: MlflowClient, add: Add) -> None:
    add("weak")
    with pytest.raises(UserError, match="has no champion; promote a version first"):
        promotion.roll_back(client, NAME, GATE, dry_run=False, reason=None)
    promotion.promote(client, NAME, GATE)
    add("good")
    promotion.promote(client, NAME, GATE)
    client.delete_model_version(NAME, "1")
    with pytest.raises(UserError, match=r"no version 1 \(there: 2\)"):
        promotion.roll_back(client, NAME, GATE, dry_run=False, reason=None)


def test_a_dry_run_says_what_would_happen_and_changes_nothing(client: MlflowClient, add: Add) -> None:
    add("weak")
    planned, verdict = promotion.promote(client, NAME, GATE, dry_run=True)
    assert planned.describe() == f"{NAME} version 1 would become champion: counting/both 0.2000"
    assert (aliases(client), promotion.history(client, NAME)) == ({"challenger": "1"}, [])
    assert promotion.would_promote(client, NAME, GATE, "1") == (verdict, planned.describe())
    add("base")
    refused, line = promotion.would_promote(client, NAME, GATE, "2")
    assert not refused.passed and line.startswith(f"{NAME} version 2 would not become champion: both against base")


def test_an_approval_tag_is_waited_for(client: MlflowClient, add: Add) -> None:
    add("good")
    gate = GATE.model_copy(update={"approval_tag": "approved_by"})
    with pytest.raises(promotion.Refused, match=r"approval: no such tag \(wanted: the tag 'approved_by' on version 1"):
        promotion.promote(client, NAME, gate)
    client.set_model_version_tag(NAME, "1", "approved_by", "grace")
    _, verdict = promotion.promote(client, NAME, gate)
    assert verdict.conditions[-1].found == "grace"


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any], list[int]]]:
    """A server: its URL, what was posted to it, and the status of its next answers."""
    posted: list[Any] = []
    answers = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers[-1])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}/hook", posted, answers
    server.shutdown()
    server.server_close()


def test_a_webhook_is_told_of_each_move(
    client: MlflowClient, add: Add, webhook: tuple[str, list[Any], list[int]]
) -> None:
    url, posted, answers = webhook
    gate = GATE.model_copy(update={"webhook": url})
    add("weak")
    promotion.promote(client, NAME, gate, dry_run=True)
    assert posted == []
    promotion.promote(client, NAME, gate)
    assert (posted[0]["name"], posted[0]["version"], posted[0]["kind"]) == (NAME, "1", "promotion")
    answers.append(500)
    add("good")
    with pytest.raises(UserError, match=r"version 2 is now champion .* was not told \(HTTP 500\)") as error:
        promotion.promote(client, NAME, gate)
    assert "secret" not in str(error.value)
    assert aliases(client) == {"champion": "2"}  # it has moved, and the history says so
    assert len(promotion.history(client, NAME)) == 2


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("rest-tol-use", None, "did you mean 'rest-tool-use'"),
        (NAME, "chalenger", "did you mean 'challenger'"),
        (NAME, 7, r"no version 7 \(there: 1\)"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(
    client: MlflowClient, add: Add, name: str, version: str | int | None, message: str
) -> None:
    add("weak")
    with pytest.raises(UserError, match=message):
        promotion.promote(client, name, GATE, version=version)


def test_the_champion_is_not_promoted_again(client: MlflowClient, add: Add) -> None:
    add("weak")
    promotion.promote(client, NAME, GATE)
    with pytest.raises(UserError, match="champion already"):
        promotion.promote(client, NAME, GATE, version=1)
    assert promotion.would_promote(client, NAME, GATE, "1")[1].startswith(f"{NAME} version 1 is champion already")


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_a_version_whose_checkpoint_is_gone_is_not_promoted(
    client: MlflowClient, add: Add, tmp_path: Path, lost: str
) -> None:
    add("good")
    [file] = (tmp_path / "artifacts").rglob(lost)
    file.unlink()
    for force in (False, True):
        with pytest.raises(UserError, match=rf"version 1: its checkpoint is not at .* any more \(no .*{lost[-6:]}"):
            promotion.promote(client, NAME, GATE, force=force)
    assert aliases(client) == {"challenger": "1"}
    verdict, line = promotion.would_promote(client, NAME, GATE, "1")
    assert not verdict.passed and "any more" in line


def test_the_way_back_to_a_version_without_files_is_refused(client: MlflowClient, add: Add, tmp_path: Path) -> None:
    add("good")
    promotion.promote(client, NAME, GATE)
    [folder] = (tmp_path / "artifacts").glob("*/artifacts/model")
    add("best")
    promotion.promote(client, NAME, GATE)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="version 1: its checkpoint is not at"):
        promotion.roll_back(client, NAME, GATE, dry_run=False, reason=None)
    assert aliases(client)["champion"] == "2"


def test_a_checkpoint_in_s3_is_looked_for_too(client: MlflowClient, add: Add, empty_s3: Any) -> None:
    empty_s3.create_bucket(Bucket="models")
    run = client.get_model_version(NAME, add("good")).run_id
    version = str(client.create_model_version(NAME, "s3://models/x", run_id=run).version)
    with pytest.raises(UserError, match="its checkpoint is not at s3://models/x any more"):
        promotion.promote(client, NAME, GATE, version=version)
    for name in CHECKPOINT:
        empty_s3.put_object(Bucket="models", Key=f"x/{name}", Body=b"")
    promotion.promote(client, NAME, GATE, version=version)
    assert aliases(client)["champion"] == version


def test_a_place_that_cannot_be_looked_at_is_a_condition_of_the_gate(
    client: MlflowClient, add: Add, empty_s3: Any
) -> None:
    run = client.get_model_version(NAME, add("good")).run_id
    version = str(client.create_model_version(NAME, "s3://of-another-account/x", run_id=run).version)
    with pytest.raises(promotion.Refused, match=r"checkpoint: s3://of-another-account/x: .*seen where the registry"):
        promotion.promote(client, NAME, GATE, version=version)
    move, _ = promotion.promote(client, NAME, GATE, version=version, force=True)
    assert move.forced


def test_what_mlflow_refuses_is_one_line(client: MlflowClient, add: Add) -> None:
    add("good")
    client.rename_registered_model(NAME, "bob's model")  # of somebody else: the configuration takes no such name
    with pytest.raises(UserError, match=r"^MLflow at sqlite:.*Invalid clause"):
        promotion.promote(client, "bob's model", GATE, version="9")
    for ask in (promotion.history, registry.get_version, registry.registered_model):
        with pytest.raises(UserError):
            ask(client, "team/tool-use")
