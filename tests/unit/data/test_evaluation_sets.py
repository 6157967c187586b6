from __future__ import annotations

import json
from pathlib import Path

import pytest

from rest_core.data.evaluation_sets import evaluation_questions
from rest_core.errors import UserError


def test_bfcl_categories_of_the_wheel():
    sets = evaluation_questions()
    sizes = {name: len(questions) for name, questions in sets.items()}
    assert sizes == {
        "bfcl/simple_python": 400,
        "bfcl/simple_java": 100,
        "bfcl/simple_javascript": 50,
        "bfcl/multiple": 200,
        "bfcl/parallel": 200,
        "bfcl/parallel_multiple": 200,
        "bfcl/irrelevance": 240,
        "bfcl/live_simple": 258,
        "bfcl/live_multiple": 1053,
        "bfcl/live_parallel": 16,
        "bfcl/live_parallel_multiple": 24,
        "bfcl/live_irrelevance": 884,
        "bfcl/live_relevance": 16,
        "bfcl/memory": 155,
        "bfcl/memory_prerequisites": 323,
        "bfcl/multi_turn_base": 734,
        "bfcl/multi_turn_long_context": 734,
        "bfcl/multi_turn_miss_func": 734,
        "bfcl/multi_turn_miss_param": 934,
        "bfcl/web_search": 100,
    }
    assert sets["bfcl/simple_python"][0].startswith("Find the area of a triangle")
    first, second, *_ = sets["bfcl/multi_turn_base"]  # a dialogue's first step, and its first two
    assert first.startswith("Move 'final_report.pdf' within") and second.startswith(
        f"{first} Perform a detailed search"
    )
    assert "What is my first name?" in sets["bfcl/memory"]


def test_api_bank_questions_are_the_users_words(api_bank_folder: Path):
    sets = evaluation_questions(api_bank_folder)
    assert [len(sets[f"api-bank/{level}"]) for level in (1, 2, 3)] == [399, 67, 131]
    assert sets["api-bank/3"][0] == "Query meeting of John and send email reminder to john@example.com."
    assert not any("Based on our conversation above" in text or "<user>" in text for text in sets["api-bank/2"])


def test_other_files_are_refused_by_field(tmp_path: Path):
    with pytest.raises(UserError, match=r"level-1-api_processed\.json: no such file"):
        evaluation_questions(tmp_path)
    (tmp_path / "level-1-api_processed.json").write_text(json.dumps([{"system": "s", "user": 3}]))
    with pytest.raises(UserError, match=r"record 0: field 'user': field of the wrong type"):
        evaluation_questions(tmp_path)
