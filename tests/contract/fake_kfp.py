"""A local HTTP server that answers as KFP's API does, checks every request against the contract, and fails on demand.

It schedules nothing: a run goes through the states that a test gives it, one at each look.
"""

from __future__ import annotations

import email
import email.policy
import json
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from contract import Contract
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

LOG_IN_PAGE = b"<!doctype html><html><head><title>Log in to\n Dex</title></head><body>...</body></html>"
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 500: 13, 503: 14, 504: 4}


@dataclass
class Failure:
    """One way to fail.

    Attributes:
        method, path: of the requests that fail; `path` is a part of theirs.
        how: a status, or "drop" (closed without an answer), "half" (closed within it), "hang" (no answer in time),
            "page" (a log-in page with status 200), "garbage" (no JSON), "redirect" (to another address), "proxy" (403
            in plain text), or the body of a success.
        times: how often.
        after: whether the request is carried out before its answer fails.
        headers: of the answer.
    """

    method: str
    path: str
    how: int | str | bytes
    times: int = 1
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any

    @property
    def filtered_name(self) -> str | None:
        """The display name that the filter asks for."""
        if "filter" not in self.query:
            return None
        [predicate] = json.loads(self.query["filter"][0])["predicates"]
        assert predicate["operation"] == 1 and predicate["key"] == "display_name", predicate
        return predicate["stringValue"]


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeKfp:
    """The server and its state.

    Attributes:
        requests: every request that came, also those that were made to fail.
        problems: what did not fit the contract, in requests or in this server's own answers.
        token: the only bearer token that is accepted; None = anybody.
        multi_user: whether KFP serves several users, so that lists need a namespace.
        progress: states of a new run's stages, one item a look; the run's own state comes with them.
        logs: text of KFP's log endpoint by pod.
        prefix: of every path, where the API stands behind a proxy.
        redirect_to: address for requests that are made to fail with "redirect".
    """

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.failures: list[Failure] = []
        self.token: str | None = None
        self.multi_user = False
        self.progress: list[tuple[str, dict[str, Any]]] = []
        self.logs: dict[str, str] = {}
        self.prefix = ""
        self.redirect_to = "https://dex.example/auth"
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self._progress_of: dict[str, Iterator[tuple[str, dict[str, Any]]]] = {}
        self._lock = threading.Lock()
        self.released = threading.Event()  # ends what hangs
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                server.answer(self)

            do_GET = do_POST = do_DELETE = handle_one

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def serve_tls(self, certificate: Path, key: Path) -> None:
        """From now on answer https:// alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.url = self.url.replace("http:", "https:")

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def fail(self, method: str, path: str, how: int | str | bytes, **settings: Any) -> None:
        self.failures.append(Failure(method, path, how, **settings))

    def sent(self, method: str, path: str) -> list[Request]:
        """Requests of this method whose path ends so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(path)]

    def add_run(self, name: str, state: str, stages: dict[str, Any] | None = None, **more: Any) -> str:
        """A run that is there already; returns its id."""
        run_id = str(uuid.uuid4())
        self.runs[run_id] = {
            "run_id": run_id,
            "display_name": name,
            "created_at": f"2026-01-01T00:00:{len(self.runs):02}Z",
            "finished_at": "1970-01-01T00:00:00Z",
            "state": state,
            "run_details": {"task_details": tasks("wf", stages or {})},
            **more,
        }
        return run_id

    # The HTTP side

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        raw = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        request = Request(
            handler.command,
            unquote(url.path).removeprefix(self.prefix),
            parse_qs(url.query),
            dict(handler.headers),
            raw,
        )
        with self._lock:
            failure = next((f for f in self.failures if f.method == request.method and f.path in handler.path), None)
            if failure is not None:
                failure.times -= 1
                if failure.times == 0:
                    self.failures.remove(failure)
            self.requests.append(request)
            if failure is None or failure.after:
                status, body = self._respond(request)
        if failure is not None:
            self._fail(handler, failure)
            return
        self._send(handler, status, body)

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes | dict[str, Any], **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _fail(self, handler: BaseHTTPRequestHandler, failure: Failure) -> None:
        handler.close_connection = True
        if isinstance(failure.how, int):
            body = {"code": _CODES.get(failure.how, 2), "message": f"made to fail\nwith {failure.how}", "details": []}
            self._send(handler, failure.how, body, **failure.headers)
        elif isinstance(failure.how, bytes):
            self._send(handler, 200, failure.how)
        elif failure.how == "page":
            self._send(handler, 200, LOG_IN_PAGE, **{"Content-Type": "text/html"})
        elif failure.how == "garbage":
            self._send(handler, 200, b'{"run_id": "x"')
        elif failure.how == "redirect":
            self._send(handler, 302, b"", Location=self.redirect_to)
        elif failure.how == "proxy":
            self._send(handler, 403, b"RBAC: access denied", **{"Content-Type": "text/plain"})
        elif failure.how == "hang":
            self.released.wait(10)
        elif failure.how == "half":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"run_id": "')
        else:
            assert failure.how == "drop", failure.how

    def _respond(self, request: Request) -> tuple[int, bytes | dict[str, Any]]:
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"code": 16, "message": "Unauthenticated", "details": []}
        if request.path.startswith("/apis/v1alpha1/runs/"):  # outside the OpenAPI file
            pod = request.path.split("/")[-2]
            if pod not in self.logs:
                return 500, {"error_message": f"Failed to read logs from pod {pod}", "error_details": "..."}
            return 200, self.logs[pod].encode()
        known = self.contract.find(request.method, request.path)
        if known is None:
            self.problems.append(f"{request.method} {request.path}: not in the contract")
            return 404, b"404 page not found"
        operation, parameters = known
        content_type = request.headers.get("Content-Type", "")
        request.body = _parsed(content_type, request.body)
        problems = self.contract.request_problems(operation, request.query, content_type, request.body)
        if problems:
            self.problems += [f"{request.method} {request.path}: {problem}" for problem in problems]
            return 400, {"code": 3, "message": "; ".join(problems), "details": []}
        name = f"{operation.method} {operation.path.removeprefix('/apis/v2beta1/')}"
        try:
            answer = _HANDLERS[name](self, request, **parameters)
        except Refusal as refusal:
            return refusal.status, {"code": _CODES[refusal.status], "message": str(refusal), "details": []}
        self.problems += [f"answer to {name}: {p}" for p in self.contract.answer_problems(operation, answer)]
        return 200, answer

    # What KFP does with requests

    def _require_namespace(self, request: Request) -> None:
        if self.multi_user and not (request.query.get("namespace") or request.query.get("experiment_id")):
            raise Refusal(400, "Invalid input error: a namespace is required in multi-user mode")

    def _run(self, run_id: str) -> dict[str, Any]:
        if run_id not in self.runs:
            raise Refusal(404, f"Failed to get run: ResourceNotFoundError: Run {run_id} not found")
        return self.runs[run_id]

    def _schedule(self, schedule_id: str) -> dict[str, Any]:
        if schedule_id not in self.schedules:
            raise Refusal(404, f"ResourceNotFoundError: Job {schedule_id} not found")
        return self.schedules[schedule_id]

    def _check_source(self, body: dict[str, Any]) -> None:
        """The pipeline of a run or schedule: parsed as KFP does, its parameters checked against its inputs."""
        if "pipeline_version_reference" in body:
            reference = body["pipeline_version_reference"]
            version = self.versions.get(reference["pipeline_version_id"])
            if version is None or version["pipeline_id"] != reference["pipeline_id"]:
                raise Refusal(404, "ResourceNotFoundError: PipelineVersion not found")
            spec = json_format.ParseDict(version["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
        else:
            spec = parse_pipeline(body["pipeline_spec"])
        inputs = spec.root.input_definitions.parameters
        parameters = body.get("runtime_config", {}).get("parameters", {})
        if unknown := set(parameters) - set(inputs):
            raise Refusal(400, f"Invalid input error: Unrecognized input parameter: {unknown}")
        if missing := {name for name, about in inputs.items() if not about.is_optional} - set(parameters):
            raise Refusal(400, f"Invalid input error: parameters are required: {missing}")

    def healthz(self, _: Request) -> dict[str, Any]:
        return {"multi_user": self.multi_user, "pipeline_store": "database"}

    def list_experiments(self, request: Request) -> dict[str, Any]:
        self._require_namespace(request)
        return _listed("experiments", self.experiments, request)

    def create_experiment(self, request: Request) -> dict[str, Any]:
        if any(known["display_name"] == request.body["display_name"] for known in self.experiments.values()):
            raise Refusal(409, "Already exist error: the experiment name is taken")
        return _added(self.experiments, "experiment_id", request.body)

    def list_pipelines(self, request: Request) -> dict[str, Any]:
        return _listed("pipelines", self.pipelines, request)

    def create_pipeline(self, request: Request) -> dict[str, Any]:
        return _added(self.pipelines, "pipeline_id", request.body)

    def list_versions(self, request: Request, pipeline_id: str) -> dict[str, Any]:
        own = {key: value for key, value in self.versions.items() if value["pipeline_id"] == pipeline_id}
        return _listed("pipeline_versions", own, request)

    def upload_version(self, request: Request) -> dict[str, Any]:
        documents = list(yaml.safe_load_all(request.body["uploadfile"]))
        parse_pipeline({"pipeline_spec": documents[0], **({"platform_spec": documents[1]} if documents[1:] else {})})
        name, pipeline_id = request.query["name"][0], request.query["pipelineid"][0]
        if pipeline_id not in self.pipelines:
            raise Refusal(404, "ResourceNotFoundError: Pipeline not found")
        if any(known["name"] == name for known in self.versions.values()):
            raise Refusal(409, f"Already exist error: a version with the name {name} already exists")
        made = {"name": name, "display_name": name, "pipeline_id": pipeline_id, "pipeline_spec": documents[0]}
        return _added(self.versions, "pipeline_version_id", made)

    def list_runs(self, request: Request) -> dict[str, Any]:
        self._require_namespace(request)
        return _listed("runs", self.runs, request, without=("run_details", "pipeline_spec"))

    def create_run(self, request: Request) -> dict[str, Any]:
        self._check_source(request.body)
        run = _added(self.runs, "run_id", {**request.body, "state": "PENDING"})
        self._progress_of[run["run_id"]] = iter(self.progress)
        return run

    def get_run(self, _: Request, run_id: str) -> dict[str, Any]:
        run = self._run(run_id)
        following = next(self._progress_of.get(run_id, iter(())), None)
        if following is not None:
            run["state"], stages = following
            run["run_details"] = {"task_details": tasks("wf", stages)}
            if "state_history" in run:
                run["state_history"].append({"state": run["state"]})
        return run

    def retry_run(self, _: Request, run_id: str) -> dict[str, Any]:
        run = self._run(run_id)
        if run["state"] not in ("FAILED", "CANCELED"):
            raise Refusal(400, "Workflow must be Failed/Error to retry")
        run["state_history"] = [{"state": run["state"]}, {"state": "RUNNING"}]
        run["state"] = "RUNNING"
        self._progress_of[run_id] = iter(self.progress)
        return {}

    def terminate_run(self, _: Request, run_id: str) -> dict[str, Any]:
        run = self._run(run_id)
        if run["state"] not in ("PENDING", "RUNNING", "PAUSED"):
            raise Refusal(400, f"Failed to terminate a run {run_id}. Row not found")
        run["state"] = "CANCELING"
        return {}

    def list_schedules(self, request: Request) -> dict[str, Any]:
        self._require_namespace(request)
        return _listed("recurringRuns", self.schedules, request)

    def create_schedule(self, request: Request) -> dict[str, Any]:
        self._check_source(request.body)
        if not 1 <= int(request.body["max_concurrency"]) <= 10:
            raise Refusal(400, "max_concurrency must be in [1, 10]")
        enabled = "ENABLED" if request.body["mode"] == "ENABLE" else "DISABLED"
        return _added(self.schedules, "recurring_run_id", {**request.body, "status": enabled})

    def get_schedule(self, _: Request, recurring_run_id: str) -> dict[str, Any]:
        return self._schedule(recurring_run_id)

    def delete_schedule(self, _: Request, recurring_run_id: str) -> dict[str, Any]:
        self._schedule(recurring_run_id)
        del self.schedules[recurring_run_id]
        return {}

    def enable_schedule(self, _: Request, recurring_run_id: str) -> dict[str, Any]:
        self._schedule(recurring_run_id)["status"] = "ENABLED"
        return {}

    def disable_schedule(self, _: Request, recurring_run_id: str) -> dict[str, Any]:
        self._schedule(recurring_run_id)["status"] = "DISABLED"
        return {}


_HANDLERS: dict[str, Callable[..., dict[str, Any]]] = {
    "GET healthz": FakeKfp.healthz,
    "GET experiments": FakeKfp.list_experiments,
    "POST experiments": FakeKfp.create_experiment,
    "GET pipelines": FakeKfp.list_pipelines,
    "POST pipelines": FakeKfp.create_pipeline,
    "GET pipelines/{pipeline_id}/versions": FakeKfp.list_versions,
    "POST pipelines/upload_version": FakeKfp.upload_version,
    "GET runs": FakeKfp.list_runs,
    "POST runs": FakeKfp.create_run,
    "GET runs/{run_id}": FakeKfp.get_run,
    "POST runs/{run_id}:retry": FakeKfp.retry_run,
    "POST runs/{run_id}:terminate": FakeKfp.terminate_run,
    "GET recurringruns": FakeKfp.list_schedules,
    "POST recurringruns": FakeKfp.create_schedule,
    "GET recurringruns/{recurring_run_id}": FakeKfp.get_schedule,
    "DELETE recurringruns/{recurring_run_id}": FakeKfp.delete_schedule,
    "POST recurringruns/{recurring_run_id}:enable": FakeKfp.enable_schedule,
    "POST recurringruns/{recurring_run_id}:disable": FakeKfp.disable_schedule,
}


def parse_pipeline(value: dict[str, Any]) -> pipeline_spec_pb2.PipelineSpec:
    """The pipeline of a request as KFP reads it: pipeline spec, and the Kubernetes settings of its executors."""
    spec = json_format.ParseDict(value.get("pipeline_spec", value), pipeline_spec_pb2.PipelineSpec())
    platforms = json_format.ParseDict(value.get("platform_spec", {}), pipeline_spec_pb2.PlatformSpec()).platforms
    for name, settings in platforms["kubernetes"].deployment_spec.executors.items():
        assert name in spec.deployment_spec["executors"], f"settings for {name}, which does not exist"
        config = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        json_format.ParseDict(json_format.MessageToDict(settings), config)
    return spec


def tasks(workflow: str, stages: dict[str, Any]) -> list[dict[str, Any]]:
    """Task details as KFP makes them of Argo's nodes: root, and for each stage its driver, its DAG and its executor.

    A stage's value is its state, or a list of them for iterations of a loop, each a list for several attempts.
    "CACHED": its executor was skipped. "DRIVER FAILED": it never began itself.
    """
    made: list[dict[str, Any]] = []
    number = 0

    def node(name: str, template: str, state: str, children: list[str], error: str | None = None) -> str:
        nonlocal number
        number += 1
        started = f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z"
        ended = "1970-01-01T00:00:00Z" if state in ("RUNNING", "PENDING") else "2026-01-01T02:05:00Z"
        made.append(
            {
                "task_id": str(uuid.uuid4()),
                "display_name": name,
                "state": state,
                "create_time": started,
                "start_time": started,
                "end_time": ended,
                "pod_name": f"{workflow}-{template}-{1000 + number}",
                "child_tasks": [{"pod_name": child} for child in children],
                **({"error": {"code": 2, "message": error}} if error else {}),
            }
        )
        return f"{workflow}-{1000 + number}"

    below = []
    for name, iterations in stages.items():
        for attempts in iterations if isinstance(iterations, list) else [iterations]:
            states = attempts if isinstance(attempts, list) else [attempts]
            error = "exit code 1" if states[-1] == "FAILED" else None
            if states == ["DRIVER FAILED"]:
                node(f"{name}-driver", "system-container-driver", "FAILED", [], "no such input")
                below.append(node(name, "system-container-executor", "RUNTIME_STATE_UNSPECIFIED", []))
                continue
            node(f"{name}-driver", "system-container-driver", "SUCCEEDED", [])
            if states == ["CACHED"]:
                states = ["SUCCEEDED"]
                child = node("executor", "system-container-impl", "SKIPPED", [])
            elif len(states) == 1:
                child = node("executor", "system-container-impl", states[0], [], error)
            else:
                tried = [node(f"executor({n})", "system-container-impl", state, []) for n, state in enumerate(states)]
                child = node("executor", "retry-system-container-impl", states[-1], tried)
            below.append(node(name, "system-container-executor", states[-1], [child], error))
    node("root", "root", "RUNNING", below)
    return made


def _parsed(content_type: str, raw: bytes) -> Any:
    if content_type.startswith("multipart/form-data"):
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        message = email.message_from_bytes(head + raw, policy=email.policy.HTTP)
        return {
            part.get_param("name", header="content-disposition"): part.get_content()
            if part.get_content_maintype() == "text"
            else part.get_payload(decode=True)
            for part in message.iter_parts()
        }
    return json.loads(raw) if raw else None


def _added(table: dict[str, dict[str, Any]], key: str, value: dict[str, Any]) -> dict[str, Any]:
    made = {**value, key: str(uuid.uuid4()), "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    table[made[key]] = made
    return made


def _listed(
    name: str, table: dict[str, dict[str, Any]], request: Request, *, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The newest first, as many as the page has; an empty list is left out, as protobuf's JSON does."""
    wanted = request.filtered_name
    [experiment_id] = request.query.get("experiment_id", [None])
    chosen = [
        {key: value for key, value in item.items() if key not in without}
        for item in reversed(table.values())
        if (wanted is None or item["display_name"] == wanted)
        and (not experiment_id or item.get("experiment_id") == experiment_id)
    ]
    size = int(request.query.get("page_size", ["20"])[0])
    return {**({name: chosen[:size]} if chosen else {}), "total_size": len(chosen)}
