"""The findings of preflight as a report for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rest_core.errors import UserError

Outcome = Literal["problem", "not checked", "ok"]
_MARKS: dict[Outcome, str] = {"problem": "❌", "not checked": "➖", "ok": "✅"}  # in the order of the report


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str  # "MLflow", "model" …
    outcome: Outcome
    detail: str  # one line


def problems(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.outcome == "problem"]


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many checks had each outcome: `problems`, `not_checked`, `ok`."""
    outcomes = [finding.outcome for finding in findings]
    return {
        "problems": outcomes.count("problem"),
        "not_checked": outcomes.count("not checked"),
        "ok": outcomes.count("ok"),
    }


def markdown(findings: Sequence[Finding]) -> str:
    """The report as a Markdown table, problems first."""
    lines = [f"# Preflight: {verdict(findings)}", "", "| | check | found |", "|---|---|---|"]
    for one in sorted(findings, key=lambda finding: list(_MARKS).index(finding.outcome)):
        detail = one.detail.replace("|", "\\|")
        lines.append(f"| {_MARKS[one.outcome]} | {one.check} | {detail} |")
    return "\n".join(lines) + "\n"


def verdict(findings: Sequence[Finding]) -> str:
    """`2 problems in 9 checks`, or `all is there (9 checks, 1 could not be made)`."""
    wrong, skipped, _ = counts(findings).values()
    if wrong:
        return f"{wrong} problem{'s' if wrong > 1 else ''} in {len(findings)} checks"
    return f"all is there ({len(findings)} checks{f', {skipped} could not be made' if skipped else ''})"


def require_none(findings: Sequence[Finding]) -> None:
    """Raise one `UserError` for all problems, a line each."""
    if wrong := problems(findings):
        raise UserError("\n".join([verdict(findings), *(f"- {one.check}: {one.detail}" for one in wrong)]))
