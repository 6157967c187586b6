"""The loss against hand-worked numbers, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from padded_loss import padded_loss
from pydantic import ValidationError

from rest_core.algorithm.loss import Denominators

D = torch.float64


def one(ratio: float, advantage: float, **options: object) -> float:
    """Loss of a single token with the given ratio and advantage."""
    logp = torch.tensor([[math.log(ratio)]], dtype=D)
    ones = torch.ones(1, 1, dtype=D)
    loss, _ = padded_loss(logp, torch.zeros(1, 1, dtype=D), torch.tensor([advantage], dtype=D), ones, ones, **options)  # type: ignore[arg-type]
    return loss.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # clipped at 1.2
        (0.5, 2.0, -1.0),  # not clipped: the minimum is the unclipped term
        (0.5, -2.0, 1.6),  # clipped at 0.8
        (1.5, -2.0, 3.0),
        (10.0, -2.0, 6.0),  # dual clip at 3·|Â|
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, expected: float) -> None:
    assert one(ratio, advantage) == pytest.approx(expected)


def test_options_of_the_clip() -> None:
    assert one(10.0, -2.0, dual_clip=None) == pytest.approx(20.0)
    assert one(1.5, 1.0, clip_high=0.28) == pytest.approx(-1.28)
    assert one(0.5, -1.0, clip_low=0.4) == pytest.approx(0.6)


def test_the_log_ratio_is_clamped() -> None:
    far = torch.tensor([[1000.0]], dtype=D)
    ones = torch.ones(1, 1, dtype=D)
    loss, _ = padded_loss(far, -far, torch.tensor([-1.0], dtype=D), ones, ones, dual_clip=None)
    assert loss.item() == pytest.approx(math.exp(20.0))


def batch(seed: int = 0, rows: int = 6, width: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=D)

    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    mask = torch.arange(width)[None] < lengths
    return {
        "logp": -rand(rows, width).requires_grad_(),
        "old_logp": -rand(rows, width),
        "advantages": rand(rows) * 2 - 1,
        "mask": mask,
        "weights": (rand(rows, width) + 0.1) * mask,
        "ref_logp": -rand(rows, width),
        "entropy": rand(rows, width),
    }


def test_aggregations_by_hand() -> None:
    # Two rows of 2 and 1 tokens, ratio 1, advantages 1 and -2, weights 0.5, 1.5 and 1.
    zero = torch.zeros(2, 2, dtype=D)
    mask = torch.tensor([[1, 1], [1, 0]]).bool()
    weights = torch.tensor([[0.5, 1.5], [1.0, 0.0]], dtype=D)
    advantages = torch.tensor([1.0, -2.0], dtype=D)

    def loss(aggregation: str, **length: int) -> float:
        return padded_loss(zero, zero, advantages, mask, weights, aggregation=aggregation, **length)[0].item()

    # sequence_mean: ((-0.5 - 1.5) / 2 + 2) / 2; token_mean: (-0.5 - 1.5 + 2) / 3.
    assert loss("sequence_mean") == pytest.approx(0.5)
    assert loss("token_mean") == pytest.approx(0.0, abs=1e-8)
    # constant_length: (-0.5 - 1.5 + 2 · 1) / (4 · 2), and with a second token of the second row (2 + 2 - 2) / (4 · 2).
    assert loss("constant_length", length=4) == pytest.approx(0.0)
    weights[1, 1], mask[1, 1] = 1.0, True
    assert loss("constant_length", length=4) == pytest.approx(0.25)
    assert loss("constant_length") == pytest.approx(1.0)  # `padded_loss` has a limit of 1 token


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [
        # Row 1 has ratios 1.5 and 0.6, Â = 1; row 2 has one of 0.5, Â = -2; clipped at 0.8 and 1.2.
        # (-(1.2 + 0.6) / 2 + 2 · 0.8) / 2
        ("clip", 0.35),
        # s_1 = (1.5 · 0.6)^(1/2) = 0.948683, s_2 = 0.5, which is clipped: (-0.948683 + 1.6) / 2
        ("gspo", 0.3256584),
        # (-(1.2 ln 1.5 + 0.8 ln 0.6) / 2 + 2 · 0.8 ln 0.5) / 2, with old log-probs of 0: log-probs are log-ratios
        ("cispo", -0.5739922),
    ],
)
def test_surrogates_by_hand(surrogate: str, expected: float) -> None:
    logp = torch.tensor([[1.5, 0.6], [0.5, 99.0]], dtype=D).log()
    mask = torch.tensor([[1, 1], [1, 0]]).bool()
    advantages = torch.tensor([1.0, -2.0], dtype=D)
    ones, zero = torch.ones(2, 2, dtype=D), torch.zeros(2, 2, dtype=D)
    dual = None if surrogate == "cispo" else 3.0
    loss, _ = padded_loss(logp, zero, advantages, mask, ones, surrogate=surrogate, dual_clip=dual)
    assert loss.item() == pytest.approx(expected, abs=1e-7)


def test_cispo_has_a_gradient_where_the_others_are_clipped() -> None:
    logp = torch.tensor([[math.log(1.5), math.log(0.5)]], dtype=D, requires_grad=True)
    ones = torch.ones(1, 2, dtype=D)
    arguments = (torch.zeros(1, 2, dtype=D), torch.tensor([[1.0, 1.0]], dtype=D), ones, ones)
    padded_loss(logp, *arguments)[0].backward()
    assert logp.grad is not None and logp.grad.tolist() == [[0.0, -0.25]]
    logp.grad = None
    padded_loss(logp, *arguments, surrogate="cispo", dual_clip=None, clip_low=1.0)[0].backward()
    assert logp.grad is not None and logp.grad[0].tolist() == pytest.approx([-0.6, -0.25])  # no lower bound at 1
    with pytest.raises(ValidationError, match="cispo has no dual clip"):
        padded_loss(logp, *arguments, surrogate="cispo")


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
@pytest.mark.parametrize("extra", [{}, {"kl_coefficient": 0.1, "entropy_coefficient": 0.01}])
def test_any_split_gives_the_same_gradient(aggregation: str, extra: dict[str, float]) -> None:
    whole = batch()
    denominators = Denominators.of(whole["mask"], whole["weights"])

    def gradient(parts: list[list[int]]) -> torch.Tensor:
        leaf = whole["logp"].detach().clone().requires_grad_()
        for rows in parts:
            arguments = {name: value[rows] for name, value in whole.items() if name != "logp"}
            settings = {"aggregation": aggregation, "length": 7 if aggregation == "constant_length" else None, **extra}
            loss, _ = padded_loss(leaf[rows], **arguments, denominators=denominators, **settings)  # type: ignore[arg-type]
            loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    together = gradient([[0, 1, 2, 3, 4, 5]])
    for parts in ([[0], [1], [2], [3], [4], [5]], [[5, 0], [2, 1, 4], [3]], [[0, 1, 2, 3], [4, 5]]):
        torch.testing.assert_close(gradient(parts), together, rtol=1e-12, atol=1e-15)


def test_all_ones_weights_are_grpo() -> None:
    """GRPO written out: mean over sequences of the mean over tokens of the clipped surrogate."""
    made = batch(3)
    ones = torch.ones_like(made["weights"])
    expected = 0.0
    for row in range(len(made["advantages"])):
        terms = []
        for t in range(made["mask"].shape[1]):
            if made["mask"][row, t]:
                a = made["advantages"][row].item()
                ratio = math.exp((made["logp"][row, t] - made["old_logp"][row, t]).item())
                surrogate = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
                terms.append(-(max(surrogate, 3.0 * a) if a < 0 else surrogate))
        expected += sum(terms) / len(terms) / len(made["advantages"])
    loss, _ = padded_loss(made["logp"], made["old_logp"], made["advantages"], made["mask"], ones)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_what_is_outside_the_mask_does_not_exist() -> None:
    made = batch(1)
    arguments = {k: made[k] for k in ("old_logp", "advantages", "mask", "weights")}
    clean, clean_metrics = padded_loss(made["logp"], **arguments)
    dirty_logp = torch.where(made["mask"], made["logp"].detach(), float("nan")).requires_grad_()
    dirty, dirty_metrics = padded_loss(
        dirty_logp,
        **{
            **arguments,
            "weights": torch.where(made["mask"], arguments["weights"], float("inf")).nan_to_num(posinf=7.0),
        },
        denominators=Denominators.of(made["mask"], made["weights"]),
    )
    assert dirty.item() == clean.item()
    dirty.backward()
    assert dirty_logp.grad is not None and not dirty_logp.grad[~made["mask"]].nan_to_num(0.0).any()
    assert dirty_metrics == clean_metrics


def test_kl_penalty_and_entropy_bonus_work_with_weights() -> None:
    """Defect of the authors' code: both crash with weights on. k3 by hand: e^d - d - 1 with d = ref - logp."""
    zero = torch.zeros(1, 2, dtype=D)
    ref = torch.tensor([[0.5, -0.5]], dtype=D)
    entropy = torch.tensor([[1.0, 3.0]], dtype=D)
    mask, weights = torch.ones(1, 2).bool(), torch.tensor([[0.2, 1.8]], dtype=D)
    loss, metrics = padded_loss(
        zero,
        zero,
        torch.zeros(1, dtype=D),
        mask,
        weights,
        ref_logp=ref,
        kl_coefficient=0.1,
        entropy=entropy,
        entropy_coefficient=0.01,
    )
    k3 = ((math.exp(0.5) - 1.5) + (math.exp(-0.5) - 0.5)) / 2
    assert loss.item() == pytest.approx(0.1 * k3 - 0.01 * 2.0)
    assert metrics["kl/reference"] == pytest.approx(k3)


def test_metrics_by_hand() -> None:
    log_ratios = torch.tensor([[math.log(1.5), math.log(0.9)], [math.log(4.0), 0.0]], dtype=D)
    mask = torch.tensor([[1, 1], [1, 0]]).bool()
    ones = torch.ones(2, 2, dtype=D)
    _, metrics = padded_loss(log_ratios, torch.zeros(2, 2, dtype=D), torch.tensor([1.0, -1.0], dtype=D), mask, ones)
    assert metrics["ratio/mean"] == pytest.approx((1.5 + 0.9 + 4.0) / 3)
    assert metrics["ratio/max"] == pytest.approx(4.0)
    assert metrics["clip_share"] == pytest.approx(
        1 / 3
    )  # 1.5 with a positive advantage; 4.0 is bounded by the dual clip
    assert metrics["dual_clip_share"] == pytest.approx(1 / 3)
    expected = sum(math.exp(x) - x - 1 for x in (math.log(1.5), math.log(0.9), math.log(4.0))) / 3
    assert metrics["kl/old"] == pytest.approx(expected)
