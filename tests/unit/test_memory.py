import psutil
import pytest
import torch

from rest_core.memory import peak_memory_gib


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's peak is not that of the process")
def test_the_peak_of_the_process_in_gib() -> None:
    now = psutil.Process().memory_info().rss / 2**30
    peak = peak_memory_gib()
    assert 0.99 * now <= peak < psutil.virtual_memory().total / 2**30
    held = b"x" * int((peak - now + 0.1) * 2**30)
    assert peak + 0.05 < peak_memory_gib()
    del held
    assert peak + 0.05 < peak_memory_gib()
