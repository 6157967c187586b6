"""The manifests of deploy/mlflow and the pod of a stage, run by `podman kube play` (make test-manifests).

Where the published images cannot be pulled, images made here stand in under their names: MLflow from PyPI, PostgreSQL
from Debian's package.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import docker
import psutil
import pytest
import yaml
from docker.errors import ImageNotFound
from mlflow_server import status
from moto.server import ThreadedMotoServer
from podman_play import Podman, stage_pod

from components.images import image

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
BASE = "python:3.11-slim-bookworm"
NO_PRIVILEGES = {"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}
log = logging.getLogger(__name__)

pytestmark = [pytest.mark.containers, pytest.mark.slow]

MLFLOW = """
FROM {base}
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir mlflow=={version} psycopg2-binary boto3
"""
# As the published image: makes the database that POSTGRES_* name, then runs its arguments.
POSTGRES = r"""
FROM {base}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null \
    && rm -rf /var/lib/apt/lists/* && ln -s /usr/lib/postgresql/* /opt/postgresql && useradd --uid 999 database
ENV PATH=/opt/postgresql/bin:/usr/local/bin:/usr/bin:/bin
RUN printf '%s\n' '#!/bin/bash' 'set -e' 'if [ ! -s "$PGDATA/PG_VERSION" ]; then' \
    '  initdb -U "$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") --auth-host=scram-sha-256 -D "$PGDATA"' \
    '  echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA" postgres' \
    '  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"' \
    '  echo "listen_addresses = '"'*'"'" >> "$PGDATA/postgresql.conf"' 'fi' 'exec "$@"' > /usr/local/bin/start \
    && chmod 755 /usr/local/bin/start
ENTRYPOINT ["start"]
CMD ["postgres"]
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    if os.getuid() != 0:
        pytest.skip("not root: pods with users of their own need that here")
    for program, package in (("podman", "podman"), ("kubectl", "kubectl"), ("openssl", "openssl")):
        if shutil.which(program) is None:
            pytest.skip(f"{package} is not installed")
    found = Podman(tmp_path_factory.mktemp("podman"), f"rest-{secrets.token_hex(4)}")
    yield found
    found.close()


@pytest.fixture(scope="module")
def engine_with_base(engine: docker.DockerClient) -> docker.DockerClient:
    try:
        engine.images.get(BASE)
    except ImageNotFound:
        pytest.skip(f"the Docker engine has no {BASE}")
    return engine


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _have(podman: Podman, engine: docker.DockerClient, name: str, dockerfile: str | None, folder: Path) -> None:
    """See that Podman has an image: the published one, else what the Docker engine builds."""
    if dockerfile is not None:
        if podman("pull", "--quiet", name, check=False):
            log.info("%s was pulled", name)
            return
        folder.mkdir()
        (folder / "Dockerfile").write_text(dockerfile, encoding="utf-8")
        _run("docker", "build", "--quiet", "--tag", name, folder)
        log.info("%s cannot be pulled: a stand-in was built", name)
    if str(engine.images.get(name).id).removeprefix("sha256:") not in podman("images", "--no-trunc", "--quiet"):
        file = folder.with_suffix(".tar")
        _run("docker", "save", "--output", file, name)
        podman("load", "--quiet", "--input", str(file))
        file.unlink()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """deploy/mlflow with TLS to PostgreSQL, as kustomize renders it, by "Kind/name"."""
    top = tmp_path_factory.mktemp("deploy")
    shutil.copytree(DEPLOY, top / "deploy")
    (top / "overlay").mkdir()
    overlay = {"resources": ["../deploy/mlflow"], "components": ["../deploy/mlflow/components/postgres-tls"]}
    (top / "overlay" / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    text = _run("kubectl", "kustomize", top / "overlay")
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Secret mlflow-postgres-tls as the kubelet mounts it for PostgreSQL: of root, and readable for its fsGroup."""
    folder = tmp_path_factory.mktemp("tls")
    asked = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=postgres")
    names = ("-addext", "subjectAltName=DNS:postgres")
    _run(*asked, *names, "-keyout", folder / "tls.key", "-out", folder / "tls.crt")
    shutil.copy(folder / "tls.crt", folder / "ca.crt")
    for name in ("tls.key", "tls.crt", "ca.crt"):
        os.chown(folder / name, 0, 999)
        (folder / name).chmod(0o440 if name == "tls.key" else 0o444)
    folder.chmod(0o755)
    for parent in list(folder.parents)[:2]:
        parent.chmod(0o755)  # pytest's folders are for their owner alone
    return folder


def _examples(file: Path) -> dict[str, Any]:
    return {one["metadata"]["name"]: one for one in yaml.safe_load_all(file.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def store(podman: Podman) -> Iterator[dict[str, str]]:
    """An S3 store that pods reach; the environment of its clients."""
    server = ThreadedMotoServer("0.0.0.0", port=0)
    server.start()
    _, port = server.get_host_and_port()
    given = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": f"http://{podman.gateway}:{port}",
    }
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **_keys(given))
    for bucket in ("rest-pipelines", "mlflow"):
        client.create_bucket(Bucket=bucket)
    yield given
    server.stop()


def _keys(given: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in given.items() if name != "AWS_ENDPOINT_URL"}


@pytest.fixture(scope="module")
def postgres(
    podman: Podman,
    engine_with_base: docker.DockerClient,
    rendered: dict[str, Any],
    certificates: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """PostgreSQL's container, ready by the manifest's own probe."""
    folder = tmp_path_factory.mktemp("postgres")
    workload = rendered["StatefulSet/postgres"]["spec"]
    spec = workload["template"]["spec"]
    (container,) = spec["containers"]
    _have(podman, engine_with_base, container["image"], POSTGRES.format(base=BASE), folder / "image")
    podman.secret(
        _examples(DEPLOY / "mlflow" / "secrets.example.yaml")["mlflow-postgres"], POSTGRES_PASSWORD="p@ss/w:rd %"
    )
    claims = {one["metadata"]["name"]: f"{podman.name}-data" for one in workload["volumeClaimTemplates"]}
    running = podman.play("postgres", spec, claims, {"mlflow-postgres-tls": certificates})
    probe = container["readinessProbe"]["exec"]["command"]
    podman.wait(running, lambda: "accepting" in podman("exec", running, *probe, check=False))
    return running


@pytest.fixture(scope="module")
def mlflow(
    podman: Podman,
    engine_with_base: docker.DockerClient,
    rendered: dict[str, Any],
    postgres: str,
    certificates: Path,
    store: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """MLflow's container, ready by the manifest's own probe."""
    folder = tmp_path_factory.mktemp("mlflow")
    spec = rendered["Deployment/mlflow"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    version = container["image"].rpartition(":v")[2].removesuffix("-full")
    _have(podman, engine_with_base, container["image"], MLFLOW.format(base=BASE, version=version), folder / "image")
    podman.secret(_examples(DEPLOY / "mlflow" / "secrets.example.yaml")["mlflow-s3"], **store)
    running = podman.play("mlflow", spec, files={"mlflow-postgres-tls": certificates})
    address = f"http://{podman.address(running)}:{container['ports'][0]['containerPort']}"
    probe = container["readinessProbe"]["httpGet"]["path"]
    podman.wait(running, lambda: status(address, probe, address.removeprefix("http://")) == 200)
    return running


def test_postgres_runs_as_its_manifest_says(podman: Podman, postgres: str) -> None:
    process = podman.process(postgres)
    assert process["Uid"].split()[0] == "999"
    assert NO_PRIVILEGES.items() <= process.items()
    assert podman("exec", postgres, "psql", "-U", "mlflow", "-tAc", "SHOW ssl") == "on"


def test_mlflow_keeps_its_runs_in_postgres_over_tls(podman: Podman, postgres: str, mlflow: str) -> None:
    process = podman.process(mlflow)
    assert process["Uid"].split()[0] == "1000"
    assert NO_PRIVILEGES.items() <= process.items()
    address = f"http://{podman.address(mlflow)}:5000"
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert status(address, path, "mlflow.mlflow.svc:5000") == 200
    assert status(address, path, "elsewhere.example.com") == 403
    ask = ["exec", postgres, "psql", "-U", "mlflow", "-tAc"]
    assert podman(*ask, "SELECT count(*) FROM experiments") != "0"
    over_tls = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL"
    assert podman(*ask, over_tls) == "t"
    assert "p@ss" not in podman.log(mlflow)


def test_mlflow_takes_no_more_memory_than_it_requests(podman: Podman, rendered: dict[str, Any], mlflow: str) -> None:
    first = psutil.Process(int(podman("inspect", mlflow, "--format", "{{.State.Pid}}")))
    taken = sum(one.memory_full_info().uss for one in (first, *first.children(recursive=True)))
    (container,) = rendered["Deployment/mlflow"]["spec"]["template"]["spec"]["containers"]
    requested = container["resources"]["requests"]["memory"]
    log.info("MLflow's server takes %d MiB and requests %s", taken >> 20, requested)
    assert requested == "1Gi" and taken < 1 << 30


@pytest.fixture
def hook(podman: Podman) -> Iterator[tuple[str, list[Any]]]:
    """A webhook that pods reach, and what was posted to it."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer((podman.gateway, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{podman.gateway}:{server.server_port}/T0KEN", bodies
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("user", [None, 1000650000])
def test_the_pod_of_a_stage_runs_as_any_user_and_reports(
    podman: Podman,
    engine_with_base: docker.DockerClient,
    mlflow: str,
    store: dict[str, str],
    hook: tuple[str, list[Any]],
    tmp_path: Path,
    user: int | None,
) -> None:
    _run("make", "image", "TARGETS=base")
    _have(podman, engine_with_base, image("base"), None, tmp_path / "base")
    given = _examples(DEPLOY / "secrets.example.yaml")
    podman.secret(given["rest-s3"], **store)
    podman.secret(given["rest-mlflow"], MLFLOW_TRACKING_URI="http://mlflow:5000")
    podman.secret(given["rest-webhook"], REST_WEBHOOK_URL=hook[0])
    platform = tmp_path / "platform.yaml"
    text = (DEPLOY / "platform.yaml").read_text(encoding="utf-8")
    platform.write_text(text.replace("webhook: null", "webhook: rest-webhook"), encoding="utf-8")
    compiled = tmp_path / "pipeline.yaml"
    command = ("compile", "--profile", "tiny", "--platform", platform, "--output", compiled)
    _run(sys.executable, "-m", "pipelines.cli", *command)
    run = f"run-{user}"
    inputs = {"final": {"state": "SUCCEEDED"}, "links": {"kfp": "https://kfp.example"}, "pipeline_run": run}
    spec = stage_pod(compiled, "report-status", lambda _: "0f3c", inputs)
    if user is not None:  # as OpenShift
        spec["containers"][0]["securityContext"] |= {"runAsUser": user, "runAsGroup": 0}
    name = f"stage-{user or 'own'}"
    container = podman.play(name, spec)
    code = podman("wait", container)
    said = podman.log(container)
    assert code == "0", said[-4000:]
    # It was asked, and has answered.
    assert f"MLflow has no run {run!r}" in said, f"{said[-2000:]}\nMLflow's log:\n{podman.log(mlflow)[-4000:]}"
    assert "could not be removed" not in said and "MLflow could not be asked" not in said
    assert hook[1] == [{"text": f"✅ succeeded: {run}\nKFP: https://kfp.example/#/runs/details/0f3c"}]
    assert "T0KEN" not in said and "testing" not in said
