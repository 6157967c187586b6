"""MLflow's UI over a store of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import NoReturn

from rest_core.credentials import redact
from rest_core.errors import UserError
from rest_core.operations.tracking import store, views

_WHEN_READY = """
import sys, time, urllib.request, webbrowser
server, page = sys.argv[1:]
for _ in range(120):
    try:
        urllib.request.urlopen(server + "/health", timeout=5)
        webbrowser.open(page)
        break
    except OSError:
        time.sleep(0.5)
"""


def serve(
    uri: str, *, host: str = "127.0.0.1", port: int = 5000, experiment: str = "rest", browser: bool = False
) -> NoReturn:
    """Become MLflow's server over `uri`: it takes the place of this process, so that signals reach it.

    Args:
        uri: a database or folder URI (`store.resolve_uri`).
        host: address to listen on; 0.0.0.0 lets other machines in, by this machine's name and address.
        port: TCP port.
        experiment: whose table of pipeline runs is named, where there is such an experiment.
        browser: open that page in a browser when the server answers.

    Raises:
        UserError: `uri` is a server already, nothing has been recorded yet, or the port is taken.
    """
    if store.is_server(uri):
        raise UserError(f"{redact(uri)} is an MLflow server already; open it in a browser")
    database = store.sqlite_file(uri)
    if database is not None and not database.exists():
        raise UserError(f"{database}: nothing has been recorded there yet; run the pipeline first (make run)")
    check_port(host, port)
    server = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    page = server + runs_page(uri, experiment)
    sys.stdout.write(f"MLflow's pages: {page}\n(stop with Ctrl-C)\n")
    sys.stdout.flush()
    if browser:
        subprocess.Popen([sys.executable, "-c", _WHEN_READY, server, page], start_new_session=True)
    os.execve(sys.executable, server_command(uri, host, port), server_environment())


def runs_page(uri: str, experiment: str) -> str:
    """The page, below a server's address, with an experiment's table of pipeline runs; "" where it does not exist."""
    client = store.open_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return ""
    views.install(client, found.experiment_id)
    return f"/#/experiments/{found.experiment_id}/runs{store.TRAINING_VIEW}&viewStateShareKey={views.PIPELINES.key}"


def server_command(uri: str, host: str, port: int) -> list[str]:
    """The command line of an MLflow server over `uri`, whose artifacts lie beside the database."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    names = {"localhost", "127.0.0.1", host}
    if host in ("0.0.0.0", "::"):
        names |= {socket.gethostname(), socket.getfqdn()}
    # MLflow compares the Host header with its port, which browsers leave out where it is 80.
    command += ["--allowed-hosts", ",".join(sorted(name if port == 80 else f"{name}:{port}" for name in names))]
    if (database := store.sqlite_file(uri)) is not None:
        command += ["--artifacts-destination", (database.parent / "artifacts").as_uri()]
    return command


def server_environment() -> dict[str, str]:
    """The environment of that server: without the job queue of MLflow's GenAI features, it starts in half the time."""
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}


def check_port(host: str, port: int) -> None:
    """Raise `UserError` unless `port` can be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} on {host} cannot be used ({getattr(error, 'strerror', None) or error}); "
                f"stop what listens there (lsof -i :{port} names it), or give another with --port"
            ) from None
