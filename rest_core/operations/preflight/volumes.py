"""Whether a PersistentVolumeClaim is there and bound, as the Kubernetes API tells: pods would wait for it for ever."""

from __future__ import annotations

from rest_core.errors import UserError
from rest_core.operations import pods
from rest_core.operations.pods import NotAllowed


def check(name: str) -> str:
    """Look at a claim of the run's namespace without mounting it.

    Raises:
        UserError: it is not there, has lost its volume, or gets none.
        NotAllowed: claims may not be read, or it waits for a volume and its storage class may not be read.
    """
    api, namespace = pods.connect()
    claim = pods.claim(api, namespace, name)
    if claim is None:
        raise UserError(
            f"there is no PersistentVolumeClaim {name} in the namespace {namespace}; make it (deploy/volumes.yaml), or "
            "name another in platform.yaml"
        )
    phase, storage_class = claim.status.phase, claim.spec.storage_class_name
    if phase == "Bound":
        size = (claim.status.capacity or {}).get("storage", "of unknown size")
        return f"{name} is bound ({size}, {', '.join(claim.spec.access_modes or ())})"
    if phase == "Pending" and storage_class:
        try:
            if pods.binds_when_mounted(api, storage_class):
                return f"{name} is bound when the first pod mounts it (storage class {storage_class})"
        except NotAllowed as reason:
            raise NotAllowed(
                f"{name} is Pending, and whether it waits for its first pod is not known: {reason}"
            ) from None
    raise UserError(
        f"{name} is {phase}: pods that mount it would wait for ever; see kubectl -n {namespace} describe pvc {name}"
    )
