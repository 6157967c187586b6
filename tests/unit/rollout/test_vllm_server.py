"""The client of a vLLM server against a small server that answers in vLLM's form, and in all the ways that go wrong.

The real server is tested in tests/integration/test_vllm.py.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rest_core.config import VllmServerConfig
from rest_core.errors import UserError
from rest_core.model.parameters import checkpoint_tensors
from rest_core.rollout import vllm_http, vllm_server
from rest_core.rollout.vllm_sampling import Vocabulary
from rest_core.rollout.vllm_server import VllmServerEngine

VOCABULARY = Vocabulary(100, frozenset({1, 2}))
Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], Any]


class Fake:
    """Answers as vLLM 0.32 does; `answers` replaces the answer to a path, `calls` has what was asked."""

    def __init__(self) -> None:
        self.label = "default"
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.answers: dict[str, Answer] = {}

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/version":
            return {"version": "0.32.0"}
        if path == "/weight_info":
            return {"weight_version": self.label}
        if path == "/update_weight_version":
            self.label = body["new_version"]
        if path == "/collective_rpc":
            (folder,) = body["args"]
            assert json.loads((Path(folder) / "config.json").read_text())["hidden_size"] == 16
            self.weights = {k: v for file in Path(folder).glob("*.safetensors") for k, v in load_file(file).items()}
            return {"results": ["1"]}
        if path == "/inference/v1/generate":
            parameters = body["sampling_params"]
            return {"choices": [self.choice(body["token_ids"][0], k) for k in range(parameters["n"])]}
        return {"success": True}

    def choice(self, first: int, index: int, **changes: Any) -> dict[str, Any]:
        """A response that tells which prompt and sample it is of: two ids, the second of which ends it."""
        ids = [first, 1]
        content = [{"token_id": token, "logprob": -0.5 - index, "rank": 1, "top_logprobs": []} for token in ids]
        return {
            "index": index,
            "token_ids": ids,
            "logprobs": {"content": content},
            "finish_reason": "stop",
            "stop_reason": 1,
            "weight_versions": [{"version": self.label, "start": 0, "end": 2}],
            **changes,
        }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(vllm_http, "AGAIN", vllm_http.AGAIN.new(backoff_factor=0.0))
    return Fake()


@pytest.fixture
def url(fake: Fake) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            path = self.path.partition("?")[0]
            fake.calls.append((path, body))
            handler = fake.answers.get(path)
            answer = handler(self, body) if handler is not None else fake.answer(path, body)
            if answer is not None:
                send(self, 200, json.dumps(answer).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


KEY = "a-key-of-more-than-16-characters"


def test_requests_carry_the_key_and_errors_do_not(fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        given.append(handler.headers["Authorization"])
        send(handler, 401, json.dumps({"error": f"Unauthorized: {given[-1]}"}).encode())

    given: list[str | None] = []
    fake.answers["/inference/v1/generate"] = refuse
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "of another vendor")  # which is not for this server
    with pytest.raises(UserError, match=r"answers 401: Unauthorized: Bearer \*\*\*; set VLLM_API_KEY") as error:
        vllm_http.Server(url, 5.0).call("/inference/v1/generate", {})
    assert given == [f"Bearer {KEY}"] and KEY not in str(error.value)
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(UserError, match="401"):
        vllm_http.Server(url, 5.0).call("/inference/v1/generate", {})
    assert given[1] is None


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, *, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def engine(url: str, tiny_model: Any, tmp_path: Path) -> VllmServerEngine:
    config = VllmServerConfig(url=url, folder=str(tmp_path / "weights"), timeout=5)
    made = VllmServerEngine(config, dtype=torch.bfloat16, vocabulary=VOCABULARY)
    made.synchronise(tiny_model, 4)
    return made


def generate(engine: VllmServerEngine, count: int = 3, **options: Any) -> Any:
    prompts = [[10 + n, 7] for n in range(count)]
    return engine.generate(prompts, **{"samples": 2, "max_new_tokens": 8, "seeds": [*range(count)], **options})


def test_responses_come_back_in_the_order_of_the_prompts(engine: VllmServerEngine, fake: Fake) -> None:
    fake.calls.clear()
    done: list[int] = []
    groups = generate(engine, 5, on_progress=done.append)
    assert done == [2] * 5
    for n, group in enumerate(groups):
        for k, rollout in enumerate(group):
            assert rollout.prompt_ids == [10 + n, 7] and rollout.response_ids == [10 + n, 1]
            assert rollout.logps == [-0.5 - k] * 2 and rollout.entropies is None
            assert rollout.finished and rollout.policy_version == 4
    asked = {body["token_ids"][0]: body["sampling_params"] for _, body in fake.calls}
    assert sorted(asked) == [10, 11, 12, 13, 14]
    parameters = asked[10]
    # The policy's own distribution: anything else biases the ratio.
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
    assert parameters | plain == parameters
    assert parameters["presence_penalty"] == parameters["frequency_penalty"] == 0
    assert (parameters["n"], parameters["max_tokens"], parameters["stop_token_ids"]) == (2, 8, [1, 2])
    assert parameters["ignore_eos"] is True and parameters["logprobs"] == 0
    seeds = [asked[first]["seed"] for first in sorted(asked)]
    assert len(set(seeds)) == 5 and all(0 <= seed < 2**62 for seed in seeds)


def test_greedy_needs_no_seeds_and_sampling_does(engine: VllmServerEngine, fake: Fake) -> None:
    fake.calls.clear()
    assert engine.generate([], max_new_tokens=8, temperature=0.0) == []
    engine.generate([[3]], max_new_tokens=8, temperature=0.0)
    ((_, body),) = fake.calls
    assert body["sampling_params"]["temperature"] == 0.0 and body["sampling_params"]["seed"] is None
    with pytest.raises(ValueError, match="one seed a prompt"):
        engine.generate([[3]], max_new_tokens=8)


def test_weights_are_handed_over_before_their_version_is_named(
    engine: VllmServerEngine, fake: Fake, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "SHARD_BYTES", 1000)  # several files
    fake.calls.clear()
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(1.5)
    engine.synchronise(tiny_model, 5)
    steps = ["/pause", "/update_weight_version", "/collective_rpc", "/reset_prefix_cache"]
    assert [path for path, _ in fake.calls] == [*steps, "/update_weight_version", "/resume"]
    labels = [body["new_version"] for path, body in fake.calls if path == "/update_weight_version"]
    assert labels[0] == f"{labels[1]} incomplete" and labels[1].endswith("/5")
    wanted = checkpoint_tensors(tiny_model, torch.bfloat16)
    assert set(fake.weights) == set(wanted)
    assert all(torch.equal(fake.weights[name], wanted[name]) for name in wanted)
    assert not list((tmp_path / "weights").iterdir())
    assert generate(engine)[0][0].policy_version == 5


def answering(status: int, body: bytes) -> Answer:
    return lambda handler, _: send(handler, status, body)


def breaking_off(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    send(handler, 200, b'{"choices"', length=1000)
    handler.close_connection = True


def resetting(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (answering(500, b'{"error": {"message": "CUDA error"}}'), r"/inference/v1/generate answers 500: CUDA error"),
        (answering(400, b'{"detail": "max_model_len is 64"}'), r"answers 400: max_model_len is 64"),
        (answering(404, b""), r"answers 404: nothing"),
        (answering(503, b"starting"), r"answers 503 \(/inference/v1/generate\); look at its log and start it again"),
        (answering(200, b"<html>"), r"answers what is no JSON object: b'<html>'"),
        (answering(200, b"[1]"), r"answers what is no JSON object"),
        (breaking_off, r"broke off its answer: .*IncompleteRead.*run the same command again"),
        (resetting, r"(broke off its answer|cannot be reached).*run the same command again"),
    ],
)
def test_a_server_that_fails(engine: VllmServerEngine, fake: Fake, answer: Answer, problem: str) -> None:
    fake.answers["/inference/v1/generate"] = answer
    with pytest.raises(UserError, match=problem) as error:
        generate(engine, 1)
    assert "\n" not in str(error.value)


def test_a_server_that_is_gone_for_a_moment(engine: VllmServerEngine, fake: Fake) -> None:
    failures = iter([answering(502, b""), breaking_off])

    def recovering(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> Any:
        failure = next(failures, None)
        return failure(handler, body) if failure is not None else fake.answer("/inference/v1/generate", body)

    fake.answers["/inference/v1/generate"] = recovering
    assert generate(engine, 1)[0][0].response_ids == [10, 1]


def test_a_server_that_does_not_answer(url: str, fake: Fake, tiny_model: Any, tmp_path: Path) -> None:
    config = VllmServerConfig(url=url, folder=str(tmp_path), timeout=0.2)
    engine = VllmServerEngine(config, dtype=torch.float32, vocabulary=VOCABULARY)
    engine.synchronise(tiny_model, 0)
    asked = threading.Event()
    fake.answers["/inference/v1/generate"] = lambda handler, body: asked.wait(5) and None
    with pytest.raises(
        UserError, match=r"no answer to /inference/v1/generate within 0\.2 s; raise rl\.engine\.timeout"
    ):
        generate(engine, 1)
    asked.set()


def logps(*values: float | None) -> dict[str, Any]:
    return {"logprobs": {"content": [{"token_id": t, "logprob": v} for t, v in zip([10, 1], values, strict=True)]}}


def response(ids: list[int], label: str = "", **changes: Any) -> dict[str, Any]:
    content = [{"token_id": token, "logprob": -1.0} for token in ids]
    return {
        "token_ids": ids,
        "logprobs": {"content": content},
        "weight_versions": [{"version": label, "start": 0, "end": len(ids)}],
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"logprobs": None}, "an answer without TypeError"),
        ({"token_ids": None}, "an answer without TypeError"),
        ({"weight_versions": None}, "an answer without TypeError"),
        (logps(None, -1.0), "the log-prob of id 10 is not a finite number"),
        (logps(float("nan"), -1.0), "the log-prob of id 10 is not a finite number"),
        (logps(-1.0, float("-inf")), "the log-prob of id 1 is not a finite number"),
        (logps(-1.0, -9999.0), "the log-prob of id 1 is not a finite number"),  # vLLM's word for the same
        ({"logprobs": {"content": [{"token_id": 10, "logprob": -1.0}]}}, r"log-probs of the ids that were sampled"),
        (response([100, 1]), "id 100 is outside the policy's vocabulary of 100"),
        (response([-1, 1]), "id -1 is outside"),
        (response([]), "a response of 0 tokens, asked for 1 to 8"),
        (response([5] * 9), "a response of 9 tokens, asked for 1 to 8"),
        (response([5, 1, 5]), "a response went on after the stop id 1"),
        (response([5, 6]), r"ended after 2 of 8 tokens without a stop id; serve a longer context"),
        ({"weight_versions": [{"version": "x", "start": 0, "end": 1}]}, "a weight version for every token"),
        ({"finish_reason": "abort"}, "a response was ended by 'abort'; does another training use this server"),
        ({"index": 3}, r"responses 0, 3 came, 2 were asked for"),
    ],
)
def test_an_answer_that_must_not_reach_the_gradient(
    engine: VllmServerEngine, fake: Fake, changes: dict[str, Any], problem: str
) -> None:
    def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> Any:
        last = {**fake.choice(10, 1), **changes}
        for span in last["weight_versions"] or []:
            span["version"] = fake.label
        return {"choices": [fake.choice(10, 0), last]}

    fake.answers["/inference/v1/generate"] = answer
    with pytest.raises(UserError, match=problem):
        generate(engine, 1)


def test_tokens_of_other_weights_are_refused(engine: VllmServerEngine, fake: Fake) -> None:
    label = fake.label
    fake.label = "default"  # the server was started anew
    with pytest.raises(UserError, match=f"sampled with weights default, expected {label}; the server was started anew"):
        generate(engine)

    def changed_on_the_way(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> Any:
        spans = [{"version": label, "start": 0, "end": 1}, {"version": "other/5", "start": 1, "end": 2}]
        return {"choices": [fake.choice(10, k, weight_versions=spans) for k in range(2)]}

    fake.answers["/inference/v1/generate"] = changed_on_the_way
    with pytest.raises(UserError, match="is used by another training"):
        generate(engine, 1)


def test_a_failed_hand_over_leaves_no_valid_weights(
    engine: VllmServerEngine, fake: Fake, tiny_model: Any, tmp_path: Path
) -> None:
    fake.answers["/collective_rpc"] = answering(500, b'{"error": {"message": "another architecture is served"}}')
    with pytest.raises(UserError, match="answers 500: another architecture is served"):
        engine.synchronise(tiny_model, 5)
    assert fake.label.endswith("/5 incomplete") and engine.version == 4
    with pytest.raises(UserError, match="expected"):
        generate(engine)
    assert not list((tmp_path / "weights").iterdir())
    del fake.answers["/collective_rpc"]
    fake.answers["/reset_prefix_cache"] = lambda handler, body: {"success": False}
    with pytest.raises(UserError, match="prefix cache could not be emptied"):
        engine.synchronise(tiny_model, 5)


def test_a_folder_that_cannot_be_written_is_named(url: str, tiny_model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = VllmServerConfig(url=url, folder=str(tmp_path / "file"), timeout=5)
    engine = VllmServerEngine(config, dtype=torch.float32, vocabulary=VOCABULARY)
    with pytest.raises(UserError, match=r"rl\.engine\.folder: weights could not be written to .*file"):
        engine.synchronise(tiny_model, 0)


def test_a_server_that_is_not_there_or_is_no_rollout_server(url: str, fake: Fake) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(UserError, match=r"cannot be reached: .*; start it with `rest serve-rollouts`"):
            VllmServerEngine(VllmServerConfig(url=free, timeout=0.1), dtype=torch.float32, vocabulary=VOCABULARY)
    fake.answers["/weight_info"] = answering(404, b'{"detail": "Not Found"}')
    with pytest.raises(UserError, match=r"vLLM 0\.32\.0 does not take weights \(.*404: Not Found\)"):
        VllmServerEngine(VllmServerConfig(url=url, timeout=5), dtype=torch.float32, vocabulary=VOCABULARY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_nccl_needs_a_gpu(url: str, tiny_model: Any) -> None:
    config = VllmServerConfig(url=url, weights="nccl", timeout=5)
    engine = VllmServerEngine(config, dtype=torch.float32, vocabulary=VOCABULARY)
    with pytest.raises(UserError, match=r"rl\.engine\.weights=nccl hands weights over between GPUs, none is here"):
        engine.synchronise(tiny_model, 0)
