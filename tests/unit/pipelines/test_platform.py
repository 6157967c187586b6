"""platform.yaml: the complete example, what a stage inherits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from compiled import GPU_STAGES

from pipelines.platform import Platform, load_platform
from rest_core.config import Section
from rest_core.errors import UserError
from rest_core.operations.catalogue import STAGES

TOP = Path(__file__).resolve().parents[3]
EXAMPLE = TOP / "deploy" / "platform.yaml"
_SECONDS = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule", "toleration_seconds": 300}


def load(tmp_path: Path, values: Any) -> Platform:
    path = tmp_path / "platform.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return load_platform(path)


def test_the_example_is_complete_and_loads() -> None:
    platform = load_platform(EXAMPLE)
    values = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))

    def missing(section: Any, given: Any, path: str = "") -> list[str]:
        absent = [f"{path}{name}" for name in type(section).model_fields if name not in given]
        for name, inner in given.items():
            value = getattr(section, name)
            if isinstance(value, Section) and isinstance(inner, dict) and name != "stages":
                absent += missing(value, inner, f"{path}{name}.")
        return absent

    # A volume's sub_path is for those who share a claim.
    assert missing(platform, values) == ["volumes.model_cache.sub_path"]
    of_stages = {key for stage in values["stages"].values() for key in stage}
    assert of_stages == set(type(platform.stages.default).model_fields)


def test_a_stage_has_its_own_values_and_the_defaults_for_the_rest(tmp_path: Path) -> None:
    platform = load(
        tmp_path,
        {
            "stages": {
                "default": {"cpu": "2", "memory": "8Gi", "gpu": {"count": 1}},
                "rest_rl": {"cpu": "16", "gpu": {"count": 8}},
            }
        },
    )
    assert (platform.stage("rest-rl").cpu, platform.stage("rest-rl").memory) == ("16", "8Gi")
    names = [stage.name for stage in STAGES]
    counts = {name: (own.gpu.count if (own := platform.stage(name)).gpu else 0) for name in names}
    assert counts == {name: (8 if name == "rest-rl" else 1) if name in GPU_STAGES else 0 for name in names}


def test_of_retries_and_gpus_a_stage_may_say_a_part(tmp_path: Path) -> None:
    default = {
        "gpu": {"resource": "amd.com/gpu", "count": 2},
        "retries": {"count": 2, "backoff_seconds": 30, "backoff_factor": 3},
        "node_selector": {"pool": "cpu"},
    }
    own = {"gpu": {"count": 8}, "retries": {"count": 5}, "node_selector": {"zone": "a"}}
    stages = {"default": default, "rest_rl": own, "evaluate_bfcl": {"gpu": {"count": 0}}}
    platform = load(tmp_path, {"stages": stages})
    stage = platform.stage("rest-rl")
    assert stage.gpu is not None and stage.retries is not None
    assert (stage.gpu.resource, stage.gpu.count) == ("amd.com/gpu", 8)
    assert (stage.retries.count, stage.retries.backoff_seconds, stage.retries.backoff_factor) == (5, 30, 3)
    assert stage.node_selector == {"zone": "a"}  # a value as a whole: two selectors would ask for both
    assert platform.stage("evaluate-bfcl-base").gpu is platform.stage("evaluate-bfcl-trained").gpu is None
    assert platform.stage("evaluate-api-bank-base").gpu == platform.stages.default.gpu


def test_numbers_and_quantities_as_kubernetes_takes_them(tmp_path: Path) -> None:
    values = [("8", "2", "64Gi"), (8, 2, "64Gi"), (0.5, 1.0, "100000k"), ("500m", "2.5", "1.5Gi"), ("1", ".5", 2**31)]
    read = []
    for cpu, of_default, memory in values:
        stages = {"default": {"cpu": of_default}, "rest_rl": {"cpu": cpu, "memory": memory}}
        stage = load(tmp_path, {"stages": stages}).stage("rest-rl")
        read.append((stage.cpu, stage.memory))
    expected = [("8", "64Gi"), ("8", "64Gi"), ("0.5", "100000000"), ("500m", "1610612736"), ("1", "2147483648")]
    assert read == expected


def test_an_empty_file_is_the_clusters_own_choice(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Platform()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("stages: [", "not valid YAML"),
        ({"imags": {}}, "unknown key 'imags'; did you mean 'images'"),
        ({"stages": {"rest-rl": {}}}, "unknown key 'stages.rest-rl'; did you mean 'rest_rl'"),
        ({"stages": {"rest_rl": {"cpu": "eight"}}}, "'eight' is no Kubernetes quantity: write it as 8, 0.5 or 500m"),
        ({"stages": {"rest_rl": {"memory": "64 GB"}}}, "write it as 64Gi or 64G"),
        ({"stages": {"rest_rl": {"shm_size": "-1"}}}, "write it as 64Gi or 64G"),
        ({"stages": {"rest_rl": {"timeout_seconds": 0}}}, r"stages\.rest_rl\.timeout_seconds"),
        ({"stages": {"preflight": {"gpu": {}}}}, "preflight uses no GPU: leave its gpu out"),
        ({"stages": {"sft_warmup": {"nodes": 2}}}, "sft_warmup runs in one pod: leave its nodes out"),
        ({"stages": {"default": {"nodes": 2}}}, "nodes is a setting of rest_rl alone"),
        (
            {"stages": {"rest_rl": {"tolerations": [{"key": "x", "operator": "Exists", "value": "y"}]}}},
            "takes no value",
        ),
        ({"stages": {"rest_rl": {"tolerations": [{"value": "y"}]}}}, "must have operator Exists"),
        ({"secrets": {"s3": "My_Secret"}}, r"secrets\.s3"),
        ({"volumes": {"work": {"claim": "a", "path": "work"}}}, r"volumes\.work\.path"),
        ({"volumes": {"work": {"claim": "a", "path": "/w/../etc"}}}, r"volumes\.work\.path"),
        ({"volumes": {"work": {"claim": "a", "path": "/w", "sub_path": "../x"}}}, "leads out of the volume"),
        ({"volumes": {"work": {"claim": "a", "path": "/w", "sub_path": "/x"}}}, "leads out of the volume"),
        ({"volumes": {"work": {"claim": "a.b", "path": "/w"}}}, r"volumes\.work\.claim"),
        ({"volumes": {"work": {"claim": "a" * 64, "path": "/w"}}}, r"volumes\.work\.claim"),
        ({"volumes": {"work": {"claim": "shm", "path": "/w"}}}, "not 'shm'"),
        (
            {"volumes": {"work": {"claim": "a", "path": "/w"}, "model_cache": {"claim": "b", "path": "/w/"}}},
            "both mounted at /w",
        ),
        ({"labels": {"team": "tool use"}}, r"labels\.team: .*'tool use' is no value of a label"),
        ({"labels": {"team": "a" * 64}}, r"labels\.team"),
        ({"labels": {"a key": "x"}}, "'a key' is no key of a label"),
        ({"annotations": {"/x": "y"}}, "'/x' is no key of a label"),
        ({"stages": {"default": {"node_selector": {"pool": "a b"}}}}, r"stages\.default\.node_selector\.pool"),
        ({"stages": {"rest_rl": {"memory": "100K"}}}, "write it as 64Gi or 64G"),
        ({"stages": {"rest_rl": {"memory": "1.5 Gi"}}}, "write it as 64Gi or 64G"),
        ({"stages": {"rest_rl": {"cpu": "0.5m"}}}, "write it as 8, 0.5 or 500m"),
        ({"stages": {"rest_rl": {"gpu": {"resource": "bad resource"}}}}, "write it as nvidia.com/gpu"),
        ({"stages": {"rest_rl": {"gpu": {"count": -1}}}}, r"stages\.rest_rl\.gpu\.count"),
        ({"stages": {"rest_rl": {"retries": {"count": 1, "backoff_factor": 1.5}}}}, r"retries\.backoff_factor"),
        ({"stages": {"rest_rl": {"retries": {"count": 20}}}}, "pauses between 21 tries add up to 728 days"),
        (
            {
                "stages": {
                    "default": {"retries": {"count": 20, "backoff_factor": 1}},
                    "rest_rl": {"retries": {"backoff_factor": 10}},
                }
            },
            "rest_rl, with what stages.default says: retries: .*pauses",
        ),
        ({"security_context": {"run_as_user": 0}}, "run_as_user 0 is root"),
        ({"images": {"base": "not a image !!"}}, r"images\.base"),
        ({"images": {"base": "r/x@sha256:xyz"}}, r"images\.base"),
        ("labels: {a: b}\nlabels: {c: d}", "the key 'labels' stands twice"),
        ("stages:\n  rest_rl:\n    cpu: 1\n    cpu: 2", "the key 'cpu' stands twice"),
        ({"storage": {"location": "foo"}}, "location=foo: neither s3://bucket/prefix nor a folder of the work volume"),
        (
            {"storage": {"location": "/workshop"}, "volumes": {"work": {"claim": "a", "path": "/work"}}},
            "mounted at /work",
        ),
        (
            {"volumes": {"work": {"claim": "a", "path": "/w"}, "model_cache": {"claim": "a", "path": "/c"}}},
            r"are the same claim \(a\), which KFP cannot mount twice",
        ),
        ({"kfp_url": "kfp.example"}, "kfp_url"),
        ({"kfp_url": "https://me:secret@kfp.example"}, "kfp_url holds a password"),
        ({"stages": {"default": {"tolerations": [_SECONDS]}}}, "toleration_seconds goes with effect NoExecute alone"),
        ({"serving": {"tolerations": [_SECONDS]}}, r"serving\.tolerations.*with effect NoExecute alone"),
        ({"serving": {"tolerations": [{"key": "a b", "operator": "Exists"}]}}, "'a b' is no key of a label"),
        ({"stages": {"rest_rl": {"gpu": {"resource": "gpu"}}}}, "'gpu' is no resource: write it as nvidia.com/gpu"),
        ({"serving": {"gpu": {"resource": "gpu"}}}, "'gpu' is no resource"),
        ({"stages": {"rest_rl": {"gpu": {"resource": "requests.nvidia.com/gpu"}}}}, "is no resource"),
        ({"namespace": "team.a"}, "'team.a' is no namespace"),
        ({"namespace": "a" * 64}, "is no namespace"),
        ({"service_account": "a..b"}, "'a..b' is no name of a Kubernetes object"),
        ({"train_jobs": {"runtime": "Rest"}}, "'Rest' is no name of a Kubernetes object"),
        ({"security_context": {"run_as_user": 99999999999}}, r"security_context\.run_as_user"),
        ({"security_context": {"run_as_group": 2**31}}, r"security_context\.run_as_group"),
        ({"labels": {"pipeline/runid": "mine"}}, "'pipeline/runid' is set by KFP, Argo or this project"),
        ({"labels": {"app.kubernetes.io/component": "mine"}}, "is set by KFP, Argo or this project"),
        ({"labels": {"rest-pipelines/run": "mine"}}, "is set by KFP, Argo or this project"),
        ({"annotations": {"workflows.argoproj.io/node-name": "x"}}, "is set by KFP, Argo or this project"),
        ({"annotations": {"pipelines.kubeflow.org/v2_component": "x"}}, "is set by KFP, Argo or this project"),
        ({"annotations": {f"{'a' * 254}/x": "y"}}, "more than 253 characters|no key of a label"),
        ({"serving": {"annotations": {"rest-pipelines/model": "x"}}}, "is set by KFP, Argo or this project"),
        ({"stages": {"rest_rl": {"memory": "8Gi", "shm_size": "64Gi"}}}, r"shm_size \(64Gi\) is above memory \(8Gi\)"),
        (
            {"stages": {"default": {"memory": "8Gi"}, "rest_rl": {"shm_size": "64Gi"}}},
            r"rest_rl, with what stages\.default says: shm_size",
        ),
        ({"serving": {"memory": "1Gi", "shm_size": "2G"}}, r"serving: .*shm_size \(2G\) is above memory"),
        ({"env": {"MY VAR": "x"}}, "'MY VAR' is no environment variable"),
        ({"env": {"KFP_RUN_ID": "x"}}, "KFP_RUN_ID is set by KFP or this project"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "AWS_SECRET_ACCESS_KEY would stand in the pipeline"),
        ({"env": {"HTTPS_PROXY": "http://me:secret@proxy:3128"}}, "env: HTTPS_PROXY holds a password"),
        ({"env": {"HTTPS_PROXY": "http://me:se/cret@proxy:3128"}}, "env: HTTPS_PROXY holds a password"),
        ({"env": {"MLFLOW_TRACKING_URI": "http://m"}, "secrets": {"mlflow": "m"}}, "MLFLOW_TRACKING_URI is set twice"),
        ({"env": {"HF_HOME": "/x"}, "volumes": {"scratch": {"size": "1Gi"}}}, "HF_HOME is set twice"),
        ({"env_from": [{"config_map": "a", "secret": "b", "keys": ["A"]}]}, "give config_map or secret, and not both"),
        ({"env_from": [{"config_map": "a", "keys": []}]}, r"env_from.*keys"),
        ({"files": [{"path": "/a"}]}, "give config_map or secret, and not both"),
        ({"files": [{"config_map": "kube-root-ca.crt", "path": "/a"}]}, "no name that KFP can mount.*no dots"),
        (
            {"files": [{"config_map": "ca", "path": "/a"}, {"secret": "ca", "path": "/b"}]},
            "two volumes of a pod would have the name ca",
        ),
        (
            {"files": [{"config_map": "s3-scratch", "path": "/a"}]},
            "would have the name s3-scratch",
        ),
        (
            {"files": [{"config_map": "ca", "path": "/work/"}], "volumes": {"work": {"claim": "w", "path": "/work"}}},
            "/work is mounted twice",
        ),
        ({"volumes": {"scratch": {"path": "/s3", "size": "1Gi"}}}, "/s3 is mounted twice"),
        ({"ca_bundle": "/etc/ca.crt"}, "ca_bundle=/etc/ca.crt: lies below the path of none of `files`"),
        ({"workflow": {"active_deadline_seconds": 0}}, r"workflow\.active_deadline_seconds"),
        ({"stages": {"default": {"node_affinity": [{"key": "a", "operator": "In"}]}}}, r"takes values: \[a, b\]"),
        ({"stages": {"default": {"node_affinity": [{"key": "a b", "operator": "Exists"}]}}}, "no key of a label"),
        (
            {"stages": {"default": {"node_affinity": [{"key": "a", "operator": "Gt", "values": ["x"]}]}}},
            "takes one whole number",
        ),
        (
            {"stages": {"default": {"node_affinity": [{"key": "a", "operator": "Exists", "weight": 101}]}}},
            r"node_affinity.*weight",
        ),
        ({"stages": {"rest_rl": {"cpu": 0}}}, "CPUs come in thousandths"),
        ({"stages": {"rest_rl": {"cpu": "0.0001"}}}, "CPUs come in thousandths"),
        ({"stages": {"rest_rl": {"cpu": "9" * 40}}}, "CPUs come in thousandths"),
        ({"stages": {"rest_rl": {"cpu": "٣"}}}, "is no Kubernetes quantity"),
        ({"stages": {"rest_rl": {"memory": "9" * 40 + "Gi"}}}, "less than 8Ei"),
        ({"stages": {"rest_rl": {"memory": "٣Gi"}}}, "is no Kubernetes quantity"),
        ({"serving": {"memory": "0"}}, "more than 0"),
        ({"stages": {"rest_rl": {"memory": 64}}}, "'64' bytes let no container start: write the unit, as in 64Gi"),
        ({"stages": {"rest_rl": {"shm_size": "9999999Ei"}}}, "less than 8Ei"),
        ({"stages": {"rest_rl": {"timeout_seconds": 2**31}}}, r"timeout_seconds"),
        ({"images": {"train": f"r/x@sha256:{'a' * 63}"}}, r"images\.train: .*is no image"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        load(tmp_path, values)
    assert "\n" not in str(told.value) and "secret@" not in str(told.value)
    assert str(tmp_path / "platform.yaml") in str(told.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_platform(tmp_path / "no.yaml")
