"""GPU memory against real models, and nodes against a Kubernetes API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rest_core.config import LoraConfig, LossConfig, ModelConfig, RlConfig, SftConfig, VllmEngineConfig
from rest_core.errors import UserError
from rest_core.model.loading import load_model, with_lora
from rest_core.operations import pods
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight import gpu, nodes
from rest_core.operations.preflight.gpu_memory import GIB, Architecture, read_architecture, training_memory
from rest_core.operations.preflight.surroundings import Asked, NodeTerm, Toleration

QWEN = Architecture(parameters=1_700_000_000, trained=1_700_000_000, hidden_size=2048, layers=28)


@pytest.fixture
def model(tiny_checkpoint: Path) -> ModelConfig:
    return ModelConfig(source=str(tiny_checkpoint))


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)])
def test_the_architecture_is_counted_as_the_real_model_is(model: ModelConfig, lora: LoraConfig | None) -> None:
    found = read_architecture(model.source, model, SftConfig(lora=lora))
    real = load_model(model.source, model)
    assert found.parameters == sum(parameter.numel() for parameter in real.parameters())
    trained = real if lora is None else with_lora(real, lora)
    assert found.trained == sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    assert (found.trained < found.parameters) == (lora is not None)
    assert (found.hidden_size, found.layers) == (16, 2)


def test_of_a_model_in_s3_only_the_configuration_is_read(model: ModelConfig, empty_s3: Any) -> None:
    empty_s3.create_bucket(Bucket="bucket")
    empty_s3.upload_file(f"{model.source}/config.json", "bucket", "model/config.json")
    there = read_architecture("s3://bucket/model", model, SftConfig())
    assert there == read_architecture(model.source, model, SftConfig())


def test_a_parameter_that_is_trained_takes_16_bytes_and_its_copy() -> None:
    memory = training_memory(QWEN, SftConfig(), "bfloat16", tokens=0)
    assert memory.total == 16 * QWEN.parameters
    memory = training_memory(QWEN, RlConfig(), "bfloat16", tokens=0)
    assert memory.total == 18 * QWEN.parameters
    assert training_memory(QWEN, RlConfig(), "float32", tokens=0).total == 20 * QWEN.parameters
    with_reference = RlConfig(loss=LossConfig(kl_coefficient=0.1))
    assert training_memory(QWEN, with_reference, "bfloat16", tokens=0).total == 22 * QWEN.parameters
    elsewhere = RlConfig(engine=VllmEngineConfig())
    assert training_memory(QWEN, elsewhere, "bfloat16", tokens=0).total == 16 * QWEN.parameters


def test_adapters_shards_and_activations() -> None:
    adapters = Architecture(parameters=1000, trained=10, hidden_size=8, layers=2)
    assert training_memory(adapters, SftConfig(), "bfloat16", tokens=0).total == 4 * 1000 + 12 * 10
    sharded = training_memory(QWEN, RlConfig(), "bfloat16", tokens=0, shards=8)
    assert sharded.total == 2 * QWEN.parameters + 2 * QWEN.parameters  # 16 in eight parts, and a whole copy
    one, two = (training_memory(QWEN, RlConfig(), "bfloat16", tokens=tokens).total for tokens in (1000, 2000))
    assert two - one == 1000 * 2048 * 28 * 2


def test_real_tensors_take_what_was_counted(model: ModelConfig) -> None:
    """Weights, gradients and AdamW's state of a step, summed up."""
    policy = load_model(model.source, model)
    optimizer = torch.optim.AdamW(policy.parameters())
    policy(input_ids=torch.zeros(1, 2, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    tensors = [*policy.parameters(), *(parameter.grad for parameter in policy.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    counted = training_memory(read_architecture(model.source, model, SftConfig()), SftConfig(), "bfloat16", tokens=0)
    assert counted.total == real


A100 = {"nvidia.com/gpu.product": "A100", "nvidia.com/gpu.memory": "81920"}
ASKED = Asked(stage="rest-rl", resource="nvidia.com/gpu", count=2, node_selector={"pool": "gpu"})


def check(asked: Asked, model: ModelConfig) -> str:
    return nodes.check(asked, model, SftConfig(), RlConfig())


def test_a_node_that_fits_is_found_and_named(cluster: Any, model: ModelConfig) -> None:
    cluster.add_node("cpu")
    cluster.add_node("small", gpus=1, labels={"pool": "gpu", **A100})
    cluster.add_node("large", gpus=8, labels={"pool": "gpu", **A100})
    cluster.add_node("other", gpus=8, labels={"pool": "other", **A100})
    found = check(ASKED, model)
    assert found.startswith("1 nodes have 2 x nvidia.com/gpu and pool=gpu (A100); rest-rl needs at least")


@pytest.mark.parametrize(
    ("tolerations", "fits"),
    [
        ((), False),
        ((Toleration(key="spot", value="yes"),), True),
        ((Toleration(key="spot", value="no"),), False),
        ((Toleration(key="spot", operator="Exists", effect="NoExecute"),), False),
        ((Toleration(operator="Exists"),), True),
    ],
)
def test_taints_must_be_tolerated(
    cluster: Any, model: ModelConfig, tolerations: tuple[Toleration, ...], fits: bool
) -> None:
    spot = {"key": "spot", "value": "yes", "effect": "NoSchedule"}
    preferred = {"key": "old", "effect": "PreferNoSchedule"}
    cluster.add_node("gpu", gpus=8, labels={"pool": "gpu"}, taints=(spot, preferred))
    asked = ASKED.model_copy(update={"tolerations": tolerations})
    if fits:
        assert "1 nodes have" in check(asked, model)
    else:
        with pytest.raises(NotAllowed, match=r"0 of 1 nodes with 2 x nvidia\.com/gpu and pool=gpu at the moment"):
            check(asked, model)


def test_a_gpu_that_is_too_small_is_a_problem(cluster: Any, model: ModelConfig) -> None:
    cluster.add_node("tiny", gpus=2, labels={"pool": "gpu", "nvidia.com/gpu.memory": "0"})
    with pytest.raises(UserError, match=r"rest-rl needs at least .* GiB a GPU .* take a larger GPU"):
        check(ASKED, model)
    disabled = nodes.check(ASKED, model, SftConfig(), RlConfig(enabled=False))
    assert "needs" not in disabled
    assert "needs" not in check(ASKED.model_copy(update={"stage": "evaluate-bfcl"}), model)


def test_a_training_on_several_nodes_needs_as_many_that_are_large_enough(cluster: Any, model: ModelConfig) -> None:
    asked = ASKED.model_copy(update={"nodes": 2})
    for name, memory in (("small", "0"), ("large", "81920")):
        cluster.add_node(name, gpus=2, labels={"pool": "gpu", "nvidia.com/gpu.memory": memory})
    with pytest.raises(UserError, match="has 0 GiB"):
        check(asked, model)
    cluster.add_node("as large", gpus=2, labels={"pool": "gpu", "nvidia.com/gpu.memory": "81920"})
    assert "3 nodes have" in check(asked, model)


def test_nodes_without_labels_are_of_unknown_size(cluster: Any, model: ModelConfig) -> None:
    cluster.add_node("bare", gpus=2)
    del cluster.nodes[-1]["metadata"]["labels"]
    assert "GPU of unknown type" in check(ASKED.model_copy(update={"node_selector": {}}), model)


def test_nodes_that_may_not_be_listed_are_not_checked(cluster: Any, model: ModelConfig) -> None:
    cluster.forbidden.add("nodes")
    with pytest.raises(NotAllowed, match="list nodes: the cluster refuses it"):
        check(ASKED, model)


def test_a_training_on_a_cpu_needs_no_gpu_unless_it_was_given_one(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(pods.GPUS_VARIABLE, raising=False)
    gpu.require_memory(model.source, model, RlConfig())
    assert gpu.require_visible() == 0
    monkeypatch.setenv(pods.GPUS_VARIABLE, "2")
    with pytest.raises(UserError, match=r"was given 2 GPUs, torch .* sees 0: use the image's CUDA build"):
        gpu.require_memory(model.source, model, RlConfig())


def test_a_gpu_without_room_is_refused_before_anything_is_loaded(
    model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the device's own answers are made up: there is no GPU where tests run."""
    free = 40 * GIB
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    gpu.require_memory(model.source, model, RlConfig())
    free = 1000
    with pytest.raises(UserError, match=r"^sft-warmup needs at least .* NVIDIA Test has 0\.0 of 80\.0 GiB free"):
        gpu.require_memory(model.source, model, SftConfig())


def test_published_architectures_are_in_range() -> None:
    """Qwen3-1.7B as its config.json has it: 1.7 billion parameters, so about 30 GB for the authors' run."""
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        found = read_architecture(folder, ModelConfig(source=folder), RlConfig())
    assert 1.71e9 < found.parameters < 1.73e9
    assert 28 * GIB < training_memory(found, RlConfig(), "bfloat16", tokens=0).total < 30 * GIB


def test_what_nodes_have_too_little_of_is_named(cluster: Any, model: ModelConfig) -> None:
    asked = Asked(stage="rest-rl", cpu="64", memory="512Gi", count=8)
    cluster.add_node("small", gpus=2)
    cluster.add_node("larger", gpus=8, memory="549755813888")  # 512Gi
    with pytest.raises(NotAllowed) as told:
        check(asked, model)
    assert "0 of 1 nodes with 8 x nvidia.com/gpu and cpu 64 and memory 512Gi at the moment" in str(told.value)
    assert "(cpu: 64 asked for, a node has 7900m at most); the stage waits" in str(told.value)
    with pytest.raises(NotAllowed, match=r"memory: 1Ti asked for, a node has 549755813888 at most"):
        check(Asked(stage="prepare-data", cpu="7900m", memory="1Ti"), model)
    assert check(Asked(stage="prepare-data", cpu="7.9", memory="32Gi"), model) == "2 nodes have cpu 7.9 and memory 32Gi"
    with pytest.raises(NotAllowed, match="no node is open to its node_selector, node_affinity and tolerations"):
        check(Asked(stage="prepare-data", cpu="1", node_selector={"pool": "none"}), model)
    with pytest.raises(NotAllowed, match="of 2 nodes that are open to it too few have all of that"):
        check(Asked(stage="rest-rl", cpu="1", nodes=3), model)


@pytest.mark.parametrize(
    ("term", "fits"),
    [
        ({"operator": "In", "values": ["a", "b"]}, True),
        ({"operator": "In", "values": ["b"]}, False),
        ({"operator": "NotIn", "values": ["b"]}, True),
        ({"operator": "Exists"}, True),
        ({"operator": "DoesNotExist"}, False),
        ({"operator": "Gt", "values": ["3"], "key": "cores"}, True),
        ({"operator": "Lt", "values": ["4"], "key": "cores"}, False),
        ({"operator": "Gt", "values": ["3"]}, False),
        ({"operator": "In", "values": ["b"], "weight": 5}, True),
    ],
)
def test_node_affinity(cluster: Any, model: ModelConfig, term: dict[str, Any], fits: bool) -> None:
    cluster.add_node("one", labels={"zone": "a", "cores": "4"})
    asked = Asked(stage="prepare-data", cpu="1", node_affinity=(NodeTerm(**{"key": "zone", **term}),))
    if fits:
        assert check(asked, model) == "1 nodes have cpu 1"
    else:
        with pytest.raises(NotAllowed, match="no node is open to it"):
            check(asked, model)
