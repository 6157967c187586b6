"""Manifests held against the schemas of Kubernetes' own kinds, by the models of its client."""

from __future__ import annotations

import re
from typing import Any

from kubernetes.client import models as kubernetes_models

_PLAIN = {"str": str, "int": int, "bool": bool, "datetime": str}


def built(kind: str, value: Any, where: str) -> Any:
    """`value` as the kubernetes client's type `kind`; unknown fields, wrong types and missing fields are errors."""
    if (inner := re.fullmatch(r"list\[(.*)\]", kind)) is not None:
        assert isinstance(value, list), f"{where}: a list is expected"
        return [built(inner[1], item, f"{where}[{n}]") for n, item in enumerate(value)]
    if (inner := re.fullmatch(r"dict\(str, (.*)\)", kind)) is not None:
        assert isinstance(value, dict), f"{where}: a mapping is expected"
        return {key: built(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind == "object":  # int-or-string
        assert isinstance(value, (int, str)) and not isinstance(value, bool), f"{where}: {value!r}"
        return value
    if kind in _PLAIN:
        assert type(value) is _PLAIN[kind], f"{where}: {value!r} is no {kind}"
        return value
    model = getattr(kubernetes_models, kind)
    names = {api: name for name, api in model.attribute_map.items()}
    assert isinstance(value, dict), f"{where}: a mapping is expected"
    assert value.keys() <= names.keys(), f"{where}: unknown fields {sorted(value.keys() - names.keys())}"
    fields = {names[api]: built(model.openapi_types[names[api]], item, f"{where}.{api}") for api, item in value.items()}
    return model(**fields)  # which refuses what lacks a required field
