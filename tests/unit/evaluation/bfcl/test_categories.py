import csv
import importlib.util
import json
import os
import random
import subprocess
import sys

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
    everything = ["live", "multi_turn", "non_live", "memory_kv", "memory_rec_sum", "format_sensitivity"]
    assert [c.name for c in select(everything)] == list(CATEGORIES)


def test_an_unknown_category_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown category 'simple_pyton'; did you mean 'simple_python'\?"):
        select(["simple_pyton"])
    with pytest.raises(UserError, match="no category is named"):
        select([])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("web_search_base", "it needs a search engine's key and a network"),
        ("memory_vector", "it needs a sentence-transformers model"),
        ("memory", "a part of it, memory_vector, needs a sentence-transformers model; name memory_kv and"),
        ("agentic", "parts of it need a network"),
    ],
)
def test_a_category_of_bfcl_that_cannot_be_evaluated_says_why(name, reason):
    with pytest.raises(UserError, match=f"bfcl.categories: {name} cannot be evaluated: {reason}"):
        select([name])


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
    single_turn = {
        "call_accuracy": (4 + 1 + 0 + 1 + 3 + 1 + 33) / (4 + 2 + 1 + 4 + 4 + 2 + 65),
        "irrelevance_accuracy": 10 / 15,
        "simple": simple,
        "non_live": non_live,
        "live": live,
        "irrelevance_detection": irrelevance,
        "non_live_v3": (simple + 0.25 + 0.75 + 0.5 + 0.2) / 5,
        "live_v3": 42 / 76,
        "overall_single_turn": (non_live + live + irrelevance) / 3,
    }
    assert values(scores) == pytest.approx(single_turn)

    dialogues = {f"multi_turn_{part}": Accuracy(1, 4) for part in ("base", "miss_func", "miss_param")}
    dialogues["multi_turn_long_context"] = Accuracy(2, 2)
    multi_turn = (3 * 0.25 + 1) / 4
    with_dialogues = single_turn | {
        "multi_turn_accuracy": 5 / 14,
        "multi_turn": multi_turn,
        "overall_v3": (single_turn["non_live_v3"] + single_turn["live_v3"] + multi_turn) / 3,
    }
    assert values(scores | dialogues) == pytest.approx(with_dialogues)

    web = {"web_search_base": Accuracy(1, 2), "web_search_no_snippet": Accuracy(0, 2)}
    memory = {"memory_kv": Accuracy(1, 1), "memory_vector": Accuracy(0, 3), "memory_rec_sum": Accuracy(1, 5)}
    agentic = (0.25 + (1 + 0 + 0.2) / 3) / 2
    total = 0.1 * (non_live + live + irrelevance) + 0.3 * multi_turn + 0.4 * agentic
    everything = values(scores | dialogues | web | memory)
    assert everything == pytest.approx(
        with_dialogues
        | {"web_search": 0.25, "memory_accuracy": 2 / 9, "memory": 0.4, "agentic": agentic, "overall_v4": total}
    )
    assert "overall_v4" not in values(scores | dialogues | memory)


def values(scores):
    found = averages(scores)
    assert all(sum(average.weights.values()) == pytest.approx(1) for average in found.values())
    return {name: average.value for name, average in found.items()}


def test_a_model_that_never_calls_does_not_look_good():
    scores = {
        category.name: Accuracy(4 if "irrelevance" in category.name else 0, 4) for category in CATEGORIES.values()
    }
    found = averages(scores)
    assert tuple(found)[:4] == ("call_accuracy", "irrelevance_accuracy", "multi_turn_accuracy", "memory_accuracy")
    assert (found["call_accuracy"].value, found["irrelevance_accuracy"].value) == (0, 1)
    assert (found["call_accuracy"].total, found["irrelevance_accuracy"].total) == (40, 8)
    assert found["memory_accuracy"].total == 8


def test_an_average_with_a_part_missing_is_left_out():
    scores = {name: Accuracy(1, 1) for name in CATEGORIES if name != "simple_java"}
    assert set(averages(scores)) == {
        *("call_accuracy", "irrelevance_accuracy", "multi_turn_accuracy", "live", "irrelevance_detection"),
        *("multi_turn", "live_v3", "memory_accuracy"),
    }
    assert set(averages({"multi_turn_base": Accuracy(1, 2)})) == {"multi_turn_accuracy"}


_OFFICIAL_TABLE = """
import json, sys, types
from pathlib import Path

class AnyModel(dict):
    def __missing__(self, name):
        return types.SimpleNamespace(display_name="m", url="", org="", license="", input_price=None, output_price=None)

module = types.ModuleType("bfcl_eval.constants.model_config")
module.MODEL_CONFIG_MAPPING = AnyModel()
sys.modules[module.__name__] = module
from bfcl_eval.eval_checker.eval_runner_helper import generate_leaderboard_csv

generate_leaderboard_csv({"m": json.load(sys.stdin)}, Path(sys.argv[1]))
"""


@pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
def test_averages_equal_the_official_table(tmp_path):
    generator = random.Random(0)
    scores = {}
    scored = [name for name, category in CATEGORIES.items() if category.group != "format_sensitivity"]
    for name in (*scored, "web_search_base", "web_search_no_snippet", "memory_vector"):
        total = generator.randint(1, 300)
        scores[name] = Accuracy(generator.randint(0, total), total)
    table = {name: {"accuracy": score.value, "total_count": score.total} for name, score in scores.items()}
    subprocess.run(
        [sys.executable, "-P", "-c", _OFFICIAL_TABLE, str(tmp_path)],
        input=json.dumps(table),
        text=True,
        check=True,
        capture_output=True,
        env={**os.environ, "BFCL_PROJECT_ROOT": str(tmp_path)},
    )
    names, values = csv.reader((tmp_path / "data_overall.csv").read_text(encoding="utf-8").splitlines())
    official = dict(zip(names, values, strict=True))
    columns = {
        "overall_v4": "Overall Acc",
        "non_live": "Non-Live AST Acc",
        "simple": "Non-Live Simple AST",
        "live": "Live Acc",
        "multi_turn": "Multi Turn Acc",
        "web_search": "Web Search Acc",
        "memory": "Memory Acc",
        "irrelevance_detection": "Irrelevance Detection",
    }
    found = averages(scores)
    assert {name: f"{found[name].value:.2%}" for name in columns} == {
        name: official[column] for name, column in columns.items()
    }
