"""Write the tables and pictures of docs/evidence.md anew, from results/evidence (make evidence).

    python benchmarks/evidence_report.py [--check] [--results FOLDER]

Tables stand between `<!-- evidence: NAME -->` and `<!-- end -->`. With --check nothing is written; the exit code is 1
where a table is not what the results give.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evidence import plots, tables
from evidence.gradients import region_table, scheme_table, token_table
from evidence.trials import read
from matplotlib.figure import Figure
from stepbench.machine import TOP

PAGE = TOP / "docs" / "evidence.md"
IMAGES = TOP / "docs" / "images"
RESULTS = TOP / "benchmarks" / "results" / "evidence"
# Policies whose gradients are measured, gradients-NAME.json, and what tables and pictures call them.
POLICIES = {"warm": "warm policy", "cold": "model as it is", "toolrl": "warm policy on ToolRL's data"}
SECONDARY = {
    "task/last/call_accuracy": "held-out call accuracy after the last step (primary of Q3)",
    "task/last/irrelevance_accuracy": "held-out requests that want no call",
    "mean reward/total": "reward, mean of all steps (primary of Q4)",
    "last reward/total": f"reward, last {tables.LAST} steps",
    "last reward/well_formed": f"share well formed, last {tables.LAST} steps",
    "last response/tokens": f"tokens a response, last {tables.LAST} steps",
    "last response/truncated_share": f"share cut off, last {tables.LAST} steps",
    "bfcl/call_accuracy": "BFCL, questions that want a call",
    "bfcl/irrelevance_accuracy": "BFCL, questions that want none",
    "api_bank/overall_strict": "API-Bank, strict",
}
SHOWN = {
    "task/last/call_accuracy": "held-out, calls",
    "task/last/irrelevance_accuracy": "held-out, no call",
    "bfcl/call_accuracy": "BFCL, calls",
    "bfcl/irrelevance_accuracy": "BFCL, no call",
    "api_bank/overall_strict": "API-Bank, strict",
}
_BLOCK = re.compile(r"(<!-- evidence: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def blocks(rows: tables.Rows, gradients: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tables by name."""
    entropies = {
        f"{what} entropy/{region}": f"{region}, {label}"
        for what, label in (("last", f"mean of the last {tables.LAST} steps"), ("change", "mean change a step"))
        for region in tables.REGIONS
    }
    schemes = (tables.BASELINE, tables.REST)
    others = [row for row in rows if row["scheme"] != tables.BASELINE]  # it is Q3's, with a test of its own
    return {
        "duration": tables.duration(rows),
        "pilot": tables.tuning(rows, "pilot"),
        "learning-rates": tables.tuning(rows, "learning-rates"),
        "paper-settings": tables.tuning(rows, "paper-settings"),
        "power": tables.power(rows),
        "primary": tables.comparison(tables.compared(rows, tables.PRIMARY, parts=("comparison",))),
        "stages": tables.two_stages(rows),
        "secondary": tables.metrics(rows, SECONDARY, schemes),
        "speed": _speed(rows),
        "entropy": tables.metrics(rows, entropies, schemes),
        "controls": tables.comparison(tables.compared(others, tables.PRIMARY, tables.REST), tables.REST),
        "policies": tables.policies(rows, SHOWN),
        "gain": tables.gains(rows),
        "without-gradients": _without(gradients),
        "gradients": _each(gradients, "plain", scheme_table),
        "gradients-adamw": _each(gradients, "adamw", scheme_table),
        "regions": _each(gradients, "plain", region_table),
        "regions-adamw": _each(gradients, "adamw", region_table),
        "tokens": _each(gradients, "tokens", token_table),
    }


def pictures(rows: tables.Rows, gradients: Mapping[str, Any]) -> dict[str, Figure]:
    """The pictures by file name, of what has been measured."""
    found = {
        "evidence-trials.png": plots.trials(rows),
        "evidence-curves.png": plots.curves(rows),
        "evidence-gradients.png": plots.gradients(gradients),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def filled(page: str, found: Mapping[str, list[str]]) -> str:
    """The page with these tables in their places."""
    return _BLOCK.sub(lambda match: "\n".join([match[1].rstrip("\n"), *found[match[2]], match[3]]), page)


def measured(results: Path = RESULTS) -> tuple[tables.Rows, dict[str, Any]]:
    """The rows of the trials, and the figures of the gradients by policy."""
    files = {label: results / f"gradients-{name}.json" for name, label in POLICIES.items()}
    found = {label: json.loads(file.read_text(encoding="utf-8")) for label, file in files.items() if file.exists()}
    return read(results / "trials.jsonl") + read(results / "trials-toolrl.jsonl"), found


def _speed(rows: tables.Rows) -> list[str]:
    found = tables.speed(rows)
    if found is None:
        return ["Not measured yet."]
    when = f"reaches GRPO's final reward at step {found['steps']:.0f}"
    if not found["reached"]:
        when = f"does not reach GRPO's final reward (counted as step {found['steps']:.0f})"
    return [
        f"ResT {when}, GRPO at step {found['of']:.0f}: {found['ratio']:.0%} ({found['low']:.0%} to "
        f"{found['high']:.0%}, bootstrap over {found['seeds']} seeds; in {found['not_reached']:.0%} of the draws ResT "
        "does not reach it)."
    ]


def _each(gradients: Mapping[str, Any], what: str, write: Callable[[Mapping[str, Any], str], list[str]]) -> list[str]:
    """A table a policy of one part of the measurement."""
    lines: list[str] = []
    for policy, one in gradients.items():
        if what in one:
            of = "{responses} responses" if what == "tokens" else "{measured} of {with_signal} groups"
            lines += [f"The {policy} ({of.format(**one['settings'])}):", "", *write(one, what), ""]
    return lines[:-1] or ["Not measured yet."]


def _without(gradients: Mapping[str, Any]) -> list[str]:
    """A line for each policy that has been measured and has no figures."""
    lines = [
        f"The {policy} has too few gradients to compare: in {{with_signal}} of {{groups}} groups the rewards differ, "
        "and only those have a gradient, whatever the scheme.".format(**one["settings"])
        for policy, one in gradients.items()
        if "plain" not in one
    ]
    return lines or ["Every policy that has been measured has gradients to compare."]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; is the page what the results give?")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of trials*.jsonl and gradients-*.json")
    options = parser.parse_args()
    rows, gradients = measured(options.results)
    page = PAGE.read_text(encoding="utf-8")
    made = filled(page, blocks(rows, gradients))
    if options.check:
        sys.stdout.write("" if made == page else f"{PAGE} is not what the results give; run make evidence\n")
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    for name, figure in pictures(rows, gradients).items():
        figure.savefig(IMAGES / name, format="png", dpi=110, metadata={"Software": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
