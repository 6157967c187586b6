import pytest
from transformers import BloomConfig, LlamaConfig

from rest_core.model.context import context_of

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "scaling, context",
    [
        (None, 2048),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256, **LLAMA3}, 2048),
        ({"rope_type": "linear", "factor": 4.0}, 8192),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
    ],
)
def test_scaled_positions_reach_further(scaling, context):
    further = {} if scaling is None else {"rope_parameters": {"rope_theta": 10000.0, **scaling}}
    assert context_of(LlamaConfig(max_position_embeddings=2048, **further)) == context


def test_positions_without_a_limit():
    assert context_of(BloomConfig()) is None
