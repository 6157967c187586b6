"""Servers of a test alone: what a cluster has and this machine has not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from kubernetes import client
from moto import mock_aws

from rest_core.operations import pods

Answer = tuple[Any, ...]  # HTTP status; body, text and bytes as they are, all else as JSON; headers where there are any


@pytest.fixture
def http_server() -> Iterator[Callable[[Callable[[str, dict[str, str]], Answer]], str]]:
    """http_server(answer) serves what answer(path, query) says to GET, HEAD, POST and PATCH; returns the address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Callable[[str, dict[str, str]], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                status, body, *headers = answer(parts.path, query)
                plain = isinstance(body, (str, bytes))
                text = body if plain else json.dumps(body)
                content = text if isinstance(text, bytes) else text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if plain else "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in dict(*headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_HEAD = do_POST = do_PATCH = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing: the test's output is no access log."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def empty_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a store without buckets, which lasts as long as the test; boto3 talks to no other."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("s3")


class Cluster:
    """A Kubernetes API with what a test puts there; `forbidden` are the resources that it answers 403 to.

    `named` are objects that are got by their names: ("persistentvolumeclaims", "work").
    """

    namespace = "team"

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, bytes] = {}
        self.nodes: list[dict[str, Any]] = []
        self.named: dict[tuple[str, str], dict[str, Any]] = {}
        self.forbidden: set[str] = set()
        self.asked: list[tuple[str, dict[str, str]]] = []

    def answer(self, path: str, query: dict[str, str]) -> Answer:
        self.asked.append((path, query))
        resource, last = path.split("/")[-2:]
        if {resource, last} & self.forbidden:
            return 403, {"kind": "Status", "message": "forbidden"}
        if last == "log":
            name = path.split("/")[-2]
            lines = self.logs.get(name)
            return (404, {"kind": "Status"}) if lines is None else (200, _tail(lines, query))
        if last == "pods":
            found = [pod for pod in self.pods if _selects(query["labelSelector"], pod["metadata"]["labels"])]
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": found}
        if last == "nodes":
            return 200, {"kind": "NodeList", "apiVersion": "v1", "items": self.nodes}
        found = self.named.get((resource, last))
        return (404, {"kind": "Status"}) if found is None else (200, found)

    def add_pod(
        self,
        stage: str,
        *,
        run: str = "run-1",
        phase: str = "Succeeded",
        created: str = "2026-01-01T00:00:00Z",
        log: str | bytes | None = None,
        reason: str | None = None,
        terminated: dict[str, Any] | None = None,
        waiting: dict[str, Any] | None = None,
        node: str | None = "node-1",
    ) -> str:
        name = f"rest-{stage}-{len(self.pods)}"
        labels = {pods.RUN_ID_LABEL: run, pods.PART_OF_LABEL: pods.PROJECT, pods.STAGE_LABEL: stage}
        state = {key: value for key, value in (("terminated", terminated), ("waiting", waiting)) if value}
        status = {"name": "main", "image": "i", "imageID": "i", "ready": False, "restartCount": 0, "state": state}
        self.pods.append(
            {
                "metadata": {"name": name, "labels": labels, "creationTimestamp": created},
                "spec": {"nodeName": node, "containers": [{"name": "main", "image": "registry.example/rest"}]},
                "status": {"phase": phase, "reason": reason, "containerStatuses": [status]},
            }
        )
        if log is not None:
            self.logs[name] = log.encode() if isinstance(log, str) else log
        return name

    def add_claim(self, name: str, phase: str, storage_class: str | None = None) -> None:
        spec = {"accessModes": ["ReadWriteMany"], "storageClassName": storage_class}
        status = {"phase": phase, "capacity": {"storage": "500Gi"}}
        self.named["persistentvolumeclaims", name] = {"metadata": {"name": name}, "spec": spec, "status": status}

    def add_storage_class(self, name: str, mode: str) -> None:
        made = {"metadata": {"name": name}, "provisioner": "p", "volumeBindingMode": mode}
        self.named["storageclasses", name] = made

    def add_node(
        self,
        name: str,
        *,
        gpus: int = 0,
        labels: dict[str, str] | None = None,
        taints: tuple[dict[str, str], ...] = (),
        memory: str = "32Gi",
    ) -> None:
        self.nodes.append(
            {
                "metadata": {"name": name, "labels": labels or {}},
                "spec": {"taints": list(taints)},
                "status": {"allocatable": {"cpu": "7900m", "memory": memory, "nvidia.com/gpu": str(gpus)}},
            }
        )


def _selects(selector: str, labels: dict[str, str]) -> bool:
    """Equality and existence, of what Kubernetes' label selectors have."""
    parts = [part.split("=") for part in selector.split(",")]
    return all(labels.get(key) == value[0] if value else key in labels for key, *value in parts)


def _tail(text: bytes, query: dict[str, str]) -> bytes:
    return b"\n".join(text.split(b"\n")[-int(query["tailLines"]) :])


@pytest.fixture
def cluster(http_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """What `pods.connect` connects to; this process is a pod of the run "run-1"."""
    made = Cluster()
    settings = client.Configuration(host=http_server(made.answer))
    api = client.CoreV1Api(client.ApiClient(settings))
    monkeypatch.setattr(pods, "connect", lambda: (api, made.namespace))
    monkeypatch.setenv(pods.RUN_ID_VARIABLE, "run-1")
    return made
