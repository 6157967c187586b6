"""The real vLLM as rollout engine, as a server and inside the trainer's process, held against our own forward.

Needs an environment with vLLM: `make vllm` makes .venv-vllm, where it is not installed in this one.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rest_core.config import LoraConfig, ModelConfig, RlConfig, VllmServerConfig
from rest_core.errors import UserError
from rest_core.model.loading import with_lora
from rest_core.records import Rollout
from rest_core.response import parse
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.rollout.vllm_sampling import Vocabulary
from rest_core.rollout.vllm_server import VllmServerEngine
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task

ROOT = Path(__file__).parents[2]
OWN = ROOT / ".venv-vllm" / "bin" / "python"
PYTHON = OWN if OWN.is_file() else Path(sys.executable)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not OWN.is_file() and importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed; `make vllm` makes an environment with it for CPU",
    ),
]

STOP = frozenset(range(12))
PROMPTS = [[15, 16, 17], [21, 22, 23, 24, 25, 26], [31], [*range(40, 100)], [*range(40, 100)]]
SEEDS = [101, 102, 103, 104, 105]
CONTEXT = 160  # tokens
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any], tiny_tokenizer: Any
) -> tuple[Path, Any]:
    """A random Llama with heads of a size that vLLM computes on CPU, its head tied to the embedding."""
    model = random_model("llama", hidden_size=64, head_dim=32, tie_word_embeddings=True, spread=0.1)
    folder = tmp_path_factory.mktemp("vllm") / "model"
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder, model


def end(server: subprocess.Popen[bytes]) -> None:
    """End a server that has a session of its own, and its workers."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def server(checkpoint: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServerConfig]:
    """A server as a user starts it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve-rollouts", "--policy", str(checkpoint[0])]
    command += ["--python", str(PYTHON), "--port", str(port), "--set", "model.dtype=float32", "--"]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--max-model-len", str(CONTEXT)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    config = VllmServerConfig(url=f"http://127.0.0.1:{port}", folder=str(folder / "weights"), timeout=300)
    try:
        try:
            VllmServerEngine(config, dtype=torch.float32, vocabulary=Vocabulary(1, STOP))
        except UserError as error:
            pytest.fail(f"{error}\n{(folder / 'log').read_text()[-3000:]}")
        yield config
    finally:
        end(process)
    assert not any((folder / "weights").iterdir())  # nothing stays behind of what was handed over


@pytest.fixture
def engine(server: VllmServerConfig, checkpoint: tuple[Path, Any]) -> VllmServerEngine:
    vocabulary = Vocabulary(checkpoint[1].config.vocab_size, STOP)
    made = VllmServerEngine(server, dtype=torch.float32, vocabulary=vocabulary)
    made.synchronise(checkpoint[1], 0)
    return made


@pytest.fixture
def model(checkpoint: tuple[Path, Any]) -> Any:
    return copy.deepcopy(checkpoint[1])


def sampled(engine: Any, prompts: Sequence[list[int]] = PROMPTS, **options: Any) -> list[list[Rollout]]:
    arguments = {"samples": 3, "max_new_tokens": 16, "seeds": SEEDS[: len(prompts)], **options}
    made: list[list[Rollout]] = engine.generate(prompts, **arguments)
    return made


@torch.no_grad()
def gaps(model: Any, groups: list[list[Rollout]]) -> Tensor:
    """Engine's log-probs less those of a forward of `model` over prompt and response, all tokens in one row."""
    out = []
    for rollout in (rollout for group in groups for rollout in group):
        row = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        logps = model(input_ids=row).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
        own = logps.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        out.append(torch.tensor(rollout.logps) - own)
    return torch.cat(out)


@torch.no_grad()
def moved(model: Any, seed: int) -> Any:
    """Every weight of the model changed, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def test_ids_and_log_probs_are_the_policys(engine: VllmServerEngine, model: Any) -> None:
    groups = sampled(engine)
    assert gaps(model, groups).abs().max() < 1e-4
    assert [len(group) for group in groups] == [3] * len(PROMPTS)
    every = [rollout for group in groups for rollout in group]
    assert {rollout.finished for rollout in every} == {True, False}  # both ends occur
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            assert rollout.prompt_ids == prompt and rollout.policy_version == 0 and rollout.entropies is None
            assert set(rollout.response_ids[:-1]).isdisjoint(STOP)  # a stop id ends the response, and is part of it
            assert rollout.finished == (rollout.response_ids[-1] in STOP)
            assert rollout.finished or len(rollout.response_ids) == 16


def test_a_response_hangs_on_its_seed_alone(engine: VllmServerEngine) -> None:
    groups, done = sampled(engine), []
    again = sampled(engine, on_progress=done.append)
    assert sum(done) == 3 * len(PROMPTS)
    assert [[r.response_ids for r in group] for group in again] == [[r.response_ids for r in g] for g in groups]
    (alone,) = sampled(engine, [PROMPTS[3]], seeds=[SEEDS[3]])
    assert [r.response_ids for r in alone] == [r.response_ids for r in groups[3]]
    other = sampled(engine, seeds=[seed + 1000 for seed in SEEDS])
    every = [tuple(r.response_ids) for group in [*groups, *other] for r in group if len(r.response_ids) > 2]
    assert len(every) > 20
    assert len(set(every)) == len(every)  # also between the samples of a group, and of equal prompts


def test_the_most_likely_tokens_are_those_of_the_other_engine(engine: VllmServerEngine, model: Any) -> None:
    ours = TransformersEngine(model, stop_ids=STOP, pad_id=264)
    wanted = ours.generate(PROMPTS, max_new_tokens=16, temperature=0.0)
    assert [[r.response_ids for r in group] for group in sampled(engine, samples=1, temperature=0.0)] == [
        [r.response_ids for r in group] for group in wanted
    ]


def test_each_update_reaches_the_server(engine: VllmServerEngine, model: Any) -> None:
    before = sampled(engine)
    for version in (1, 2):
        old = copy.deepcopy(model)
        engine.synchronise(moved(model, version), version)
        groups = sampled(engine)
        assert gaps(model, groups).abs().max() < 1e-4
        assert gaps(old, groups).abs().max() > 0.05
        assert {rollout.policy_version for group in groups for rollout in group} == {version}
    assert [[r.response_ids for r in g] for g in groups] != [[r.response_ids for r in g] for g in before]


def test_adapters_are_merged_into_what_is_sent(engine: VllmServerEngine, model: Any) -> None:
    adapted = with_lora(model, LoraConfig(r=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    engine.synchronise(adapted, 1)
    groups = sampled(engine)
    assert gaps(adapted, groups).abs().max() < 1e-4
    with adapted.disable_adapter():
        assert gaps(adapted, groups).abs().max() > 0.05


def test_a_server_belongs_to_one_training(
    engine: VllmServerEngine, server: VllmServerConfig, model: Any, checkpoint: tuple[Path, Any]
) -> None:
    other = VllmServerEngine(server, dtype=torch.float32, vocabulary=engine.vocabulary)
    other.synchronise(moved(model, 3), 0)
    with pytest.raises(UserError, match="is used by another training"):
        sampled(engine)
    engine.synchronise(checkpoint[1], 0)
    assert gaps(checkpoint[1], sampled(engine)).abs().max() < 1e-4


def test_another_architecture_is_refused_and_the_server_lives_on(
    engine: VllmServerEngine, random_model: Callable[..., Any], checkpoint: tuple[Path, Any]
) -> None:
    settings = {"hidden_size": 64, "head_dim": 32, "tie_word_embeddings": True}
    for changes in ({"num_hidden_layers": 1}, {"intermediate_size": 48}):
        with pytest.raises(UserError, match=f"another architecture is served .{next(iter(changes))} "):
            engine.synchronise(random_model("llama", **settings, **changes), 1)
        # What has arrived so far must not be taken for the weights of any version.
        assert "incomplete" in engine.server.call("/weight_info")["weight_version"]
    engine.synchronise(checkpoint[1], 2)
    assert gaps(checkpoint[1], sampled(engine)).abs().max() < 1e-4


def test_a_context_that_is_too_short_is_named(engine: VllmServerEngine) -> None:
    with pytest.raises(UserError, match=r"max-model-len|maximum context|max_model_len"):
        sampled(engine, [[*range(20, 20 + CONTEXT - 4)]], seeds=[1])


def training(config: RlConfig, source: Path, folder: Path) -> tuple[RlTrainer, dict[int, dict[str, float]]]:
    """A trainer that has trained, and what it has reported by step."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seen: dict[int, dict[str, float]] = {}
    trainer = RlTrainer(
        AutoModelForCausalLM.from_pretrained(source),
        AutoTokenizer.from_pretrained(source),
        [Task(f"test/{n}", [*range(20, 21 + 12 * n)], parse("words")) for n in range(6)],
        config,
        ModelConfig(dtype="float32"),
        folder=folder,
        fingerprint="test",
        observer=Observer(lambda metrics, step: seen.__setitem__(step, metrics), lambda rows, name: None),
    )
    trainer.train()
    return trainer, seen


def settings(**changes: Any) -> RlConfig:
    defaults: dict[str, Any] = {
        "steps": 2,
        "prompts_per_step": 4,
        "group_size": 4,
        "max_response_tokens": 16,
        "learning_rate": 0.003,
        "reward": "rest",
        "reward_probe_prompts": 2,
    }
    return RlConfig(**{**defaults, **changes})


def check_training(trainer: RlTrainer, seen: dict[int, dict[str, float]]) -> None:
    assert sorted(seen) == [1, 2] and trainer.update.version >= 1
    for metrics in seen.values():
        assert metrics["mismatch/ratio_mean"] == pytest.approx(1, abs=1e-3)
        assert metrics["mismatch/ratio/max"] == pytest.approx(1, abs=1e-2)
        assert metrics["tokens/generated"] > 0
    # After the last update the engine has the weights that the trainer ends with.
    groups = trainer.engine.generate(PROMPTS, samples=2, max_new_tokens=8, seeds=SEEDS)
    assert gaps(trainer.model.eval(), groups).abs().max() < 1e-3
    assert groups[0][0].policy_version == trainer.update.version


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("changes", [{}, {"lora": LoraConfig(r=4), "learning_rate": 0.02}], ids=["weights", "adapters"])
def test_a_training_with_the_server(
    server: VllmServerConfig, checkpoint: tuple[Path, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    check_training(*training(settings(engine=server, **changes), checkpoint[0], tmp_path))


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_training_goes_on_with_another_engine(
    server: VllmServerConfig, checkpoint: tuple[Path, Any], tmp_path: Path
) -> None:
    _, made = training(settings(), checkpoint[0], tmp_path)
    trainer, seen = training(settings(engine=server), checkpoint[0], tmp_path)
    assert seen == made  # reported again, seconds and all: both steps have been made
    groups = trainer.engine.generate(PROMPTS, samples=1, max_new_tokens=8, seeds=SEEDS)
    assert gaps(trainer.model.eval(), groups).abs().max() < 1e-3


TWO_PROCESSES = """
import json, sys
from pathlib import Path
sys.path.insert(0, str(Path("tests/integration").resolve()))
import torch
import test_vllm as t
source, out, engine = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
trainer, seen = t.training(t.settings(engine=engine, mini_batch_prompts=2), source, out / "checkpoints")
if trainer.accelerator.is_main_process:
    weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    torch.save({"weights": weights, "tokens": [m["tokens/generated"] for m in seen.values()]}, out / "result.pt")
"""


def test_the_processes_of_a_training_share_the_server(
    server: VllmServerConfig, checkpoint: tuple[Path, Any], tmp_path: Path
) -> None:
    results = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        (folder / "train.py").write_text(TWO_PROCESSES)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), str(folder / "train.py")]
        done = subprocess.run(
            [*command, str(checkpoint[0]), str(folder), server.model_dump_json()],
            cwd=ROOT,
            env={**ENVIRONMENT, "ACCELERATE_USE_CPU": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(folder / "result.pt"))
    one, two = results
    assert one["tokens"] == two["tokens"]  # the same responses
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-3, atol=1e-4)


COLOCATED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path("tests/integration").resolve()))
if __name__ == "__main__":
    import test_vllm as t
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    trainer, seen = t.training(t.settings(engine={"engine": "vllm"}), source, folder)
    t.check_training(trainer, seen)
    t.check_colocated(trainer)
    print("colocated: done")
"""


def check_colocated(trainer: RlTrainer) -> None:
    """What is tested of the server above, on the engine in the same process."""
    model, engine, done = trainer.model.eval(), trainer.engine, []
    groups = sampled(engine, on_progress=done.append)
    assert sum(done) == 3 * len(PROMPTS)
    assert [[r.response_ids for r in g] for g in sampled(engine)] == [[r.response_ids for r in g] for g in groups]
    old = copy.deepcopy(model)
    engine.synchronise(moved(model, 1), 7)
    groups = sampled(engine)
    assert gaps(model, groups).abs().max() < 1e-4 < 0.05 < gaps(old, groups).abs().max()
    assert {r.policy_version for group in groups for r in group} == {7}
    for rollout in (rollout for group in groups for rollout in group):
        assert rollout.finished == (rollout.response_ids[-1] in engine.vocabulary.stop_ids)


def test_a_training_with_vllm_in_its_process(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    probe = subprocess.run([str(PYTHON), "-c", "import accelerate, boto3, peft, pytest"], check=False)
    if probe.returncode:
        pytest.skip(f"{PYTHON} has not what a training needs; run `make vllm` again")
    script = tmp_path / "train.py"
    script.write_text(COLOCATED)
    command = [str(PYTHON), str(script), str(checkpoint[0]), str(tmp_path / "checkpoints")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0 and "colocated: done" in done.stdout, done.stderr[-3000:]


EVALUATED = """
import sys
sys.path.append(sys.argv[2])  # what vLLM's environment has not: an evaluation draws and records
if __name__ == "__main__":
    from rest_core.config import EvaluationConfig, GenerationConfig, ModelConfig
    from rest_core.evaluation.policy import Chat
    from rest_core.records import Message
    from rest_core.stages import policies
    model = ModelConfig(source=sys.argv[1], dtype="float32", prompt_style="compact")
    limits = GenerationConfig(max_prompt_tokens=1200, max_response_tokens=12)
    chats = [Chat((), (Message("user", text),)) for text in ("a", "which one?", "call the first of them")]
    found = []
    for engine in ("transformers", "vllm"):
        evaluation = EvaluationConfig(engine={"engine": engine})
        policy = policies.local("policy", sys.argv[1], model, evaluation, limits)
        found.append([(one.text, one.response_tokens, one.skipped) for one in policy.respond(chats, limits)])
    assert found[0] == found[1], found
    assert all(tokens > 0 and skipped is None for _, tokens, skipped in found[0]), found
    print("evaluated: the same")
"""


def test_an_evaluation_with_vllm_in_its_process(
    random_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = random_model(
        "llama", hidden_size=64, head_dim=32, tie_word_embeddings=True, spread=0.1, max_position_embeddings=2048
    )
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "evaluate.py").write_text(EVALUATED)
    command = [str(PYTHON), str(tmp_path / "evaluate.py"), str(tmp_path / "model"), sysconfig.get_path("purelib")]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0 and "evaluated: the same" in done.stdout, done.stderr[-3000:]


def test_the_transfer_between_gpus_is_where_we_look_for_it() -> None:
    """It cannot run here without a GPU; what it is called and what it asks for can be checked."""
    code = (
        "import inspect;"
        "from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource;"
        "from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo as Info;"
        "from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine as Engine;"
        "Info(rank=0, master_address='localhost', master_port=1, world_size=2);"
        "ParamMeta('name', None, (1,));"
        "assert WeightSource.__abstractmethods__ == {'metadata', '__iter__'};"
        "assert list(inspect.signature(Engine.trainer_init).parameters) == ['init_info', 'client', 'source'];"
        "assert list(inspect.signature(Engine.send_weights).parameters) == ['self']"
    )
    done = subprocess.run([str(PYTHON), "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
