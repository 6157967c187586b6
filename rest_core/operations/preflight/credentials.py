"""Whether a Secret has given the pod its variables; their values are never looked at further."""

from __future__ import annotations

import os

from rest_core.errors import UserError
from rest_core.operations.preflight.surroundings import Secret


def check(secret: Secret) -> str:
    """Raise `UserError` unless all variables of a Secret are set and not empty."""
    missing = [name for name in secret.variables if not os.environ.get(name, "").strip()]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing or empty; make the Secret {secret.name} with "
            f"{'this key' if len(missing) == 1 else 'these keys'} in the run's namespace (deploy/secrets.example.yaml)"
        )
    return f"gives {', '.join(secret.variables)}"
