"""Values as Kubernetes takes them: what its API would refuse only when the first pod is made is refused at once."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from rest_core.operations.pods import GPUS_VARIABLE, IMAGE_VARIABLE, PART_OF_LABEL, PROJECT, STAGE_LABEL

_UNITS = {"": 1, "k": 10**3, **{unit: 1000 ** (n + 2) for n, unit in enumerate("MGTPE")}}
_UNITS |= {f"{unit}i": 1024 ** (n + 1) for n, unit in enumerate("KMGTPE")}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_SIZE = re.compile(rf"{_NUMBER}([A-Za-z]*)")
_CPUS = re.compile(rf"{_NUMBER}(m?)")
_KFP_SIZE = re.compile(r"[0-9]+([MGTPE]i?|Ki)?")  # what kfp's setters take of Kubernetes' quantities
_MOST = 2**63  # Kubernetes keeps quantities as int64; much larger ones are beyond what Decimal can divide

_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN_PART = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = rf"{_DOMAIN_PART}(\.{_DOMAIN_PART})*"
_KEY = rf"({_DOMAIN}/)?{_LABEL}"
_MOST_DOMAIN = 253  # characters
# Of KFP, Argo and this project, which find a run's pods by them.
_OTHERS_KEYS = ("pipeline/", "pipelines.kubeflow.org/", "workflows.argoproj.io/", f"{PROJECT}/")
_HOST = r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:\d+)?"
_REPOSITORY = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
_DIGEST = "sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
_IMAGE = rf"({_HOST}/)?{_REPOSITORY}(/{_REPOSITORY})*(:[\w][\w.-]{{0,127}})?(@({_DIGEST}))?"
_LEAST_MEMORY = 16 << 20  # with less no container of this project starts


def _words(value: Any) -> Any:
    """YAML's bare numbers are meant as they are written: `cpu: 8`."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"{value!r} is no {what}")
        return value

    return AfterValidator(check)


def _size(value: str) -> str:
    """A quantity of bytes; in bytes where kfp's setters do not take it as it is written (1.5Gi, 100k)."""
    found = _SIZE.fullmatch(value)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no Kubernetes quantity: write it as 64Gi or 64G")
    if _KFP_SIZE.fullmatch(value):
        return value
    return str((Decimal(found[1]) * _UNITS[found[2]]).to_integral_value(ROUND_CEILING))


def quantity(value: str) -> Decimal:
    """A quantity of Kubernetes in its unit: bytes, or CPUs."""
    found = _SIZE.fullmatch(value)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no Kubernetes quantity")
    return Decimal(found[1]) * _UNITS[found[2]]


def _positive(value: str) -> str:
    if not 0 < quantity(value) < _MOST:
        raise ValueError(f"{value!r}: give more than 0, and less than 8Ei")
    return value


def _enough_memory(value: str) -> str:
    if quantity(value) < _LEAST_MEMORY:
        raise ValueError(f"{value!r} bytes let no container start: write the unit, as in 64Gi")
    return value


def _cpu(value: str) -> str:
    found = _CPUS.fullmatch(value)
    if found is None or (found[2] and not found[1].isdecimal()):
        raise ValueError(f"{value!r} is no Kubernetes quantity: write it as 8, 0.5 or 500m")
    thousandths = Decimal(found[1]) * (1 if found[2] else 1000)
    if not 1 <= thousandths < _MOST or thousandths % 1:
        raise ValueError(f"{value!r}: CPUs come in thousandths, at least one of them (1m), fewer than 2^63")
    return value


def _named(value: str) -> str:
    if len(value) > _MOST_DOMAIN or not re.fullmatch(_DOMAIN, value):
        raise ValueError(
            f"{value!r} is no name of a Kubernetes object: a-z, 0-9, - and . between them, at most 253 characters"
        )
    return value


def _own_key(key: str) -> str:
    """A label or annotation of one's own: KFP, Argo and this project find a run's pods by theirs."""
    if key.startswith(_OTHERS_KEYS) or key in (PART_OF_LABEL, STAGE_LABEL):
        raise ValueError(f"{key!r} is set by KFP, Argo or this project: choose another key")
    if len(key.rpartition("/")[0]) > _MOST_DOMAIN:
        raise ValueError(f"{key!r}: the domain has more than 253 characters")
    return key


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is no environment variable: letters, digits and _")
    if name.startswith("KFP_") or name in (IMAGE_VARIABLE, GPUS_VARIABLE):
        raise ValueError(f"{name} is set by KFP or this project: leave it out")
    return name


def _mount_path(value: str) -> str:
    if not value.startswith("/") or not value.strip("/") or ":" in value or ".." in value.split("/"):
        raise ValueError(f"{value!r} is no folder to mount at: write it as /work, without .. and colons")
    return value


def _sub_path(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError(f"{value!r} leads out of the volume: write a folder in it, such as team/runs")
    return value


Cpu = Annotated[str, BeforeValidator(_words), AfterValidator(_cpu)]
Size = Annotated[str, BeforeValidator(_words), AfterValidator(_size), AfterValidator(_positive)]
Memory = Annotated[Size, AfterValidator(_enough_memory)]
Seconds = Annotated[int, Field(ge=1, le=2**31 - 1)]  # Kubernetes' own bound for a pod's deadline
UserId = Annotated[int, Field(ge=0, le=2**31 - 1)]
# Names of Kubernetes objects (RFC 1123 subdomain); a namespace's is a label.
Name = Annotated[str, AfterValidator(_named)]
Namespace = Annotated[str, _matching(_DOMAIN_PART, "namespace: a-z, 0-9 and - between them, at most 63 characters")]
# A claim's name is the name of the pod's volume too: a DNS label. `shm` is that of the volume at /dev/shm.
Claim = Annotated[
    str, _matching(rf"(?!shm$){_DOMAIN_PART}", "claim to mount: a-z, 0-9 and -, at most 63 characters, and not 'shm'")
]
LabelKey = Annotated[str, _matching(_KEY, "key of a label: write it as team or example.com/team")]
LabelValue = Annotated[
    str,
    BeforeValidator(_words),
    _matching(rf"({_LABEL})?", "value of a label: letters, digits, - _ . between them, at most 63 characters"),
]
OwnKey = Annotated[LabelKey, AfterValidator(_own_key)]
Annotations = dict[OwnKey, str]
# An extended resource: with a domain, which is not one of Kubernetes' own.
ResourceName = Annotated[
    str, _matching(rf"(?!requests\.)(?![^/]*kubernetes\.io/){_DOMAIN}/{_LABEL}", "resource: write it as nvidia.com/gpu")
]
Image = Annotated[str, _matching(_IMAGE, "image: write it as registry.example/team/name@sha256:…")]
# A ConfigMap's or Secret's name, where KFP makes it the name of the pod's volume.
VolumeName = Annotated[
    str, _matching(_DOMAIN_PART, "name that KFP can mount: a-z, 0-9 and -, at most 63 characters, and no dots")
]
Variable = Annotated[str, AfterValidator(_variable)]
Setting = Annotated[str, BeforeValidator(_words)]
MountPath = Annotated[str, AfterValidator(_mount_path)]
SubPath = Annotated[str, AfterValidator(_sub_path)]


def spelled(fields: dict[str, Any]) -> dict[str, Any]:
    """Field names as Kubernetes spells them: run_as_user → runAsUser."""
    words = {name: name.split("_") for name in fields}
    return {head + "".join(part.title() for part in rest): fields[name] for name, (head, *rest) in words.items()}
