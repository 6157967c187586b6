"""`podman kube play` as a stand-in for the kubelet: manifests of deploy/ and pods as KFP makes them, run for real.

What Podman 4 cannot read is said otherwise: Secrets are made by `podman secret`, the volume of a Secret or an emptyDir
is a folder of this machine, a variable that is a label is its value, and probes are left to the tests. It expands no
`$(NAME)` and sets no `fsGroup`.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
Manifest = dict[str, Any]


class Podman:
    """Pods, Secrets and volumes in a network of their own; `close` removes them.

    Args:
        folder: for files.
        name: of the network; a pod is reached under its name in it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._pods: list[str] = []
        self._secrets: list[str] = []
        self._volumes: list[str] = []
        # Podman's own limits may be above what this machine lets anybody set.
        settings = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        if Path("/sys/fs/cgroup/unified").is_dir() and shutil.which("runc"):
            settings += '[engine]\nruntime = "runc"\n'  # crun refuses both versions of cgroups at once
        (folder / "containers.conf").write_text(settings, encoding="utf-8")
        self._environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        self("network", "create", name)
        (network,) = json.loads(self("network", "inspect", name))
        self.gateway = str(network["subnets"][0]["gateway"])  # where pods reach this machine

    def __call__(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        """What `podman ARGUMENTS` prints."""
        done = subprocess.run(
            ["podman", *arguments], env=self._environment, input=text, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def close(self) -> None:
        for pod in self._pods:
            self("pod", "rm", "--force", "--time", "5", pod, check=False)
        for name in self._secrets:
            self("secret", "rm", name, check=False)
        for name in self._volumes:
            self("volume", "rm", "--force", name, check=False)
        self("network", "rm", "--force", self.name, check=False)

    def secret(self, manifest: Manifest, **values: str) -> None:
        """Make a Secret; `values` stand in place of the example's."""
        name = manifest["metadata"]["name"]
        data = {
            key: base64.b64encode(text.encode()).decode() for key, text in (manifest["stringData"] | values).items()
        }
        self("secret", "rm", name, check=False)
        self("secret", "create", name, "-", text=json.dumps(data))
        self._secrets.append(name)

    def play(self, name: str, spec: Manifest, claims: Mapping[str, str] = {}, files: Mapping[str, Path] = {}) -> str:
        """Run a pod; returns the name of its first container.

        Args:
            spec: a PodSpec.
            claims: by volume: the PersistentVolumeClaim that a StatefulSet makes for it.
            files: by Secret: the folder that has its keys.
        """
        spec = copy.deepcopy(spec)
        spec.pop("serviceAccountName", None)
        spec["restartPolicy"] = "Never"  # what fails is to be seen
        for container in spec["containers"]:
            for probe in PROBES:
                container.pop(probe, None)
        spec["volumes"] = [self._volume(name, one, files) for one in spec.get("volumes", ())]
        spec["volumes"] += [{"name": to, "persistentVolumeClaim": {"claimName": it}} for to, it in claims.items()]
        self._volumes += claims.values()
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps(pod), encoding="utf-8")
        self._pods.append(name)
        self("kube", "play", "--network", self.name, str(file))
        return f"{name}-{spec['containers'][0]['name']}"

    def _volume(self, pod: str, volume: Manifest, files: Mapping[str, Path]) -> Manifest:
        if "secret" in volume:
            folder = files[volume["secret"]["secretName"]]
        elif "emptyDir" in volume:  # everybody's, as the kubelet makes it, and not as the image has the folder
            folder = self.folder / f"{pod}-{volume['name']}"
            folder.mkdir()
            folder.chmod(0o777)
        else:
            return volume
        return {"name": volume["name"], "hostPath": {"path": str(folder), "type": "Directory"}}

    def address(self, container: str) -> str:
        infra = self("inspect", container, "--format", "{{.Pod}}")
        pod = json.loads(self("pod", "inspect", infra))
        (infra_container,) = json.loads(self("inspect", pod["InfraContainerID"]))
        return str(infra_container["NetworkSettings"]["Networks"][self.name]["IPAddress"])

    def wait(self, container: str, ready: Callable[[], bool], seconds: float = 240) -> None:
        """Until `ready()`; the container's log where that does not come."""
        deadline = time.monotonic() + seconds
        while not ready():
            state = self("inspect", container, "--format", "{{.State.Status}}")
            log = self.log(container) if state != "running" or time.monotonic() > deadline else ""
            assert not log and state == "running", f"{container} is {state}:\n{log[-4000:]}"
            time.sleep(1)

    def log(self, container: str) -> str:
        done = subprocess.run(
            ["podman", "logs", container], env=self._environment, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def process(self, container: str) -> dict[str, str]:
        """/proc/PID/status of a container's first process, seen from this machine."""
        pid = self("inspect", container, "--format", "{{.State.Pid}}")
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def stage_pod(compiled: Path, stage: str, label: Callable[[str], str], inputs: Mapping[str, Any]) -> Manifest:
    """The PodSpec of a stage's task, of what KFP has compiled; without KFP's launcher.

    Args:
        compiled: the pipeline's YAML.
        label: the value of a label of the pod.
        inputs: parameters in place of the pipeline's own.
    """
    spec, platform = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
    key = f"exec-{stage}"
    container = spec["deploymentSpec"]["executors"][key]["container"]
    wanted = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][key]
    component = spec["components"][f"comp-{stage}"]
    defaults = spec["root"]["inputDefinitions"]["parameters"]
    given = {name: defaults.get(name, {}).get("defaultValue") for name in component["inputDefinitions"]["parameters"]}
    outputs = component["outputDefinitions"]["artifacts"]
    executor_input = {
        "inputs": {"parameterValues": {**given, **inputs}},
        "outputs": {
            "artifacts": {
                name: {"artifacts": [{"name": name, "type": one["artifactType"], "uri": f"minio://out/{name}"}]}
                for name, one in outputs.items()
            },
            "outputFile": "/minio/output_metadata.json",
        },
    }
    variables = [*container["env"]]
    variables += [{"name": one["name"], "value": label(one["fieldPath"])} for one in wanted["fieldPathAsEnv"]]
    for secret in wanted["secretAsEnv"]:
        for pair in secret["keyToEnv"]:
            source = {"name": secret["secretName"], "key": pair["secretKey"], "optional": secret.get("optional", False)}
            variables.append({"name": pair["envVar"], "valueFrom": {"secretKeyRef": source}})
    limits = {
        "cpu": container["resources"]["resourceCpuLimit"],
        "memory": container["resources"]["resourceMemoryLimit"],
    }
    return {
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "main",
                "image": container["image"],
                "imagePullPolicy": wanted["imagePullPolicy"],
                "command": [word.lstrip("\n") for word in container["command"]],  # Podman misreads such a first line
                "args": [word.replace("{{$}}", json.dumps(executor_input)) for word in container["args"]],
                "env": variables,
                "resources": {"limits": limits, "requests": limits},
                "securityContext": {
                    **wanted["securityContext"],
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "minio", "mountPath": "/minio"}],
            }
        ],
        "volumes": [{"name": "minio", "emptyDir": {}}],
    }
