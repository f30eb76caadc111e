"""Losses against slow loops written from their formulas."""

import math

import pytest
import torch
from torch.nn import functional as F

from sfss_ray.method.losses import entropy_sum, pair_loss, rule_out_sum, segmentation_loss


def loss_by_the_formula(positive, negative, temperature, positive_valid, negative_valid):
    losses = []
    for i in range(len(positive)):
        s_p = [s.item() for s, ok in zip(positive[i], positive_valid[i], strict=True) if ok]
        s_n = [s.item() for s, ok in zip(negative[i], negative_valid[i], strict=True) if ok]
        total = 0.0
        if s_p and s_n:
            pushed = sum(math.exp(s / temperature) for s in s_n)
            total = sum(-math.log(1 / (1 + pushed / math.exp(s / temperature))) for s in s_p)
        losses.append(total / max(len(s_p), 1))
    return torch.tensor(losses)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.7, 3.0])
def test_pair_loss_is_the_formula(temperature):
    g = torch.Generator().manual_seed(1)
    positive, negative = (torch.rand(20, n, generator=g) * 2 - 1 for n in (3, 7))
    positive_valid, negative_valid = (
        torch.rand(20, n, generator=g) < share for n, share in ((3, 0.5), (7, 0.3))
    )
    expected = loss_by_the_formula(positive, negative, temperature, positive_valid, negative_valid)
    assert 0 < (expected == 0).sum() < 20
    loss = pair_loss(positive, negative, temperature, positive_valid, negative_valid)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("similarity", [-1.0, 0.0, 0.8])
def test_equal_similarities_give_the_log_of_negatives_plus_one(temperature, similarity):
    loss = pair_loss(torch.full((2, 8), similarity), torch.full((2, 512), similarity), temperature)
    torch.testing.assert_close(loss, torch.full((2,), math.log(513)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)])
def test_half_precision_stays_finite_at_small_temperature(dtype, ends):
    positive = torch.full((1, 1), ends[0], dtype=dtype, requires_grad=True)
    negative = torch.full((1, 512), ends[1], dtype=dtype, requires_grad=True)
    loss = pair_loss(positive, negative, 0.05)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    expected = F.softplus(torch.tensor(math.log(512) + (ends[1] - ends[0]) / 0.05))
    torch.testing.assert_close(loss, expected[None], rtol=1e-4, atol=1e-6)
    assert positive.grad.isfinite().all()
    assert negative.grad.isfinite().all()


def test_invalid_entries_do_not_count():
    g = torch.Generator().manual_seed(2)
    positive, negative = torch.rand(4, 2, generator=g), torch.rand(4, 5, generator=g)
    noise = torch.ones(4, 3)
    masked = pair_loss(
        torch.cat([positive, noise], 1),
        torch.cat([noise, negative], 1),
        0.1,
        torch.tensor([True] * 2 + [False] * 3).expand(4, 5),
        torch.tensor([False] * 3 + [True] * 5).expand(4, 8),
    )
    torch.testing.assert_close(masked, pair_loss(positive, negative, 0.1))


def test_an_anchor_without_a_valid_pair_has_zero_loss_and_no_nan():
    positive = torch.rand(3, 2, requires_grad=True)
    negative = torch.rand(3, 4, requires_grad=True)
    positive_valid, negative_valid = torch.ones(3, 2).bool(), torch.ones(3, 4).bool()
    positive_valid[0] = False
    negative_valid[1] = False
    loss = pair_loss(positive, negative, 0.05, positive_valid, negative_valid)
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] == 0
    assert loss[2] > 0
    for grad in (positive.grad, negative.grad):
        assert (grad[:2] == 0).all()
        assert grad[2].isfinite().all()
        assert (grad[2] != 0).any()


def test_no_negatives_at_all():
    positive = torch.rand(3, 2, requires_grad=True)
    loss = pair_loss(positive, torch.zeros(3, 0), 0.1)
    loss.sum().backward()
    assert (loss == 0).all()
    assert (positive.grad == 0).all()


def test_gradient_pulls_positives_and_pushes_negatives():
    positive, negative = torch.rand(3, 2, requires_grad=True), torch.rand(3, 4, requires_grad=True)
    pair_loss(positive, negative, 0.1).sum().backward()
    assert (positive.grad < 0).all()
    assert (negative.grad > 0).all()


def test_segmentation_loss_is_a_weighted_sum_over_pixels():
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 3, 5, generator=g)
    labels = torch.randint(0, 4, (2, 3, 5), generator=g)
    labels[torch.rand(2, 3, 5, generator=g) < 0.3] = 255
    weights = torch.rand(2, 3, 5, generator=g)
    expected = 0.0
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        if labels[b, i, j] != 255:
            exponentials = logits[b, :, i, j].exp()
            share = exponentials[labels[b, i, j]] / exponentials.sum()
            expected -= (weights[b, i, j] * share.log()).item()
    assert segmentation_loss(logits, labels, weights).item() == pytest.approx(expected, rel=1e-5)


def test_segmentation_loss_of_half_precision_is_float32():
    logits = torch.zeros(1, 3, 100, 100, dtype=torch.float16)
    loss = segmentation_loss(logits, torch.zeros(1, 100, 100).long(), torch.ones(1, 100, 100))
    assert loss.item() == pytest.approx(10_000 * math.log(3), rel=1e-5)


def test_entropy_is_summed_over_pixels():
    g = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(2, 4, 3, 5, generator=g)
    expected = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1)).entropy().sum()
    assert entropy_sum(logits).item() == pytest.approx(expected.item(), rel=1e-5)
    assert entropy_sum(torch.zeros(1, 4, 2, 2)).item() == pytest.approx(4 * math.log(4))
    confident = torch.tensor([[60.0, 0.0, 0.0]])[..., None, None].half()
    assert entropy_sum(confident).item() == pytest.approx(0.0, abs=1e-6)


def drawn_rule_out(seed=0, classes=6, plausible_count=3):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 4, 5, generator=g)
    plausible = torch.rand(2, classes, 4, 5, generator=g).argsort(1)[:, :plausible_count]
    return logits, plausible, torch.rand(2, 4, 5, generator=g) < 0.6


def test_rule_out_is_minus_log_of_the_plausible_probability():
    logits, plausible, chosen = drawn_rule_out()
    total = 0.0
    for b, y, x in chosen.nonzero().tolist():
        p = logits[b, :, y, x].softmax(0)
        total -= math.log(sum(p[c].item() for c in plausible[b, :, y, x].tolist()))
    assert chosen.sum() > 5
    assert rule_out_sum(logits, plausible, chosen).item() == pytest.approx(total, rel=1e-5)


def test_rule_out_with_all_classes_plausible_is_zero():
    logits, plausible, chosen = drawn_rule_out(plausible_count=6)
    assert rule_out_sum(logits, plausible, chosen).item() == pytest.approx(0, abs=1e-5)


def test_rule_out_without_chosen_pixels_is_zero_and_has_a_gradient():
    logits, plausible, chosen = drawn_rule_out()
    logits.requires_grad_()
    loss = rule_out_sum(logits, plausible, torch.zeros_like(chosen))
    assert loss == 0
    loss.backward()
    assert not logits.grad.any()


def test_rule_out_prefers_no_plausible_class():
    """The gradient keeps the ratio of plausible classes: it adds to each by its own probability."""
    logits, plausible, chosen = drawn_rule_out()
    logits.requires_grad_()
    rule_out_sum(logits, plausible, chosen).backward()
    b, y, x = chosen.nonzero()[0].tolist()
    gradient, p = logits.grad[b, :, y, x], logits.detach()[b, :, y, x].softmax(0)
    indices = plausible[b, :, y, x]
    torch.testing.assert_close(
        -gradient[indices] / p[indices], torch.full((3,), float(1 / p[indices].sum() - 1))
    )
    others = [c for c in range(6) if c not in indices.tolist()]
    torch.testing.assert_close(gradient[others], p[others])
