"""A local HTTP server with the part of the Kubernetes API that logs are read from; its pods fit the schema."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubernetes_schema import built


class FakeKubernetes:
    """Pods of one namespace and their logs.

    Attributes:
        requests: path and query of each request.
        refuse: status with which every request is refused; None = none is.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.requests: list[tuple[str, dict[str, list[str]]]] = []
        self.refuse: int | None = None
        self._pods: list[dict[str, Any]] = []
        self._logs: dict[str, str] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @staticmethod
    def write_kubeconfig(path: Path, server: str, *, token: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config), encoding="utf-8")

    def add_pod(
        self,
        name: str,
        *,
        run_id: str,
        node: str,
        created: str,
        log: str | None,
        state: dict[str, Any],
        phase: str,
        **more: Any,
    ) -> None:
        """A pod that Argo made for the workflow's node `node`.

        `state` is that of its main container, `more` are further fields of the pod's status.
        """
        status: dict[str, Any] = {"phase": phase, **more}
        if state:
            container = {"image": "i", "imageID": "i", "ready": False, "restartCount": 0}
            status["containerStatuses"] = [
                {**container, "name": "wait", "state": {"running": {}}},
                {**container, "name": "main", "state": state},
            ]
        else:
            status["conditions"] = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes:\n no GPU"}
            ]
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "creationTimestamp": created,
            "labels": {"pipeline/runid": run_id, "workflows.argoproj.io/workflow": "wf"},
            "annotations": {"workflows.argoproj.io/node-name": node},
        }
        pod = {"metadata": metadata, "spec": {"containers": []}, "status": status}
        built("V1Pod", pod, name)
        self._pods.append(pod)
        if log is not None:
            self._logs[name] = log

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = parse_qs(url.query)
        self.requests.append((url.path, query))
        assert handler.headers["Authorization"] == "Bearer t"
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        if self.refuse is not None:
            self._send(handler, self.refuse, {"kind": "Status", "message": "pods is forbidden: User cannot list"})
        elif url.path == pods:
            key, _, value = query["labelSelector"][0].partition("=")
            found = [pod for pod in self._pods if pod["metadata"]["labels"].get(key) == value]
            self._send(handler, 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})
        elif url.path.startswith(f"{pods}/") and url.path.endswith("/log"):
            assert query["container"] == ["main"]
            log = self._logs.get(url.path.split("/")[-2])
            if log is None:
                self._send(handler, 404, {"kind": "Status", "message": "the container is gone"})
                return
            lines = log.splitlines(keepends=True)
            self._stream(handler, lines[-int(query["tailLines"][0]) :] if "tailLines" in query else lines)
        else:
            self._send(handler, 404, {"kind": "Status", "message": f"{url.path} not found"})

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _stream(self, handler: BaseHTTPRequestHandler, lines: list[str]) -> None:
        """In chunks that end within characters, as a network may cut them."""
        content = "".join(lines).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(content), 5):
            chunk = content[start : start + 5]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n")
