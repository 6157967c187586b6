"""The measurement of gradients as a whole, with a random model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import gradient_variance
import numpy as np
import pytest
from evidence.recorded import PARTS, SCHEMES, UNIFORM
from safetensors.torch import load_file

from rest_core.data.store import save, to_row
from rest_core.records import Message, Sample, ToolCall
from rest_core.response import render

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
SETTINGS = ("model.dtype=float32", "rl.group_size=4", "rl.max_response_tokens=20")


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    reference = render(think=None, calls=[ToolCall("add", {"n": 1})], response=None)
    samples = [Sample(f"test/{n}", "test", (Message("user", f"add {n}"),), (), reference) for n in range(3)]
    rows = [to_row(one, prompt_tokens=10, reference_tokens=10) for one in samples]
    save(dict.fromkeys(("sft", "rl", "rl_validation"), rows), tmp_path / "data")

    def run(*more: str) -> int:
        arguments = ["--policy", "embedded:tiny-random", "--dataset", str(tmp_path / "data"), "--tokens", "3"]
        arguments += ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "figures.json")]
        arguments += [text for one in SETTINGS for text in ("--set", one)]
        monkeypatch.setattr(sys, "argv", ["gradient_variance.py", *arguments, *more])
        return gradient_variance.main()

    return run


def test_what_is_measured_resumes_and_is_reported(
    measure: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure("--report") == 2
    assert "nothing has been measured there" in capsys.readouterr().err
    assert measure() == 0  # a random model's responses are all wrong alike
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert (found["settings"]["with_signal"], found["settings"]["region_entropy"]["NAME"]) == (0, None)
    assert set(found) == {"settings", "tokens"} and set(found["tokens"]["regions"]) == {"OTHER"}
    rollouts = tmp_path / "out" / gradient_variance.ROLLOUTS
    groups = [json.loads(line) for line in rollouts.read_text(encoding="utf-8").splitlines()]
    for group in groups:
        group["advantages"] = [1.0, -1.0, 0.5, -0.5]
    rollouts.write_text("".join(json.dumps(group) + "\n" for group in groups), encoding="utf-8")

    assert measure("--groups", "2") == 0
    assert measure() == 2
    assert "2 gradients are in the scale of 2 groups" in capsys.readouterr().err
    for file in (*(tmp_path / "out").glob(gradient_variance.SKETCHES), tmp_path / "out" / gradient_variance.SQUARES):
        file.unlink()

    assert measure() == 0
    files = sorted((tmp_path / "out").glob(gradient_variance.SKETCHES))
    first = [np.load(file) for file in files]
    assert len(files) == 3 and first[0].any()
    for sketches in (one for both in first for one in both):
        parts = sum(sketches[SCHEMES.index(part)] for part in PARTS)
        assert parts == pytest.approx(
            sketches[SCHEMES.index(UNIFORM)], rel=1e-3, abs=1e-6 * float(np.abs(sketches).max())
        )
    # In AdamW's scale the coordinates have a mean square of 1 under uniform, but for those that have no gradient.
    squares = load_file(tmp_path / "out" / gradient_variance.SQUARES)
    norms = [float((sketches[1, SCHEMES.index(UNIFORM)] ** 2).sum()) for sketches in first]
    assert np.mean(norms) == pytest.approx(int((squares["sum"] > 1e-12).sum()), rel=0.05)

    times = [file.stat().st_mtime_ns for file in files[1:]]
    files[0].unlink()
    assert measure("--report") == 2
    assert "figures need the gradients of 3 groups" in capsys.readouterr().err
    assert measure() == 0
    assert np.array_equal(np.load(files[0]), first[0]) and [file.stat().st_mtime_ns for file in files[1:]] == times
    files[0].unlink()
    assert measure("--set", "rl.micro_batch_tokens=64") == 0  # a group in several passes
    divided = np.load(files[0])
    assert divided == pytest.approx(first[0], rel=1e-3, abs=1e-5 * float(np.abs(first[0]).max()))
    assert not np.array_equal(divided, first[0])
    found = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert found["settings"]["measured"] == 3 and all(
        found[scale]["schemes"][UNIFORM]["variance/uniform"][0] == 1.0 for scale in gradient_variance.SCALES
    )
