"""A local HTTP server in the role of a cluster's API, as far as Kubeflow Trainer's SDK uses it.

TrainJobs that are sent to it are held against kubeflow_trainer_api's models. Each question for a job's status takes it
a step on, from being made to running to its end.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api import models

DEPLOY = Path(__file__).parents[4] / "deploy"
NAMESPACE = "team"
TRAINER = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}"
CORE = f"/api/v1/namespaces/{NAMESPACE}"


@dataclass
class Cluster:
    """What the server holds, and what it is told to do."""

    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # "GET /path"
    outcome: str = "Complete"
    logs: list[str | bytes] = field(default_factory=lambda: ["step 1", "step 2"])
    reason: str = "Test"  # of the condition that a job ends with
    log_reads: list[dict[str, list[str]]] = field(default_factory=list)  # what was asked for
    on_create: Callable[[dict[str, Any]], None] = lambda _: None
    fail: list[tuple[str, int]] = field(default_factory=list)  # the next request that begins so gets this status

    def runtime(self) -> dict[str, Any]:
        runtime = yaml.safe_load((DEPLOY / "training-runtime.yaml").read_text(encoding="utf-8"))
        runtime["metadata"]["namespace"] = NAMESPACE
        return dict(runtime)

    def job(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        job["asked"] += 1
        made = {key: value for key, value in job.items() if key != "asked"}
        if job["asked"] > 3:
            condition = {
                "type": self.outcome,
                "status": "True",
                "reason": self.reason,
                "message": "",
                "lastTransitionTime": _now(),
            }
            made["status"] = {"conditions": [condition]}
        return made

    def pods(self, selector: str) -> list[dict[str, Any]]:
        name = selector.split(",")[0].split("=")[1]
        labels = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/replicatedjob-name": "node"}
        job = self.jobs[name]
        count = job["spec"]["trainer"]["numNodes"]
        phase = "Pending" if job["asked"] < 2 else "Running"
        return [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{name}-node-0-{index}",
                    "labels": {**labels, "batch.kubernetes.io/job-completion-index": str(index)},
                    "creationTimestamp": _now(),
                },
                "spec": {"containers": [{"name": "node", "image": "x"}]},
                "status": {"phase": phase},
            }
            for index in range(count)
        ]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def log_message(self, format: str, *args: object) -> None:
        return

    def answer(self, status: int, body: Any, kind: str = "application/json") -> None:
        data = json.dumps(body).encode() if kind == "application/json" else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, message: str = "refused") -> None:
        self.answer(
            status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
        )

    def handle_request(self) -> None:
        cluster = self.cluster
        parts = urlsplit(self.path)
        cluster.asked.append(f"{self.command} {parts.path}")
        for entry in cluster.fail:
            if cluster.asked[-1].startswith(entry[0]):
                cluster.fail.remove(entry)
                self.refuse(entry[1])
                return
        self.respond(parts.path, parse_qs(parts.query))

    def respond(self, path: str, query: dict[str, list[str]]) -> None:
        cluster, name = self.cluster, path.rpartition("/")[2]
        if self.command == "POST" and path == f"{TRAINER}/trainjobs":
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            read = models.TrainerV1alpha1TrainJob.from_dict(body)
            if read is None or read.to_dict() != body:
                self.refuse(422, "not a TrainJob")
                return
            body["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": _now()}
            if body["metadata"]["name"] in cluster.jobs:
                self.refuse(409, "exists")
                return
            cluster.created.append(json.loads(json.dumps(body)))
            cluster.jobs[body["metadata"]["name"]] = {**body, "asked": 0}
            cluster.on_create(body)
            self.answer(201, body)
        elif path == f"{TRAINER}/trainjobs":
            key, _, value = query["labelSelector"][0].partition("=")
            found = [job for job in cluster.jobs.values() if job["metadata"].get("labels", {}).get(key) == value]
            self.answer(200, {"apiVersion": "v1", "kind": "TrainJobList", "metadata": {}, "items": found})
        elif path == f"{TRAINER}/trainjobs/{name}" and name in cluster.jobs:
            if self.command == "DELETE":
                cluster.deleted.append(name)
                self.answer(200, cluster.jobs.pop(name))
            else:
                self.answer(200, cluster.job(name))
        elif path == f"{TRAINER}/trainingruntimes/rest-torch":
            self.answer(200, cluster.runtime())
        elif path == f"{CORE}/pods":
            self.answer(
                200,
                {
                    "kind": "PodList",
                    "apiVersion": "v1",
                    "metadata": {},
                    "items": cluster.pods(query["labelSelector"][0]),
                },
            )
        elif path.startswith(f"{CORE}/pods/") and path.endswith("/log"):
            cluster.log_reads.append(query)
            self.answer(200, b"".join(_lines(cluster.logs, "timestamps" in query)), "text/plain")
        else:
            self.refuse(404, f"{path} not found")

    do_GET = do_POST = do_DELETE = handle_request


def _lines(logs: list[str | bytes], timed: bool) -> Iterator[bytes]:
    for number, line in enumerate(logs):
        text = line if isinstance(line, bytes) else line.encode()
        yield (f"2026-01-01T00:00:{number:02}.000000000Z ".encode() if timed else b"") + text + b"\n"


@contextmanager
def serve() -> Iterator[Cluster]:
    """A cluster with the TrainingRuntime of deploy/, and nothing else."""
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
