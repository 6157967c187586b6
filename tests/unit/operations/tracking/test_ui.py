from __future__ import annotations

import base64
import json
import socket
import zlib
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rest_core.errors import UserError
from rest_core.operations.tracking import ui, views


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .*lsof -i :{port} .*--port"):
            ui.serve(f"sqlite:///{tmp_path}/mlflow.db", port=port)


def test_no_such_port() -> None:
    with pytest.raises(UserError, match="port 99999"):
        ui.check_port("127.0.0.1", 99999)


def test_nothing_recorded_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing has been recorded there yet"):
        ui.serve(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_needs_no_second_one() -> None:
    with pytest.raises(UserError, match="already"):
        ui.serve("http://host:5000")


def test_hosts_are_allowed_with_their_port() -> None:
    command = ui.server_command("sqlite:////x/mlflow.db", "0.0.0.0", 5001)
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    assert "localhost:5001" in hosts
    assert f"{socket.gethostname()}:5001" in hosts
    assert command[command.index("--artifacts-destination") + 1] == "file:///x/artifacts"


def test_the_page_is_the_saved_view_of_pipeline_runs(client: MlflowClient) -> None:
    assert ui.runs_page(client.tracking_uri, "rest") == ""
    experiment = client.create_experiment("rest")
    page = ui.runs_page(client.tracking_uri, "rest")
    key = page.rpartition("viewStateShareKey=")[2]
    saved = json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{key}"])
    assert saved["name"] == "Pipelines"
    state = json.loads(zlib.decompress(base64.b64decode(saved["state"].removeprefix("deflate;"))))
    assert "metrics.`bfcl/call_accuracy`" in state["selectedColumns"]
    for kind in ("pipeline", "stage"):
        client.create_run(experiment, tags={"rest.kind": kind})
    [run] = client.search_runs([experiment], state["searchFilter"])
    assert run.data.tags["rest.kind"] == "pipeline"


def test_a_view_that_somebody_has_changed_stays(client: MlflowClient) -> None:
    experiment = client.create_experiment("rest")
    tag = f"{views.TAG_PREFIX}{views.VIEWS[1].key}"
    client.set_experiment_tag(experiment, tag, "their own")
    views.install(client, experiment)
    tags = client.get_experiment(experiment).tags
    assert tags[tag] == "their own"
    assert len([name for name in tags if name.startswith(views.TAG_PREFIX)]) == len(views.VIEWS)


@pytest.mark.parametrize("view", views.VIEWS, ids=lambda view: view.name)
def test_mlflow_takes_each_views_filter(client: MlflowClient, view: views.View) -> None:
    assert client.search_runs([client.create_experiment("rest")], view.filter) == []
