"""The Kubernetes API, asked with the real client over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rest_core.operations import pods
from rest_core.operations.pods import NotAllowed


def test_outside_of_a_cluster_there_is_nothing_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv(pods.RUN_ID_VARIABLE, raising=False)
    assert pods.run_id() is None
    with pytest.raises(NotAllowed, match="no service account here"):
        pods.connect()


def test_the_last_pod_of_each_stage_tells_how_it_ended(cluster: Any) -> None:
    cluster.add_pod("prepare-data", terminated={"exitCode": 0, "reason": "Completed"})
    cluster.add_pod("rest-rl", phase="Failed", terminated={"exitCode": 75}, log="first attempt")
    killed = cluster.add_pod(
        "rest-rl",
        phase="Failed",
        created="2026-01-01T01:00:00Z",
        terminated={"exitCode": 137, "reason": "OOMKilled"},
        log="\n".join(f"line {n}" for n in range(50)),
    )
    cluster.add_pod("node of a TrainJob", phase="Failed")
    del cluster.pods[-1]["metadata"]["labels"][pods.STAGE_LABEL]
    cluster.add_pod("rest-rl", run="another run", phase="Failed", created="2026-02-01T00:00:00Z")
    api, namespace = pods.connect()
    ends = pods.ends(api, namespace, "run-1", lines=3)
    assert set(ends) == {"prepare-data", "rest-rl"}
    assert not ends["prepare-data"].failed and ends["prepare-data"].log == ()
    end = ends["rest-rl"]
    assert (end.name, end.failed, end.reason, end.exit_code) == (killed, True, "OOMKilled", 137)
    assert end.log == ("line 47", "line 48", "line 49")
    assert cluster.asked[0][0] == "/api/v1/namespaces/team/pods"


def test_a_pod_that_was_evicted_or_ran_out_of_time_says_so_itself(cluster: Any) -> None:
    cluster.add_pod(
        "rest-rl", phase="Failed", reason="DeadlineExceeded", terminated={"exitCode": 143, "reason": "Error"}
    )
    api, namespace = pods.connect()
    assert pods.ends(api, namespace, "run-1", lines=3)["rest-rl"].reason == "DeadlineExceeded"


def test_a_pod_that_never_began_says_what_it_waited_for(cluster: Any) -> None:
    late = {"phase": "Failed", "reason": "DeadlineExceeded"}
    cluster.add_pod("preflight", **late, waiting={"reason": "ContainerCreating"})
    cluster.add_pod("rest-rl", **late, node=None)
    cluster.add_pod("prepare-data", **late, terminated={"exitCode": 143, "reason": "Error"})
    api, namespace = pods.connect()
    waited = {stage: end.waited_for for stage, end in pods.ends(api, namespace, "run-1", lines=3).items()}
    assert (waited["rest-rl"], waited["prepare-data"]) == ("a node", None)
    assert (waited["preflight"] or "").startswith("the pull of registry.example/rest, or its volumes")


def test_a_log_that_is_gone_hides_nothing_else(cluster: Any) -> None:
    cluster.add_pod("rest-rl", phase="Failed", terminated={"exitCode": 1, "reason": "Error"})
    api, namespace = pods.connect()
    end = pods.ends(api, namespace, "run-1", lines=3)["rest-rl"]
    assert (end.exit_code, end.reason) == (1, None)  # "Error" is no reason
    assert "the cluster has deleted it" in end.log[0]


@pytest.mark.parametrize(("resource", "may"), [("pods", "list pods"), ("nodes", "list nodes")])
def test_what_the_service_account_may_not_do_is_said(cluster: Any, resource: str, may: str) -> None:
    cluster.forbidden.add(resource)
    api, namespace = pods.connect()
    with pytest.raises(NotAllowed, match=f"{may}: the cluster refuses it"):
        pods.ends(api, namespace, "run-1", lines=3) if resource == "pods" else pods.nodes(api)


def test_an_api_that_is_away_is_said() -> None:
    from kubernetes import client

    settings = client.Configuration(host="http://127.0.0.1:1")
    settings.retries = False
    with pytest.raises(NotAllowed, match="does not answer"):
        pods.nodes(client.CoreV1Api(client.ApiClient(settings)))


@pytest.mark.parametrize(
    ("place", "lasting"),
    [
        ("/work/runs/new", True),
        ("/with blank/x", True),
        ("/tmp/x", False),
        ("/scratch/x", False),
        ("/dev/shm/x", False),
        ("/workshop/x", False),
    ],
)
def test_a_volume_outlives_its_pod(tmp_path: Path, place: str, lasting: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw - overlay overlay rw,lowerdir=/x\n"
        "2 1 0:2 / /dev/shm rw - tmpfs shm rw\n"
        "3 1 8:1 /lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/scratch /scratch rw,relatime - ext4 /dev/sda1 rw\n"
        "4 1 0:3 / /work rw,relatime shared:7 - nfs4 server:/export rw\n"
        "5 1 0:4 /export /with\\040blank rw,relatime - ceph 10.0.0.1:/ rw\n",
        encoding="utf-8",
    )
    assert pods.on_volume(Path(place), mounts) is lasting
