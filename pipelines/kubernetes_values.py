"""Values as Kubernetes takes them: what its API would refuse only when the first pod is made is refused at once."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

_UNITS = {"": 1, "k": 10**3, **{unit: 1000 ** (n + 2) for n, unit in enumerate("MGTPE")}}
_UNITS |= {f"{unit}i": 1024 ** (n + 1) for n, unit in enumerate("KMGTPE")}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([A-Za-z]*)")
_KFP_SIZE = re.compile(r"\d+([MGTPE]i?|Ki)?")  # what kfp's setters take of Kubernetes' quantities

_LABEL = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DOMAIN_PART = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = rf"{_DOMAIN_PART}(\.{_DOMAIN_PART})*"
_KEY = rf"({_DOMAIN}/)?{_LABEL}"
_HOST = r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:\d+)?"
_REPOSITORY = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
_IMAGE = rf"({_HOST}/)?{_REPOSITORY}(/{_REPOSITORY})*(:[\w][\w.-]{{0,127}})?(@[a-z0-9]+:[0-9a-f]{{2,}})?"


def _words(value: Any) -> Any:
    """YAML's bare numbers are meant as they are written: `cpu: 8`."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
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


def _mount_path(value: str) -> str:
    if not value.startswith("/") or not value.strip("/") or ":" in value or ".." in value.split("/"):
        raise ValueError(f"{value!r} is no folder to mount at: write it as /work, without .. and colons")
    return value


def _sub_path(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError(f"{value!r} leads out of the volume: write a folder in it, such as team/runs")
    return value


Cpu = Annotated[
    str,
    BeforeValidator(_words),
    _matching(r"\d*\.?\d+|\d+m", "Kubernetes quantity: write it as 8, 0.5 or 500m"),
]
Size = Annotated[str, BeforeValidator(_words), AfterValidator(_size)]
# Names of Kubernetes objects (RFC 1123 subdomain).
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
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
ResourceName = Annotated[str, _matching(_KEY, "resource: write it as nvidia.com/gpu")]
Image = Annotated[str, _matching(_IMAGE, "image: write it as registry.example/team/name@sha256:…")]
MountPath = Annotated[str, AfterValidator(_mount_path)]
SubPath = Annotated[str, AfterValidator(_sub_path)]


def spelled(fields: dict[str, Any]) -> dict[str, Any]:
    """Field names as Kubernetes spells them: run_as_user → runAsUser."""
    words = {name: name.split("_") for name in fields}
    return {head + "".join(part.title() for part in rest): fields[name] for name, (head, *rest) in words.items()}
