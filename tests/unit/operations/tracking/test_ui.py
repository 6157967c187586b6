from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rest_core.errors import UserError
from rest_core.operations.tracking import ui


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
