"""Pictures of MLflow's pages for docs/mlflow.md, of the newest pipeline run in a store of this machine.

    python docs/screenshots.py [--store sqlite:///mlruns/mlflow.db] [--out docs/images]

It starts MLflow's server over the store and drives a headless Chromium (Debian's package `chromium`; another one by the
variable CHROMIUM) through its debugging protocol. A page is pictured when it shows the text that it is about.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import registry, store, ui
from rest_core.operations.tracking.run_tree import PARENT_TAG
from rest_core.operations.tracking.tags import KIND_TAG, PIPELINE_RUN_TAG, STAGE_TAG

WIDTH, HEIGHT = 1500, 900
PATIENCE_SECONDS = 60.0
SETTLE_SECONDS = 3.0  # charts are drawn after their titles
_CLOSE_ASSISTANT = (
    "document.querySelector('[data-component-id=\"mlflow.assistant.chat_panel.close\"]')?.click()"  # covers a quarter
)
_SCROLL = (
    "[...document.querySelectorAll('*')].filter(e => /^GROUP\\s*\\(\\d+\\)/.test(e.innerText?.trim())).pop()"
    "?.scrollIntoView()"
)


@dataclass(frozen=True)
class Page:
    """A page of MLflow, and what it must show before it is pictured."""

    name: str
    path: str
    shows: str
    begin: str = ""
    """The group of charts that the picture begins with."""


def pages(client: MlflowClient, uri: str, experiment: str) -> Iterator[Page]:
    """The pages of the newest pipeline run that has finished."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"no experiment {experiment!r}"
    id_ = found.experiment_id

    def newest(**tags: str) -> Run:
        names = {"kind": KIND_TAG, "stage": STAGE_TAG, "parent": PARENT_TAG}
        wanted = " and ".join(f"tags.`{names[key]}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time DESC"]
        return client.search_runs([id_], f"{wanted} and attributes.status = 'FINISHED'", order_by=order)[0]

    pipeline = newest(kind="pipeline")
    stages = {
        name: newest(stage=name, parent=pipeline.info.run_id)
        for name in ("rest-rl", "evaluate-bfcl-base", "evaluate-bfcl-trained", "compare-and-register")
    }
    training = store.TRAINING_VIEW
    yield Page("runs", ui.runs_page(uri, experiment), pipeline.data.tags[PIPELINE_RUN_TAG][:20])
    yield Page("pipeline", f"/#/experiments/{id_}/runs/{pipeline.info.run_id}{training}", "irrelevance")
    charts = f"/#/experiments/{id_}/runs/{stages['rest-rl'].info.run_id}/model-metrics{training}"
    yield Page("charts", charts, "reward", begin="reward")
    ours, theirs = (stages[f"evaluate-bfcl-{name}"].info.run_id for name in ("trained", "base"))
    yield Page("answers", f"/#/experiments/{id_}/runs/{ours}/traces?compareToRunUuid={theirs}", "compare to")
    name, _, version = stages["compare-and-register"].data.tags["rest.registered"].partition(" version ")
    registry.get_version(client, name, version)
    yield Page("version", f"/#/models/{name}/versions/{version}", "How to use it")


@contextlib.contextmanager
def server(uri: str) -> Iterator[str]:
    """MLflow's server over a store; gives its address."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = ui.server_environment() | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(ui.server_command(uri, "127.0.0.1", port), env=environment, **quiet) as process:
        try:
            _wait(f"{address}/health")
            yield address
        finally:
            process.terminate()


class Browser:
    """A tab of a headless Chromium."""

    def __init__(self, port: int) -> None:
        tabs = json.load(_wait(f"http://127.0.0.1:{port}/json"))
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self._socket = websocket.create_connection(address, timeout=PATIENCE_SECONDS, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def run(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script)["result"].get("value")

    def picture(self, address: str, page: Page) -> bytes:
        """PNG of a page, when it shows what it must."""
        self.call("Page.navigate", url="about:blank")  # the next address may differ behind the # alone
        self.call("Page.navigate", url=address + page.path)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.run(f"document.body?.innerText.includes({json.dumps(page.shows)})"):
            assert time.monotonic() < deadline, f"{address}{page.path} does not show {page.shows!r}"
            time.sleep(0.5)
        self.run(_CLOSE_ASSISTANT)
        if page.begin:
            self.run(_SCROLL.replace("GROUP", page.begin))
        time.sleep(SETTLE_SECONDS)
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "no chromium on PATH: apt-get install chromium, or set CHROMIUM"
    port = _free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [f"--remote-debugging-port={port}", f"--user-data-dir={profile}"]
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
        with subprocess.Popen([*command, "about:blank"], stderr=subprocess.DEVNULL) as process:
            try:
                yield Browser(port)
            finally:
                process.terminate()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait(address: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return urllib.request.urlopen(address, timeout=10)
        except OSError:
            assert time.monotonic() < deadline, f"{address} does not answer"
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="tracking URI; default as in `rest run`")
    parser.add_argument("--experiment", default=TrackingConfig().experiment)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    given = parser.parse_args()
    uri = store.resolve_uri(TrackingConfig(uri=given.store))
    given.out.mkdir(parents=True, exist_ok=True)
    client = store.open_client(uri)
    with server(uri) as address, browser() as tab:
        for page in pages(client, uri, given.experiment):
            picture = Image.open(io.BytesIO(tab.picture(address, page))).convert("RGB")
            file = given.out / f"mlflow-{page.name}.png"
            picture.quantize(128).save(file, optimize=True)
            sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
