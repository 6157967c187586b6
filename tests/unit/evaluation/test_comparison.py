"""Evaluations of a benchmark of two categories, by policies that answer by script, compared."""

import json
import re
import shutil
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from counting_benchmark import HOSTILE, Scripted, ids
from rich.console import Console

from rest_core.config import GenerationConfig
from rest_core.errors import UserError
from rest_core.evaluation.comparison import compare

BASE = Scripted("base", ids("easy", 0, 1))
WARM = Scripted("warm", [*ids("easy", *range(1, 9)), *ids("hard", 0)], wrong=HOSTILE)
REST = Scripted("rest", [*ids("easy", *range(1, 19)), *ids("hard", 0, 1)])


@pytest.fixture
def made(evaluated, tmp_path):
    """made(policy, benchmark settings) is a copy of the output directory of an evaluation."""

    def make(policy, **settings):
        out = tmp_path / f"evaluation-{len(list(tmp_path.iterdir()))}"
        return Path(shutil.copytree(evaluated(policy, **settings), out))

    return make


def test_differences_gains_and_losses_item_by_item(made):
    comparison = compare([made(BASE), made(WARM)])
    (pair,) = comparison.pairs
    easy, hard, both = pair.categories["easy"], pair.categories["hard"], pair.averages["both"]
    assert easy.value == pytest.approx((8 - 2) / 20)
    assert (easy.gained, easy.lost) == (tuple(ids("easy", *range(2, 9))), ("easy-0",))
    assert easy.p == pytest.approx(2 * (1 + 8) / 2**8)
    assert easy.p_holm == pytest.approx(2 * easy.p)
    assert easy.interval.low < 0.3 < easy.interval.high
    assert (hard.gained, hard.lost, hard.p) == (("hard-0",), (), 1)
    assert both.value == pytest.approx((6 / 20 + 1 / 10) / 2)
    assert both.interval.low < both.value < both.interval.high
    assert both.p is None and both.clear  # the interval is without 0
    assert len(both.gained) == 8 and both.total == 30


def test_each_is_compared_with_the_first_and_with_the_one_before(made):
    comparison = compare([made(policy) for policy in (BASE, WARM, REST)], names=["Base", "Warm-up", "ResT"])
    assert [pair.label for pair in comparison.pairs] == ["Warm-up - Base", "ResT - Base", "ResT - Warm-up"]
    assert comparison.pairs[1].categories["easy"].clear and not comparison.pairs[1].categories["hard"].clear
    values = comparison.metrics()
    assert values["comparison/counting/both/ResT - Base/difference"] == pytest.approx((16 / 20 + 2 / 10) / 2)
    assert values["comparison/counting/both/ResT - Warm-up/gained"] == 11
    assert len(values) == 3 * 5
    assert not {a for a in values for b in values if b.startswith(f"{a}/")}  # MLflow keeps metrics in files


def test_several_samples_are_compared_by_pass_at_k_and_pass_hat_k(made):
    outs = [made(WARM), made(REST)]
    samples = {"hard-0": ([True, True], [True, False]), "hard-1": ([False, False], [False, True])}
    for n, out in enumerate(outs):
        rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
        for row in rows:
            if row["category"] == "hard":
                valid = samples.get(row["id"], ([False, False], [False, False]))[n]
                row["samples"] = [{"valid": one} for one in valid]
        (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compare(outs).pairs[0].categories
    assert list(found) == ["easy", "hard", "hard_pass_at_2", "hard_pass_hat_2"]
    any_, all_ = found["hard_pass_at_2"], found["hard_pass_hat_2"]
    assert (any_.gained, any_.lost, any_.total) == (("hard-1",), (), 10)
    assert (all_.gained, all_.lost) == ((), ("hard-0",))
    assert (any_.value, all_.value) == pytest.approx((0.1, -0.1))
    with pytest.raises(UserError, match=r"items with other numbers of samples: 10 \(hard-0, "):
        compare([outs[0], made(REST)])


def test_an_evaluation_compared_with_itself_differs_in_nothing(made):
    out = made(WARM)
    comparison = compare([out, out])
    assert [one.name for one in comparison.evaluations] == [f"warm ({out}) 1", f"warm ({out}) 2"]
    for difference in comparison.pairs[0].differences.values():
        assert difference.value == 0 and not difference.clear and difference.gained == difference.lost == ()
        assert difference.interval.low < 0 < difference.interval.high


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attributes):
        self.seen |= {tag, *(name for name, _ in attributes)}


def test_the_page_shows_both_answers_and_obeys_none_of_them(made, tmp_path):
    written = compare([made(BASE), made(WARM), made(REST)]).write(tmp_path / "out")
    assert [path.name for path in written] == ["comparison.json", "comparison.md", "comparison.html"]
    html = written[2].read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(html)
    assert not tags.seen & {"script", "img", "src", "onerror", "href", "link"}
    assert "&lt;script&gt;alert(1)" in html
    gained = html.split("<summary>easy-2 ")[1].split("</details>")[0]
    assert "Add easy-2." in gained and "no call → right" in gained
    assert gained.index("base") < gained.index("warm")
    assert "&#34;n&#34;: 2" in gained  # the expected call, and the answer that made it
    lost = html.split("<summary>easy-0 ")[1].split("</details>")[0]
    assert "&lt;img src=x" in lost
    assert "Why answers are wrong" in html


def test_programs_get_every_item_by_id(made, tmp_path):
    found = json.loads(compare([made(BASE), made(WARM)]).write(tmp_path / "out")[0].read_text())
    assert found["pairs"][0]["categories"]["easy"]["lost"] == ["easy-0"]
    assert found["evaluations"][1]["values"] == pytest.approx({"both": 0.25, "easy": 0.4, "hard": 0.1})
    assert found["evaluations"][0]["errors"] == {"no call": 28}
    assert found["headline"] == ["both"]


def test_terminal_and_markdown_show_figures_and_no_answer(made, tmp_path):
    comparison = compare([made(Scripted("a|\x1b[2J[red]b", ids("easy", 0))), made(WARM)])
    shown = Console(file=StringIO(), width=200, force_terminal=True, color_system=None)
    shown.print(comparison.table())
    text = shown.file.getvalue()
    assert "\x1b[2J" not in text and "[red]b" in text
    assert re.search(r"easy +20 +5\.0% +40\.0% +\+35\.0 pp +\+\d+\.\d to \+\d+\.\d +8 +1 ", text)
    assert text.index("both") < text.index("easy")
    markdown = comparison.write(tmp_path / "out")[1].read_text(encoding="utf-8")
    assert "| **both** | 30 | 2.5% | 25.0% | +22.5 pp |" in markdown
    assert "script" not in markdown


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_shows_every_figures_name(width, made):
    shown = Console(file=StringIO(), width=width)
    shown.print(compare([made(BASE), made(WARM)]).table())
    text = shown.file.getvalue()
    assert [len(re.findall(rf"^ {name} ", text, re.MULTILINE)) for name in ("both", "easy", "hard")] == [1, 1, 1]
    assert "…" not in text


@pytest.mark.parametrize(
    "settings, policy, named",
    [
        ({"limit": 5}, WARM, r"items in one alone: 20 \(easy-\d+, .*, …\) and none"),
        ({"asked": "Sum up"}, WARM, "questions or tools of the same ids"),
        ({"checker": "2"}, WARM, "checker: counting 1 and counting 2"),
        ({"generation": GenerationConfig(max_response_tokens=8)}, WARM, "limit max_response_tokens: 1024 and 8"),
        ({}, Scripted("x", [], template="U"), r"prompt template \(SHA-256\): [0-9a-f]{12} and [0-9a-f]{12}"),
    ],
)
def test_what_does_not_compare_is_refused_by_its_difference(made, settings, policy, named):
    with pytest.raises(UserError, match=named):
        compare([made(BASE), made(policy, **settings)])


def test_batches_may_differ(made):
    compare([made(BASE), made(WARM, generation=GenerationConfig(batch_tokens=64))])


def test_an_older_report_says_what_to_do(made):
    old, new = made(BASE), made(WARM)
    summary = json.loads((old / "report.json").read_text())
    (old / "report.json").write_text(json.dumps({name: v for name, v in summary.items() if name != "measured"}))
    with pytest.raises(UserError, match=r"an older version made it.*evaluate again"):
        compare([old, new])


@pytest.mark.parametrize(
    "file, content, named",
    [
        ("report.json", None, "No such file.*give the output directory of an evaluation"),
        ("report.json", "{", "not JSON"),
        ("report.json", "[]", "no report of an evaluation"),
        ("rows.jsonl", None, "No such file.*must lie beside report.json"),
        ("rows.jsonl", "", "no answers"),
        ("rows.jsonl", "[" * 100_000, "not JSON"),
        ("rows.jsonl", '{"id": "a", "category": "easy", "response": "", "valid": 1}\n', "line 1 is no answer"),
        (
            "rows.jsonl",
            '{"id": "a", "category": "easy", "response": "", "valid": true, "samples": [true]}\n',
            "line 1 is no answer",
        ),
    ],
)
def test_a_broken_directory_is_named(made, file, content, named):
    good, broken = made(BASE), made(WARM)
    (broken / file).unlink()
    if content is not None:
        (broken / file).write_text(content)
    with pytest.raises(UserError, match=named) as error:
        compare([good, broken])
    assert str(broken / file) in str(error.value) and "\n" not in str(error.value)


def test_at_least_two_with_names_of_their_own(made):
    out = made(BASE)
    with pytest.raises(UserError, match="at least two"):
        compare([out])
    with pytest.raises(UserError, match="give 2 different ones"):
        compare([out, out], names=["a", "a"])
