"""How often the gate before `champion` lets a candidate pass, on simulated pairs of evaluations.

    python benchmarks/gate.py [--pairs 200] [--questions 1000] [--correlation 0.8]

Two policies answer the same questions, in five categories of equal size. Whether they are right is drawn from a normal
copula: a question that is hard for one is hard for the other, as of two trainings of one model. The champion's accuracy
is 45 %; candidates differ by the points that a row names. The base model calls no tool. Everything that `rest promote`
does with evaluations is done here, on the same files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import click
import numpy as np
from scipy import stats

from rest_core.config import GateConfig
from rest_core.evaluation.evaluation_report import REPORT_FILE, ROWS_FILE
from rest_core.evaluation.gate import Rival, judge
from rest_core.evaluation.measurement import Measurement
from rest_core.evaluation.statistics import Accuracy

ACCURACY = 0.45  # of the champion
CATEGORIES = ("simple_python", "multiple", "parallel", "live_simple", "live_multiple")
DIFFERENCES = (0.0, 0.02, 0.05)
GATE = GateConfig()


def write(directory: Path, right: np.ndarray) -> Path:
    """An evaluation's report and answers: `right` says of each question whether the answer is."""
    directory.mkdir(parents=True, exist_ok=True)
    figure = GATE.metric.partition("/")[2]
    weights = dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES))
    measured = Measurement(
        benchmark="bfcl",
        items="0" * 64,
        condition="simulated",
        template="0" * 64,
        limits={},
        checker="none",
        rules=("valid",),
    )
    report = {
        "title": "BFCL",
        "model": directory.name,
        "subset": None,
        "headline": {figure: {}},
        "averages": {figure: {"weights": weights}},
        "measured": measured.model_dump(mode="json"),
    }
    (directory / REPORT_FILE).write_text(json.dumps(report), encoding="utf-8")
    rows = [
        {"id": str(n), "category": CATEGORIES[n % len(CATEGORIES)], "response": "", "valid": bool(one)}
        | {"well_formed": True}
        for n, one in enumerate(right)
    ]
    (directory / ROWS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="pairs of evaluations a difference (default: 200)")
    parser.add_argument("--questions", type=int, default=1000, help="of an evaluation (default: 1000)")
    parser.add_argument("--correlation", type=float, default=0.8, help="of the two policies (default: 0.8)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = np.random.default_rng(options.seed)
    covariance = [[1.0, options.correlation], [options.correlation, 1.0]]
    click.echo(f"{options.pairs} pairs a row, {options.questions} questions each, correlation {options.correlation}")
    click.echo("difference  other answers  promoted (95 % interval)")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        base = Rival("base model", write(place / "base", np.zeros(options.questions, bool)))
        for difference in DIFFERENCES:
            limits = stats.norm.ppf([ACCURACY, ACCURACY + difference])
            promoted, other = 0, 0.0
            for _ in range(options.pairs):
                right = draw.multivariate_normal([0.0, 0.0], covariance, options.questions) < limits
                champion, candidate = (write(place / name, right[:, n]) for n, name in enumerate(("before", "after")))
                promoted += judge(GATE, candidate, champion=Rival("champion", champion), base=base).passed
                other += float((right[:, 0] != right[:, 1]).mean()) / options.pairs
            share = Accuracy(promoted, options.pairs)
            interval = f"{share.interval.low:.1%} to {share.interval.high:.1%}"
            click.echo(f"{100 * difference:+5.1f} pp    {other:13.1%}  {share.value:.1%} ({interval})")


if __name__ == "__main__":
    main()
