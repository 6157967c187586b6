"""BFCL's category format_sensitivity with scripted answers, against bfcl-eval's own verdicts and figures."""

import importlib.util
import json
from collections import Counter

import format_answers
import official_bfcl
import pytest

from rest_core.config import BfclConfig
from rest_core.errors import UserError
from rest_core.evaluation.bfcl.benchmark import Bfcl
from rest_core.evaluation.bfcl.format_sensitivity import question_of
from rest_core.evaluation.bfcl.formats import FORMATS
from rest_core.evaluation.evaluate import evaluate

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
SCORE = "score/Qwen_Qwen3-1.7B-FC/format_sensitivity/BFCL_v4_format_sensitivity_score.json"


def test_verdicts_and_figures_are_official(tmp_path):
    texts = format_answers.scripted(["right", "right", *format_answers.KINDS])
    report = format_answers.run(texts, tmp_path, limit=8)
    assert Counter(row["category"] for row in report.rows) == dict.fromkeys(FORMATS, 8)
    assert set(Counter(question_of(row["id"]) for row in report.rows).values()) == {26}
    ours = {row["id"]: row["error_type"] for row in report.rows if not row["valid"]}
    assert 40 < len(ours) < 180 and len(set(ours.values())) > 5
    official = official_bfcl.formats(tmp_path, {row["id"]: texts[row["id"]] for row in report.rows})
    assert ours == official
    header = json.loads((tmp_path / SCORE).read_text().splitlines()[0])
    assert official_bfcl.evaluate(tmp_path, "format_sensitivity").keys() == ours.keys()
    assert json.loads((tmp_path / SCORE).read_text().splitlines()[0]) == header
    metrics = {name.removeprefix("bfcl/"): value for name, value in report.metrics.items()}
    assert metrics["format_sensitivity_max_delta"] == header["accuracy_max_delta"] > 0
    assert metrics["format_sensitivity_std"] == header["accuracy_std"] > 0
    assert {name: metrics[name] for name in FORMATS} == {n: header[FORMATS[n]]["accuracy"] for n in FORMATS}
    mean = report.figures.averages["format_sensitivity_mean"]
    assert mean.total == 8 and mean.value == pytest.approx(1 - len(ours) / len(report.rows))
    assert not {"call_accuracy", "overall_v4"} & metrics.keys()
    assert report.measured.condition == "the benchmark's own prompts"


def test_questions_are_put_in_bfcls_own_prompts_whatever_the_style():
    (question, *_) = format_answers.questions()["format_concise_xml_tag_python"]
    system, user = Bfcl(BfclConfig()).chat(question).prompt
    assert system.role == "system" and "<TOOLCALL><functions><function name=" in system.content
    assert "in python format" in system.content and user.content == question.entry["question"][0][0]["content"]
    assert question.expected[0].name in system.content


@pytest.mark.parametrize("condition", ["tools of the chat-completions API", "prompt style native"])
def test_a_policy_that_takes_no_prompt_text_is_refused(condition, tmp_path):
    class Other(format_answers.Answers):
        keeps_prompts = False

    policy = Other({})
    policy.condition = condition
    benchmark = format_answers.Loaded(BfclConfig(categories=("format_sensitivity",), limit_per_category=1))
    with pytest.raises(
        UserError, match=f"has prompts of its own, and a policy under {condition} takes none; set model"
    ):
        evaluate(benchmark, policy, out=tmp_path)
