"""`rest serve`: a checkpoint as a training leaves it, behind vLLM's server, asked by the real openai client.

The model is scripted by its weights: each token has one successor. What is tested is everything around it: the chat
template, the parsers, the server's streams.
"""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_vllm import ENVIRONMENT, PYTHON, ROOT, end, pytestmark
from tokenizers import AddedToken

from rest_core.config import EvaluationConfig, GenerationConfig, ModelConfig
from rest_core.evaluation.policy import Chat
from rest_core.model.loading import save_policy
from rest_core.records import Message, Tool
from rest_core.stages import policies
from rest_core.styles.create import built_in_style

__all__ = ["pytestmark"]

NAME = "scripted"
KEY = "the-key-of-this-server"
KEYED = {**ENVIRONMENT, "VLLM_API_KEY": KEY}
AREA = Tool(
    "area",
    "The area of a circle.",
    {"type": "object", "properties": {"radius": {"type": "number"}}, "required": ["radius"]},
)
CALLING = [
    "<think> A circle. ",
    "</think>\n<tool",
    '_call>\n{"name": "area", ',
    '"parameters": {"radius": 2}}\n',
    '{"name": "area", "parameters": {"radius": 3}}\n</tool_call>',
]
TELLING = ["<think> Both ", "are known. </think>\n<res", "ponse> 12.57 and", " 28.27 < 30 </resp", "onse>"]
# After the results of tools a prompt ends in another token, from which another response follows.
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{{ ':' if messages[-1]['role'] == 'tool' else '\n' }}{% endif %}"
)
CLIENT = """
import json, sys
from openai import OpenAI
request = json.loads(sys.stdin.read())
client = OpenAI(base_url=sys.argv[1], api_key=sys.argv[2])
answer = client.chat.completions.create(model="scripted", temperature=0, **request)
if not request["stream"]:
    choice = answer.choices[0]
    made = choice.message.model_dump()
    made["finish_reason"], made["pieces"] = choice.finish_reason, 1
else:
    made = {"content": "", "reasoning": "", "tool_calls": [], "finish_reason": None, "pieces": 0}
    for chunk in answer:
        choice = chunk.choices[0]
        delta = choice.delta.model_dump()
        made["pieces"] += 1
        made["content"] += delta.get("content") or ""
        made["reasoning"] += delta.get("reasoning") or ""
        made["tool_calls"] += delta.get("tool_calls") or []
        made["finish_reason"] = choice.finish_reason or made["finish_reason"]
print(json.dumps(made))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    made = copy.deepcopy(tiny_tokenizer)
    made.add_tokens([AddedToken(piece, normalized=False) for piece in (*CALLING, *TELLING)])
    made.chat_template = TEMPLATE
    size = -(-len(made) // 32) * 32
    model = random_model(
        "llama",
        vocab_size=len(made),
        hidden_size=size,
        num_attention_heads=size // 32,
        head_dim=32,
        num_hidden_layers=1,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    after = {}
    for start, pieces in (("\n", CALLING), (":", TELLING)):
        chain = [*made(start, add_special_tokens=False)["input_ids"], *made.convert_tokens_to_ids(pieces)]
        after |= dict(zip(chain, [*chain[1:], made.eos_token_id], strict=True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()  # the layers add nothing: a token's logits hang on that token alone
        model.model.embed_tokens.weight.copy_(torch.eye(len(made), size))
        model.lm_head.weight.zero_()
        for token, successor in after.items():
            model.lm_head.weight[successor, token] = 1.0
    folder = tmp_path_factory.mktemp("serving") / "model"
    save_policy(model, made, folder, dtype=torch.float32, style=built_in_style("compact"))
    return folder


@pytest.fixture(scope="module")
def url(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as a user starts it."""
    log_file = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(checkpoint), "--python", str(PYTHON)]
    command += ["--port", str(port), "--", "--served-model-name", NAME, "--dtype", "float32"]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20)]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=KEYED, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            if process.poll() is not None:
                pytest.fail(log_file.read_text()[-3000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        end(process)


@dataclass
class Asked:
    """What the client got."""

    reasoning: str | None
    content: str | None
    calls: list[tuple[str, dict[str, Any]]]
    finish_reason: str
    pieces: int


def ask(url: str, messages: list[dict[str, Any]], *, stream: bool) -> tuple[Asked, list[dict[str, Any]]]:
    """The answer, and its calls as a later request has them."""
    tool = {"name": AREA.name, "description": AREA.description, "parameters": AREA.parameters}
    request = {"messages": messages, "tools": [{"type": "function", "function": tool}], "stream": stream}
    done = subprocess.run(
        [str(PYTHON), "-c", CLIENT, url, KEY], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    calls = answer["tool_calls"] or []
    made = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    asked = Asked(answer["reasoning"], answer["content"] or None, made, answer["finish_reason"], answer["pieces"])
    return asked, [{key: call[key] for key in ("id", "type", "function")} for call in calls]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_go_in_and_calls_come_out_and_their_results_are_answered(
    url: str, checkpoint: Path, stream: bool
) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "How large are they?"}]
    calling, calls = ask(url, messages, stream=stream)
    assert calling.calls == [("area", {"radius": 2}), ("area", {"radius": 3})]
    assert (calling.reasoning, calling.content, calling.finish_reason) == ("A circle.", None, "tool_calls")
    assert len({call["id"] for call in calls}) == 2
    messages.append({"role": "assistant", "content": None, "tool_calls": calls})
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "12.57"} for call in calls]
    telling, _ = ask(url, messages, stream=stream)
    assert (telling.reasoning, telling.content) == ("Both are known.", "12.57 and 28.27 < 30")
    assert (telling.calls, telling.finish_reason) == ([], "stop")
    if stream:
        assert telling.pieces > 4  # words come as they are said


def test_the_server_asks_for_its_key_and_chat_has_it(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/models", timeout=30)
    command = [sys.executable, "-m", "pipelines.cli", "chat", NAME, "--url", url]
    done = {
        keyed: subprocess.run(
            command, cwd=ROOT, env=environment, input="How large?\n\n", capture_output=True, text=True, check=False
        )
        for keyed, environment in ((True, KEYED), (False, {**ENVIRONMENT, "VLLM_API_KEY": ""}))
    }
    assert done[True].returncode == 0, done[True].stderr
    assert done[False].returncode == 2 and "VLLM_API_KEY" in done[False].stderr
    assert KEY not in "".join(one.stdout + one.stderr for one in done.values())


def test_a_served_answer_is_the_evaluated_one(url: str, checkpoint: Path) -> None:
    model = ModelConfig(source=str(checkpoint), prompt_style="compact", dtype="float32")
    generation = GenerationConfig(max_response_tokens=32)
    local = policies.local("local", checkpoint, model, EvaluationConfig(), generation)
    (answer,) = local.respond([Chat((AREA,), (Message("user", "How large are they?"),))], generation)
    served, _ = ask(url, [{"role": "user", "content": "How large are they?"}], stream=False)
    assert answer.text == "".join(CALLING)
    assert [(call.name, call.arguments) for call in answer.parsed.calls] == served.calls
    assert answer.parsed.think == served.reasoning
