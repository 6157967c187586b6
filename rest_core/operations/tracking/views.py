"""Saved views of an experiment's runs table, one for each kind of run.

MLflow's pages keep a view as a tag of the experiment: its name, and the state of the table as compressed JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rest_core.operations.catalogue import benchmarks
from rest_core.operations.tracking.tags import KIND_TAG, SCHEME_TAG, STAGE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG_PREFIX = "mlflow.sharedViewState."
_CALLS = ("bfcl/call_accuracy", "bfcl/irrelevance_accuracy")
_REWARD = ("reward/before", "reward/after", "reward/change")


@dataclass(frozen=True)
class View:
    """What a view shows: the runs that pass a filter, newest first, with these columns."""

    name: str
    filter: str
    metrics: tuple[str, ...]
    tags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """By which the pages' addresses name it: `?viewStateShareKey=KEY`."""
        return hashlib.sha256(f"rest-pipelines {self.name}".encode()).hexdigest()[:32]

    @property
    def columns(self) -> list[str]:
        """As the table spells them."""
        return [
            *(f"tags.`{name}`" for name in self.tags),
            *(f"metrics.`{name}`" for name in self.metrics),
        ]


def _headline() -> tuple[str, ...]:
    """The main figures of all benchmarks."""
    return tuple(figure.metric for stage in benchmarks() for figure in stage.figures)


VIEWS = (
    View("Pipelines", f"tags.`{KIND_TAG}` = 'pipeline'", (*_CALLS, *_REWARD)),
    View("Trainings", f"tags.`{STAGE_TAG}` = 'rest-rl'", (*_REWARD, "rl/tokens_per_second"), (SCHEME_TAG,)),
    View("Evaluations", f"tags.`{STAGE_TAG}` LIKE 'evaluate-%'", _headline()),
    View("Trials", f"tags.`{KIND_TAG}` = 'trial'", (*_CALLS, *_REWARD), (SCHEME_TAG, "rest.seed")),
)
PIPELINES = VIEWS[0]


def install(client: MlflowClient, experiment_id: str) -> None:
    """Give an experiment the views that it lacks; one that somebody has changed stays."""
    tags = client.get_experiment(experiment_id).tags
    for view in VIEWS:
        if (tag := f"{TAG_PREFIX}{view.key}") not in tags:
            client.set_experiment_tag(experiment_id, tag, saved(view))


def saved(view: View) -> str:
    """A view as the value of its tag."""
    return json.dumps({"name": view.name, "createdAt": 0, "updatedAt": 0, "state": _packed(_state(view))})


def _state(view: View) -> dict[str, Any]:
    return {
        "searchFilter": view.filter,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": view.columns,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
    }


def _packed(state: Mapping[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
