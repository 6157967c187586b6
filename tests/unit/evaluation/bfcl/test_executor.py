"""The process that executes and judges: what it evaluates, and how it ends."""

import importlib.util
import time
from pathlib import Path

import multi_turn_gold
import pytest

from rest_core.environments.environment import EnvironmentFailed, Verdict
from rest_core.evaluation.bfcl.executor import Executor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")

FILES = "multi_turn_base_0"  # a dialogue with GorillaFileSystem, whose directory has "document" and "archive"
MATHS = "multi_turn_base_57"  # one with MathAPI (and VehicleControlAPI)


@pytest.fixture(scope="module")
def executor():
    made = Executor()
    yield made
    made.close()


def one(executor, text, id_=FILES):
    (result,) = executor.execute(id_, [[text]])
    return result


def test_calls_change_the_state_of_their_dialogue(executor):
    steps = [["cd('document')"], ["mkdir(dir_name='new')", "ls()"]]
    listed = '{"current_directory_content": ["final_report.pdf", "previous_report.pdf", "new"]}'
    assert executor.execute(FILES, steps) == ["None", listed]
    assert one(executor, "ls()") == '{"current_directory_content": ["document", "archive"]}'  # fresh state


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("frobnicate(x=1)", "name 'frobnicate' is not defined"),
        ("open('f', 'w')", "name 'open' is not defined"),
        ("__import__('os')", "name '__import__' is not defined"),
        ("os.system('true')", "name 'os' is not defined"),
        ("globals()", "name 'globals' is not defined"),
        ("class_instance.ls()", "name 'class_instance' is not defined"),
        ("ls(a=True", "'(' was never closed (<string>, line 1)"),
        ("ls(a=1, a=2)", "keyword argument repeated: a (<string>, line 1)"),
        ("ls(a=open)", "name 'open' is not defined"),
        ("GorillaFileSystem.ls()", "name 'GorillaFileSystem' is not defined"),
        ("ls(a=(lambda: 1)())", "Lambda is refused as the function of a call"),
        ("ls(a=1 + 1)", "BinOp is refused: an argument is a literal or a call"),
        ("ls(a=f'{1}')", "JoinedStr is refused: an argument is a literal or a call"),
        ("ls(a=[x for x in (1,)])", "ListComp is refused: an argument is a literal or a call"),
        ("ls(**{'a': 1})", "** is refused"),
        ("ls(*[1])", "Starred is refused: an argument is a literal or a call"),
        ("ls(a=ls.__self__)", "Attribute is refused: an argument is a literal or a call"),
        ("ls() or pwd()", "BoolOp is refused: an argument is a literal or a call"),
        ("ls().clear()", "Call is refused as the function of a call"),
        ("kill(pid=1)", "Function call kill is not allowed."),
    ],
)
def test_only_calls_of_the_dialogues_functions_are_evaluated(text, error, executor):
    assert one(executor, text) == f"Error during execution: {error}"


def test_arguments_are_literals_or_calls(executor):
    assert one(executor, " mean(numbers=[1, -2.5, +4])", MATHS) == '{"result": 0.8333333333333334}'
    assert one(executor, "mean((1, 2))", MATHS) == '{"result": 1.5}'
    assert one(executor, "mean(add(1, 2))", MATHS) == '{"error": "All elements in the list must be numbers"}'


def test_instances_cannot_be_reached_by_their_names(executor):
    instance = "Qwen_Qwen3_1_7B_FC_multi_turn_base_0_GorillaFileSystem_instance"
    for text in (f"{instance}._load_scenario(scenario=dict())", f"{instance}.root()", f"ls(a={instance})"):
        assert "Error during execution" in one(executor, text)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system has no /proc")
def test_the_process_has_an_empty_directory_and_no_secrets(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    made = Executor()
    try:
        one(made, "ls()")
        process = Path("/proc", str(made._process.pid))
        assert list((process / "cwd").iterdir()) == []
        variables = (process / "environ").read_bytes()
        assert b"TZ=UTC" in variables and b"OPENAI_API_KEY" not in variables
    finally:
        made.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("power(base=10, exponent=10000000000)", "more than 2 s"),
        ("square_root(number=2, precision=100000000)", "more than 2 s"),
        ("square_root(number=2, precision=999999999999999999)", "too much memory"),
        ("logarithm(value=2, base=3, precision=100000000)", "more than 2 s"),
    ],
)
def test_a_call_without_end_costs_its_dialogue_and_nothing_else(text, problem):
    made = Executor(seconds=2)
    try:
        one(made, "ls()")
        begun = time.monotonic()
        with pytest.raises(EnvironmentFailed, match=problem):
            one(made, text, MATHS)
        assert time.monotonic() - begun < 8 and made.restarts == 1
        assert one(made, "add(a=1, b=2)", MATHS) == '{"result": 3}'  # in a new process
    finally:
        made.close()


def test_verdicts_are_given_on_fresh_state(executor):
    gold = [[[call] for call in turn] for turn in multi_turn_gold.gold_texts("multi_turn_base")[FILES]]
    wrong = [[["mkdir('new')"], *gold[0]], *gold[1:]]
    for _ in range(2):
        assert executor.judge(FILES, wrong).error_type == "multi_turn:instance_state_mismatch"
        assert executor.judge(FILES, gold) == Verdict(True)
    assert executor.judge(FILES, gold[:3]).error_type == "multi_turn:force_terminated"
    assert executor.judge(FILES, [[], *gold[1:]]).error_type == "multi_turn:empty_turn_model_response"
    assert executor.judge(FILES, [*gold[:3], [["ls()"]]]).error_type == "multi_turn:instance_state_mismatch"


def test_a_directory_copied_into_itself_is_a_wrong_answer(executor):
    calls = ["mkdir('a')", "cp('a', 'a')", "cd('a')", "find('.', 'a')", "du()"]
    *_, searched, _ = executor.execute(FILES, [calls])
    assert searched.startswith("Error during execution: maximum recursion depth exceeded")
    assert executor.judge(FILES, [[calls], [], [], []]).error_type == "multi_turn:instance_state_mismatch"
    assert executor.restarts == 0


def test_a_file_that_is_too_long_to_show_costs_its_dialogue(executor):
    with pytest.raises(EnvironmentFailed, match="too much memory"):
        executor.execute(FILES, [["touch('long')", f"echo('{'x' * 2_000_000}', 'long')", "cat('long')"]])


def test_a_judgement_that_ends_the_process_is_a_wrong_answer():
    made = Executor(seconds=1)
    try:
        gold = multi_turn_gold.gold_texts("multi_turn_base")[MATHS]
        verdict = made.judge(MATHS, [[["power(10, 10000000000)"]], *([] for _ in gold[1:])])
        assert verdict == Verdict(False, "checker_error:EnvironmentFailed", "the calls took more than 1 s")
    finally:
        made.close()
