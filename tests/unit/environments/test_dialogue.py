"""The dialogue loop, on an environment that is not BFCL's."""

import pytest

from rest_core.config import GenerationConfig
from rest_core.environments.dialogue import run_dialogues
from rest_core.environments.environment import EnvironmentFailed, Verdict
from rest_core.records import Message, ToolCall
from rest_core.response import render

LIMITS = GenerationConfig(max_prompt_tokens=10_000)
TURNS = ["Put 2 lamps aside for Ada.", "And a chair for Bob. If there is none, give Ada's lamps back."]
WANTED = {"stock": {"lamp": 3, "chair": 0}, "reserved": {}}
STOCK = {"lamp": 3, "chair": 0}


def call(name, **arguments):
    return render(think="t", calls=[ToolCall(name, arguments)], response=None)


def done(text="done"):
    return render(think="t", calls=[], response=text)


def solve(chat):
    """Reads the last message alone, as a model would read the dialogue."""
    last = chat.history[-1]
    if last.role == "user":
        return (
            call("reserve", item="lamp", quantity=2, customer="Ada")
            if "lamps aside" in last.content
            else call("reserve", item="chair", quantity=1, customer="Bob")
        )
    return call("release", customer="Ada") if "only 0 free" in last.content else done()


def test_an_environment_of_ones_own_runs_through_the_loop(scripted, warehouse):
    environment = warehouse.Warehouse(STOCK, TURNS, WANTED)
    (dialogue,) = run_dialogues([environment], scripted(solve), LIMITS, max_steps=10)
    assert dialogue.stop == "completed" and environment.verdict(dialogue.stop) == Verdict(True)
    assert [[len(step.calls) for step in turn] for turn in dialogue.turns] == [[1, 0], [1, 1, 0]]
    assert [message.role for message in dialogue.history] == [
        *("user", "assistant", "tool", "assistant"),
        *("user", "assistant", "tool", "assistant", "tool", "assistant"),
    ]
    assert dialogue.history[2] == Message("tool", '{"reserved": 2}')
    last = dialogue.steps[-1]
    assert last.chat.history == tuple(dialogue.history[:-1]) and last.answer.text == done() and last.results == ()


@pytest.mark.parametrize(
    "said",
    [
        done(),
        "no tags at all",
        call("release", customer="Ada"),
        call("destroy", everything=True),
        call("reserve", item=["lamp"], quantity=2, customer="Ada"),
        call("reserve", item="lamp", quantity=True, customer="Ada"),
        call("reserve", item="lamp", quantity=-2, customer="Ada"),
        call("_reserve", item="lamp", quantity=2, customer="Ada"),
    ],
)
def test_it_can_fail_and_takes_anything_for_a_call(said, scripted, warehouse):
    environment = warehouse.Warehouse(
        STOCK, TURNS[:1], {"stock": {"lamp": 1, "chair": 0}, "reserved": {"Ada": {"lamp": 2}}}
    )
    policy = scripted(lambda chat: said if chat.history[-1].role == "user" else done())
    (dialogue,) = run_dialogues([environment], policy, LIMITS, max_steps=10)
    assert environment.verdict(dialogue.stop).error_type == "wrong_state"
    assert environment.stock == STOCK


def test_all_live_dialogues_advance_in_one_call_of_the_policy(scripted, warehouse):
    policy, seen = scripted(solve), []
    made = [warehouse.Warehouse(STOCK, TURNS[:length], WANTED) for length in (1, 2, 0, 2)]
    dialogues = run_dialogues(made, policy, LIMITS, max_steps=10, on_progress=lambda *now: seen.append(now))
    assert [len(wave) for wave in policy.waves] == [3, 3, 2, 2, 2]
    assert [len(dialogue.steps) for dialogue in dialogues] == [2, 5, 0, 5]
    assert [dialogue.environment for dialogue in dialogues] == made
    assert seen[:4] == [(1, 4, 1), (1, 4, 2), (1, 4, 3), (1, 4, 4)] and seen[-1] == (4, 4, 12)


def test_dialogues_whose_prompts_are_not_kept_wait_for_their_turn(scripted, warehouse):
    class KeepsTwo(type(scripted(solve))):
        def together(self, chats, config):
            return min(2, sum(1 for _ in chats))

    policy, alone = KeepsTwo(solve), scripted(solve)
    lengths = (1, 2, 0, 2, 1)
    made, other = ([warehouse.Warehouse(STOCK, TURNS[:n], WANTED) for n in lengths] for _ in range(2))
    seen = []
    dialogues = run_dialogues(made, policy, LIMITS, max_steps=10, on_progress=lambda *now: seen.append(now))
    assert max(map(len, policy.waves)) == 2 and len(policy.waves) > len(made)
    assert seen[-1] == (5, 5, 14)
    expected = run_dialogues(other, alone, LIMITS, max_steps=10)
    assert [dialogue.history for dialogue in dialogues] == [dialogue.history for dialogue in expected]
    assert [dialogue.stop for dialogue in dialogues] == ["completed"] * 5


def test_a_turn_without_end_is_stopped_after_its_last_step_is_executed(scripted, warehouse):
    environment = warehouse.Warehouse({"lamp": 9}, ["Reserve them."], {})
    policy = scripted(lambda chat: call("reserve", item="lamp", quantity=1, customer="Ada"))
    (dialogue,) = run_dialogues([environment], policy, LIMITS, max_steps=4)
    assert dialogue.stop == "step_limit" and dialogue.error == "4 steps in one turn"
    assert environment.stock == {"lamp": 5} and len(dialogue.steps) == 4


def test_a_prompt_over_the_limit_ends_its_dialogue_alone(scripted, warehouse):
    made = [warehouse.Warehouse(STOCK, [text], {}) for text in ("short", "long" * 100)]
    dialogues = run_dialogues(made, scripted(lambda chat: done()), GenerationConfig(max_prompt_tokens=50), max_steps=9)
    assert [dialogue.stop for dialogue in dialogues] == ["completed", "prompt_too_long"]
    assert dialogues[1].error == "prompt of 400 tokens" and len(dialogues[1].history) == 1


def test_an_environment_that_fails_ends_its_dialogue_alone(scripted, warehouse):
    class Broken(warehouse.Warehouse):
        def step(self, calls):
            raise EnvironmentFailed("no disk")

    made = [Broken(STOCK, TURNS, WANTED), warehouse.Warehouse(STOCK, TURNS, WANTED)]
    dialogues = run_dialogues(made, scripted(solve), LIMITS, max_steps=9)
    assert [dialogue.stop for dialogue in dialogues] == ["failed", "completed"]
    assert dialogues[0].error == "no disk" and dialogues[0].steps[0].calls and not dialogues[0].steps[0].results


def test_the_next_turn_learns_what_ended_the_last_and_may_fail(scripted, warehouse):
    said = []

    class Listening(warehouse.Warehouse):
        def user_turn(self, text):
            said.append(text)
            if len(said) == 3:
                raise EnvironmentFailed("no user")
            return super().user_turn(text)

    (dialogue,) = run_dialogues(
        [Listening(STOCK, TURNS[:1] * 3, {})], scripted(lambda chat: done()), LIMITS, max_steps=9
    )
    assert said == ["", *[step.answer.text for step in dialogue.steps]] and said[1]
    assert (dialogue.stop, dialogue.error, len(dialogue.turns)) == ("failed", "no user", 2)


def test_seeds_differ_by_dialogue_and_step_and_not_by_the_others(scripted, warehouse):
    def seeds(count):
        made = [warehouse.Warehouse(STOCK, TURNS, WANTED) for _ in range(count)]
        dialogues = run_dialogues(made, scripted(solve), LIMITS, max_steps=9, seeds=range(count))
        return [[step.chat.seed for step in dialogue.steps] for dialogue in dialogues]

    first, second = seeds(2)
    assert len({*first, *second}) == 10 and seeds(1) == [first]
