import pytest

from rest_core.errors import UserError
from rest_core.evaluation.bfcl.categories import CATEGORIES, averages, select
from rest_core.evaluation.statistics import Accuracy


def test_groups_and_categories_are_taken_once_in_bfcl_order():
    assert [c.name for c in select(["live", "simple_java", "live_simple"])] == [
        "simple_java",
        "live_simple",
        "live_multiple",
        "live_parallel",
        "live_parallel_multiple",
        "live_irrelevance",
        "live_relevance",
    ]
    assert [c.name for c in select(["live", "multi_turn", "non_live"])] == list(CATEGORIES)


def test_an_unknown_category_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown category 'simple_pyton'; did you mean 'simple_python'\?"):
        select(["simple_pyton"])
    with pytest.raises(UserError, match="no category is named"):
        select([])


def test_averages_against_worked_numbers():
    scores = {
        "simple_python": Accuracy(4, 4),
        "simple_java": Accuracy(1, 2),
        "simple_javascript": Accuracy(0, 1),
        "multiple": Accuracy(1, 4),
        "parallel": Accuracy(3, 4),
        "parallel_multiple": Accuracy(1, 2),
        "irrelevance": Accuracy(1, 5),
        "live_simple": Accuracy(2, 10),
        "live_multiple": Accuracy(30, 50),
        "live_parallel": Accuracy(1, 2),
        "live_parallel_multiple": Accuracy(0, 3),
        "live_irrelevance": Accuracy(9, 10),
        "live_relevance": Accuracy(0, 1),
    }
    simple = (1 + 0.5 + 0) / 3
    non_live = (simple + 0.25 + 0.75 + 0.5) / 4
    live = 33 / 65
    irrelevance = (0.2 + 0.9) / 2
    assert averages(scores) == pytest.approx(
        {
            "simple": simple,
            "non_live": non_live,
            "live": live,
            "irrelevance_detection": irrelevance,
            "overall": (non_live + live + irrelevance) / 3,
        }
    )


def test_an_average_with_a_part_missing_is_left_out():
    scores = {name: Accuracy(1, 1) for name in CATEGORIES if name != "simple_java"}
    assert set(averages(scores)) == {"live", "irrelevance_detection"}
