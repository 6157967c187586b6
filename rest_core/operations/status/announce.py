"""Tells a webhook that a run has ended, where the environment names one; the pod has the variables from a Secret."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from rest_core.errors import UserError, one_line
from rest_core.operations import webhook
from rest_core.operations.status.outcome import Outcome, mark

log = logging.getLogger(__name__)

URL_VARIABLE = "REST_WEBHOOK_URL"
FORM_VARIABLE = "REST_WEBHOOK_FORM"  # slack (also Mattermost's, Google Chat's …) or json
WHEN_VARIABLE = "REST_WEBHOOK_WHEN"  # always or failed
_LONGEST_REASON = 1000


def announce(outcome: Outcome) -> None:
    """Send the outcome to the webhook, if there is one and it asks for such an outcome.

    Raises:
        UserError: the webhook was not told, or its settings are none.
    """
    url = _variable(URL_VARIABLE)
    if not url:
        return
    if _one_of(WHEN_VARIABLE, "always", "failed") == "failed" and outcome.succeeded:
        return
    webhook.post(url, _FORMS[_one_of(FORM_VARIABLE, *_FORMS)](outcome))
    log.info("the webhook has been told how the run ended")


def slack(outcome: Outcome) -> dict[str, Any]:
    """The body of Slack's incoming webhooks: {"text": …}."""
    lines = [f"{mark(outcome.verdict)} {outcome.verdict}: {outcome.pipeline_run}"]
    lines += [f"{one['stage']}: {one['reason']}" for one in _failures(outcome)]
    if outcome.message and not outcome.succeeded and not outcome.failures:
        lines.append(one_line(outcome.message, longest=_LONGEST_REASON))
    lines += [f"{name}: {address}" for name, address in outcome.links]
    text = "\n".join(lines)
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # <!channel> in an error would call everybody
        text = text.replace(sign, entity)
    return {"text": text}


def plain(outcome: Outcome) -> dict[str, Any]:
    """A body for programs."""
    return {
        "run": outcome.pipeline_run,
        "status": outcome.verdict,
        "failures": _failures(outcome),
        "message": None if outcome.succeeded else outcome.message,
        "links": dict(outcome.links),
    }


_FORMS = {"slack": slack, "json": plain}


def _failures(outcome: Outcome) -> list[Mapping[str, str]]:
    return [{"stage": one.stage, "reason": one_line(one.why, longest=_LONGEST_REASON)} for one in outcome.failures]


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()  # a Secret made from a file ends with a newline


def _one_of(name: str, usual: str, *others: str) -> str:
    value = _variable(name) or usual
    if value not in (usual, *others):
        raise UserError(f"{name}={value}: must be {' or '.join((usual, *others))}")
    return value
