"""The store of `tracking` (tests/conftest.py), as a client sees it."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import store


@pytest.fixture
def client(tracking: TrackingConfig) -> MlflowClient:
    return store.open_client(store.resolve_uri(tracking))
