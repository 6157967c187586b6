"""A comparison for people and programs: a page, Markdown, JSON, and a table for the terminal.

Model output is hostile: the page escapes it and allows no script, Markdown and terminal show none of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rest_core.errors import one_line
from rest_core.evaluation.benchmark import Row
from rest_core.evaluation.evaluation_report import write_text
from rest_core.evaluation.paired import Compared, Difference, Evaluation, Pair
from rest_core.evaluation.taxonomy import Kind
from rest_core.pages import render

JSON_FILE, MARKDOWN_FILE, HTML_FILE = "comparison.json", "comparison.md", "comparison.html"
SHOWN_ITEMS = 20  # of a category and pair, on the page, gained and lost each
LONGEST = 4000  # characters of a text on the page
_NOTE = (
    "Intervals are 95 %: Newcombe's of paired proportions for categories, a paired bootstrap within categories for "
    "averages. p is McNemar's exact test, adjusted by Holm for the number of categories; averages have no test beside "
    "their interval. Both cover the choice of questions, not the variation between trainings."
)


@dataclass(frozen=True)
class Change:
    """An item that one of two evaluations has right."""

    id: str
    scores: tuple[str, ...]
    before: Row
    after: Row


def write(comparison: Compared, out: Path) -> tuple[Path, ...]:
    """Write the three files to the directory `out`; returns their paths."""
    texts = {
        JSON_FILE: json.dumps(to_json(comparison), indent=2) + "\n",
        MARKDOWN_FILE: "\n".join(markdown(comparison)) + "\n",
        HTML_FILE: page(comparison),
    }
    for name, text in texts.items():
        write_text(out / name, text.encode("utf-8", "backslashreplace").decode())  # halves of surrogate pairs
    return tuple(out / name for name in texts)


def to_json(comparison: Compared) -> dict[str, Any]:
    """The comparison as plain JSON types; items by id."""
    return {
        "title": comparison.title,
        "headline": list(comparison.headline),
        "evaluations": [
            {
                "name": one.name,
                "directory": str(one.directory),
                "model": one.summary.model,
                "subset": one.summary.subset,
                "measured": one.measured.model_dump(mode="json"),
                "values": {figure: one.value(figure) for figure in comparison.pairs[0].differences},
                "errors": errors(one),
            }
            for one in comparison.evaluations
        ],
        "pairs": [
            {
                "before": pair.before.name,
                "after": pair.after.name,
                "averages": {name: asdict(one) for name, one in pair.averages.items()},
                "categories": {name: asdict(one) for name, one in pair.categories.items()},
            }
            for pair in comparison.pairs
        ],
    }


def errors(evaluation: Evaluation) -> dict[str, int]:
    """How many answers are wrong by kind of error, in the order of the kinds."""
    found = Counter(str(row["kind"]) for row in evaluation.rows.values() if row.get("kind") is not None)
    return {kind: found[kind] for kind in dict.fromkeys((*Kind, *found)) if found[kind]}


def markdown(comparison: Compared) -> Iterator[str]:
    """Tables of the differences, without items."""
    yield from (f"# {_cell(comparison.title)}", "")
    yield from (f"- {_cell(line)}" for line in _measured_on(comparison))
    for pair in comparison.pairs:
        header = [_cell(text) for text in _header(pair)]
        yield from ("", f"## {_cell(pair.label)}", "")
        yield f"| {' | '.join(header)} |"
        yield "|---|" + "---:|" * (len(header) - 1)
        for name, difference in _ordered(comparison, pair).items():
            mark = "**" if difference.clear else ""
            yield f"| {' | '.join([mark + name + mark, *_row(pair, name, difference)])} |"
    yield from ("", f"Bold: clear differences. {_NOTE}")


def tables(comparison: Compared) -> RenderableType:
    """A table a pair for a terminal; clear differences are coloured."""
    shown: list[RenderableType] = []
    for pair in comparison.pairs:
        table = Table(box=box.SIMPLE_HEAD, title=Text(one_line(pair.label)), title_justify="left", padding=(0, 1, 0, 0))
        first, *others = (Text(one_line(heading)) for heading in _header(pair))
        figures = _ordered(comparison, pair)
        table.add_column(first, no_wrap=True, min_width=max(map(len, figures)))  # in a narrow terminal, too
        for heading in others:
            table.add_column(heading, justify="right", overflow="fold")
        for position, (name, difference) in enumerate(figures.items()):
            style = ("green" if difference.value > 0 else "red") if difference.clear else ""
            last = position + 1 in (len(comparison.headline), len(pair.averages))
            table.add_row(Text(one_line(name)), *_row(pair, name, difference), style=style, end_section=last)
        shown.append(table)
    return Group(*shown)


def page(comparison: Compared) -> str:
    """One HTML page that needs no other file: tables, kinds of error, and items with the answers side by side."""
    return render(
        "rest_core.evaluation",
        "comparison.html.jinja",
        shortened=_shortened,
        calls=_calls,
        title=comparison.title,
        measured=list(_measured_on(comparison)),
        evaluations=comparison.evaluations,
        kinds={kind: [errors(one).get(kind, 0) for one in comparison.evaluations] for kind in _kinds(comparison)},
        headline=comparison.headline,
        pairs=[
            {
                "pair": pair,
                "header": _header(pair),
                "rows": {
                    name: (difference, _row(pair, name, difference))
                    for name, difference in _ordered(comparison, pair).items()
                },
                "changes": {"gained": changes(pair, "gained"), "lost": changes(pair, "lost")},
                "shown": SHOWN_ITEMS,
            }
            for pair in comparison.pairs
        ],
        note=_NOTE,
    )


def changes(pair: Pair, direction: str) -> list[Change]:
    """Items "gained" or "lost", up to `SHOWN_ITEMS` a category, with both answers."""
    scores: dict[str, list[str]] = {}
    for score, difference in pair.categories.items():
        for id_ in getattr(difference, direction)[:SHOWN_ITEMS]:
            scores.setdefault(id_, []).append(score)
    return [Change(id_, tuple(of), pair.before.rows[id_], pair.after.rows[id_]) for id_, of in scores.items()]


def _kinds(comparison: Compared) -> list[str]:
    found = {kind for one in comparison.evaluations for kind in errors(one)}
    return [kind for kind in dict.fromkeys((*map(str, Kind), *sorted(found))) if kind in found]


def _measured_on(comparison: Compared) -> Iterator[str]:
    """What the evaluations have in common."""
    first = comparison.evaluations[0]
    if first.summary.subset is not None:
        yield f"SUBSET: {first.summary.subset}"
    measured = first.measured
    limits = ", ".join(f"{name} {value}" for name, value in measured.limits.items())
    yield f"{len(first.rows)} items, {measured.condition}, {limits}, {measured.checker}"


def _ordered(comparison: Compared, pair: Pair) -> dict[str, Difference]:
    """Headline, averages, categories."""
    found = pair.differences
    return {name: found[name] for name in dict.fromkeys((*comparison.headline, *found))}


def _header(pair: Pair) -> list[str]:
    return [
        "figure",
        "items",
        pair.before.name,
        pair.after.name,
        "difference",
        "95 % interval",
        "gained",
        "lost",
        "p (Holm)",
    ]


def _row(pair: Pair, figure: str, difference: Difference) -> list[str]:
    """For people: all columns but the first."""
    low, high = (_points(bound) for bound in (difference.interval.low, difference.interval.high))
    p = "" if difference.p_holm is None else "< 0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}"
    return [
        str(difference.total),
        f"{pair.before.value(figure):.1%}",
        f"{pair.after.value(figure):.1%}",
        f"{_points(difference.value)} pp",
        f"{low} to {high}",
        str(len(difference.gained)),
        str(len(difference.lost)),
        p,
    ]


def _points(fraction: float) -> str:
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _calls(expected: Any) -> str:
    """Expected calls, one a line."""
    lines = expected if isinstance(expected, list) else [expected]
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")


def _shortened(text: str) -> str:
    more = len(text) - LONGEST
    return text if more <= 0 else f"{text[:LONGEST]}… ({more} more characters)"
