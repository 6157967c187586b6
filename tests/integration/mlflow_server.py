"""The MLflow server of deploy/mlflow on this machine; its database is SQLite here."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

MANIFEST = Path(__file__).parents[2] / "deploy" / "mlflow" / "mlflow.yaml"


@contextlib.contextmanager
def mlflow_server(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """A server with the settings of its Deployment, and `environment` beside this process's; gives its address."""
    parts = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    (deployment,) = (part for part in parts if part["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    settings = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The Deployment's own port is among the names under which the server may be called; here it has another.
    names = f"{settings['MLFLOW_SERVER_ALLOWED_HOSTS']},127.0.0.1:{port}"
    here = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_SERVER_ALLOWED_HOSTS": names,
        "HOME": str(folder),
    }
    command = [sys.executable, "-m", *container["command"]]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, env={**os.environ, **settings, **environment, **here}, stdout=log, stderr=log
        ) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while status(address, "/health", "a-pod's-address") != 200:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def status(address: str, path: str, host: str) -> int | None:
    """The HTTP status of a request under the name `host`; None where nobody listens."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address + path, headers={"Host": host}), timeout=30
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
