import mmap
import platform

import psutil
import pytest
import torch

from rest_core.errors import UserError
from rest_core.memory import keep_freed_memory, out_of_memory_names, peak_memory_gib


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's peak is not that of the process")
def test_the_peak_of_the_process_in_gib() -> None:
    now = psutil.Process().memory_info().rss / 2**30
    peak = peak_memory_gib()
    assert 0.99 * now <= peak < psutil.virtual_memory().total / 2**30
    with mmap.mmap(-1, int((peak - now + 0.1) * 2**30)) as fresh:  # not memory that the process has kept
        for page in range(0, len(fresh), mmap.PAGESIZE):
            fresh[page] = 1
        assert peak + 0.05 < peak_memory_gib()
    assert peak + 0.05 < peak_memory_gib()


def allocate(error: BaseException | None) -> None:
    """Really run out of memory (no machine has 2**60 bytes), or raise `error`."""
    if error is not None:
        raise error
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [None, MemoryError("no more"), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")],
    ids=["torch on the CPU", "Python", "CUDA"],
)
@pytest.mark.parametrize(("value", "tokens", "lower"), [(4096, 3000, 1500), (4096, 6000, 2048), (1, 1, 1)])
def test_running_out_of_memory_names_the_setting_and_by_how_much(
    error: BaseException | None, value: int, tokens: int, lower: int
) -> None:
    named = rf"^out of memory with {tokens} tokens at once: lower rl\.some_tokens from {value} to {lower}"
    with pytest.raises(UserError, match=f"{named}; ") as caught, out_of_memory_names("rl.some_tokens", value, tokens):
        allocate(error)
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(UserError, match=rf"{named} \(or buy more\); "),
        out_of_memory_names("rl.some_tokens", value, tokens, otherwise="buy more"),
    ):
        allocate(error)
    assert caught.value.__cause__ is not None


def test_other_errors_pass_as_they_are() -> None:
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory"), UserError("another")):
        with pytest.raises(type(error)) as caught, out_of_memory_names("rl.some_tokens", 64, 64):
            raise error
        assert caught.value is error


def test_freed_memory_is_kept_where_the_c_library_can() -> None:
    kept = keep_freed_memory()
    assert isinstance(kept, bool)
    if platform.libc_ver()[0] == "glibc":
        assert kept
    for _ in range(3):  # large blocks, for which it changes the way they are got
        block = torch.full((2**22,), 3.0)
        assert float(block.sum()) == 3.0 * 2**22
        del block
