import pytest

from rest_core.config import GenerationConfig
from rest_core.evaluation.local_policy import LocalPolicy
from rest_core.evaluation.policy import Chat
from rest_core.records import Message, Tool, ToolCall
from rest_core.response import parse
from rest_core.styles.create import built_in_style
from rest_core.styles.native import NativeStyle
from rest_core.styles.template_style import TemplateStyle


def chat(text: str) -> Chat:
    messages = (Message("system", "s"), Message("user", text))
    return Chat((), messages, prompt=messages)


def respond(engine, tokenizer, *arguments):
    return LocalPolicy("m", engine, tokenizer, built_in_style("compact")).respond(*arguments)


def test_answers_come_in_order_with_their_exact_text(scripted, tokenizer):
    engine = scripted(lambda prompt, position: f"<response> answer {position} é☃ </response>")
    answers = respond(engine, tokenizer, [chat("one"), chat("two")], GenerationConfig(batch_tokens=1234))
    assert [a.text for a in answers] == [f"<response> answer {n} é☃ </response>" for n in (0, 1)]
    assert engine.calls == [{"samples": 1, "max_new_tokens": 1024, "temperature": 0.0, "batch_tokens": 1234}]
    assert answers[0].response_tokens == len(answers[0].text.encode()) + 1  # a byte a token, and the end
    assert answers[0].finished and answers[0].skipped is None


def test_the_chat_template_is_applied_once(scripted, tokenizer):
    engine = scripted(lambda prompt, position: "")
    answer = respond(engine, tokenizer, [chat("hello")], GenerationConfig())[0]
    assert engine.prompts == ["<|system|>s<|end|><|user|>hello<|end|><|assistant|>"]
    assert answer.prompt_tokens == len("<|system|>s<|user|>hello<|assistant|>") + 2


def test_a_prompt_over_the_limit_is_skipped_not_cut(scripted, tokenizer):
    engine = scripted(lambda prompt, position: prompt.split("<|user|>")[1][0])
    seen = []
    chats = [chat("a"), chat("b" * 500), chat("c"), chat("d" * 500)]
    config = GenerationConfig(max_prompt_tokens=100)
    answers = respond(engine, tokenizer, chats, config, lambda done, total: seen.append((done, total)))
    assert [a.text for a in answers] == ["a", "", "c", ""]
    length = answers[1].prompt_tokens
    assert length > 500
    assert answers[1].skipped == f"prompt of {length} tokens is over the limit of 100"
    assert not answers[1].finished
    assert all("b" * 100 not in prompt for prompt in engine.prompts)
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_a_prompt_that_leaves_no_room_for_the_longest_response_is_skipped(scripted, tokenizer):
    engine = scripted(lambda prompt, position: "yes")
    policy = LocalPolicy("m", engine, tokenizer, built_in_style("compact"), context=160)
    config = GenerationConfig(max_prompt_tokens=1000, max_response_tokens=100)
    short, long = policy.respond([chat("a"), chat("b" * 100)], config)
    assert (short.text, short.skipped, long.text) == ("yes", None, "")
    assert long.skipped == (
        f"prompt of {long.prompt_tokens} tokens is over the limit of 60 (the model's 160 without 100 for the response)"
    )


def test_nothing_is_generated_when_no_prompt_fits(scripted, tokenizer):
    engine = scripted(lambda prompt, position: pytest.fail("asked"))
    answers = respond(engine, tokenizer, [chat("x" * 500)], GenerationConfig(max_prompt_tokens=100))
    assert answers[0].skipped is not None
    assert engine.calls == []


def test_a_response_cut_at_the_length_limit_says_so(scripted, tokenizer):
    engine = scripted(lambda prompt, position: "0123456789")
    answer = respond(engine, tokenizer, [chat("x")], GenerationConfig(max_response_tokens=8))[0]
    assert answer.text == "01234567"
    assert not answer.finished


def test_answers_begin_where_the_prompt_began_them(scripted, tokenizer, monkeypatch):
    template = tokenizer.chat_template.replace("<|assistant|>", "<|assistant|><think>\n")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    engine = scripted(lambda prompt, position: "so </think><response> yes </response>")
    answer = respond(engine, tokenizer, [chat("one")], GenerationConfig())[0]
    assert engine.prompts[0].endswith("<|assistant|><think>\n")
    assert answer.text == "<think>\nso </think><response> yes </response>" and parse(answer.text).well_formed
    assert answer.response_tokens == len(answer.text) - len("<think>\n") + 1  # a byte a token, and the end


def test_a_native_style_puts_tools_into_the_chat_template_and_reads_its_calls(scripted, tokenizer, monkeypatch):
    template = tokenizer.chat_template.replace("{% for m", "{{ tools | tojson }}<tool_call>{% for m", 1)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    engine = scripted(lambda prompt, position: '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>')
    tool = Tool("f", "Does.", {"type": "object", "properties": {"x": {"type": "integer"}}})
    policy = LocalPolicy("m", engine, tokenizer, NativeStyle(tokenizer))
    asked = Chat((tool,), (Message("user", "u"),), prompt=(Message("user", "in the benchmark's own words"),))
    (answer,) = policy.respond([asked], GenerationConfig())
    assert '"description": "Does."' in engine.prompts[0] and engine.prompts[0].endswith("<|user|>u<|end|><|assistant|>")
    assert answer.parsed.calls == (ToolCall("f", {"x": 1}),) and answer.parsed.well_formed
    assert policy.native_tools and policy.condition == "prompt style native, tool parser hermes"


def test_a_template_of_the_users_own_replaces_a_benchmarks_prompt(scripted, tokenizer, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nmessages: [{role: user, content: 'Q: {{ turns[-1].content }}'}]\nformat: hermes\n")
    engine = scripted(lambda prompt, position: '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    policy = LocalPolicy("m", engine, tokenizer, TemplateStyle(path))
    asked = Chat((), (Message("user", "u"),), prompt=(Message("user", "in the benchmark's own words"),))
    (answer,) = policy.respond([asked], GenerationConfig())
    assert engine.prompts[0].endswith("<|user|>Q: u<|end|><|assistant|>")
    assert answer.parsed.calls == (ToolCall("f", {}),)
    assert not policy.native_tools and not policy.keeps_prompts


def test_an_empty_think_block_in_the_prompt_is_no_part_of_an_answer(scripted, tokenizer, monkeypatch):
    template = tokenizer.chat_template.replace("<|assistant|>", "<|assistant|><think>\n\n</think>\n\n")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    engine = scripted(lambda prompt, position: "<response> yes </response>")
    assert respond(engine, tokenizer, [chat("one")], GenerationConfig())[0].text == "<response> yes </response>"


def test_an_engine_that_keeps_prompts_says_how_many_go_together(scripted, tokenizer):
    policy = LocalPolicy("m", scripted(lambda prompt, position: ""), tokenizer, built_in_style("compact"))
    chats, config = [chat(letter * 256) for letter in "abcd"], GenerationConfig(max_response_tokens=64)
    assert policy.together(chats, config) == 4  # this engine keeps nothing
    length = len(policy._encode(chats[0])) + 64
    for kept, count in ((length, 1), (2 * length, 2), (4 * length, 4), (0, 1)):
        policy.engine.kept_tokens = kept
        assert policy.together(iter(chats), config) == count
