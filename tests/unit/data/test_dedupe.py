from __future__ import annotations

from rest_core.data.dedupe import EXACT, NEAR, EvaluationOverlap, Traits, duplicates, traits
from rest_core.records import Message, Sample, Tool, ToolCall
from rest_core.response import parse
from rest_core.styles.create import built_in_style

LONG = "Please find me a flight from Oslo to Rome on the third of May, in the morning, with one bag, by the window,"


def sample(
    question: str, city: object = "Oslo", *, tool: str = "weather", style: str = "compact", think: str | None = None
) -> Sample:
    tools = (Tool(tool, "", {"type": "object", "properties": {"city": {}}, "required": []}),)
    history = [Message("user", turn) for turn in question.split("|")]
    reference = built_in_style(style).assistant_turn([ToolCall(tool, {"city": city})], None, think).content
    return Sample("x", "x", built_in_style(style).render(tools, history), tools, reference)


def traits_of(one: Sample) -> Traits:
    return traits(one, parse(one.reference))


def found(*samples: Sample, threshold: float = 0.9) -> dict[int, str]:
    return duplicates([traits_of(s) for s in samples], threshold)


def test_case_blanks_and_thoughts_make_no_difference():
    assert found(sample("How warm is Oslo?"), sample("how warm  is\nOslo", think="Other words.")) == {1: EXACT}


def test_another_answer_or_other_tools_make_another_sample():
    assert found(sample("How warm is it?"), sample("How warm is it?", "Rome"), threshold=1) == {}
    assert found(sample("How warm is it?"), sample("How warm is it?", tool="climate"), threshold=1) == {}
    assert found(sample("Shift by five", -5), sample("Shift by five", 5), threshold=1) == {}


def test_near_needs_question_and_answer_alike():
    almost = [sample(f"{LONG} thanks a lot"), sample(f"{LONG} thanks a bunch")]
    assert found(*almost) == {1: NEAR}
    assert found(*almost, threshold=1) == {}
    assert found(almost[0], sample(f"{LONG} thanks a bunch", "Rome")) == {}


def test_only_kept_samples_are_compared_with():
    a, b = sample(f"{LONG} thanks a lot"), sample(f"{LONG} thanks a bunch")
    assert found(a, a, b, sample("Hello?")) == {1: EXACT, 2: NEAR}


def test_evaluation_question_is_found_in_any_turn_style_and_spelling():
    overlap = EvaluationOverlap({"bfcl/simple": ["What is 2 plus 2?"], "bank": [f"{LONG} thanks a lot"]}, 0.9)
    for style in ("compact", "toolrl"):
        assert overlap.find(traits_of(sample("what is 2 PLUS 2", style=style))) == "bfcl/simple"
        assert overlap.find(traits_of(sample("Hello!|What is 2 plus 2?", style=style))) == "bfcl/simple"
        assert overlap.find(traits_of(sample(f"{LONG} thanks a bunch", style=style))) == "bank"
        assert overlap.find(traits_of(sample("What is 2 plus 3?", style=style))) is None


def test_question_over_several_turns_is_found():
    overlap = EvaluationOverlap({"bank": ["Book a room. For two."]}, 0.9)
    assert overlap.find(traits_of(sample("Book a room.|For two."))) == "bank"
