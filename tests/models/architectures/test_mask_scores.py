"""Tests of class scores from masks, against a loop over queries written from the formula."""

from __future__ import annotations

import math

import pytest
import torch

from sfss_ray.models.architectures.mask_scores import SMALLEST_SCORE, class_logits


def test_scores_are_the_sum_over_queries():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(2, 3, 5, generator=generator)  # four classes and `no object`
    masks = torch.randn(2, 3, 2, 3, generator=generator)
    logits = class_logits(classes, masks)
    assert logits.shape == (2, 4, 2, 3)
    for image, name, row, column in [(0, 0, 0, 0), (1, 3, 1, 2), (0, 2, 1, 0)]:
        score = 0.0
        for query in range(3):
            exponentials = [math.exp(v) for v in classes[image, query].tolist()]
            share = exponentials[name] / sum(exponentials)
            score += share / (1 + math.exp(-float(masks[image, query, row, column])))
        assert float(logits[image, name, row, column]) == pytest.approx(math.log(score), abs=1e-5)


def test_pixels_without_a_mask_have_finite_logits_and_gradients():
    classes = torch.tensor([[[0.0, 0.0, 40.0]]], requires_grad=True)
    masks = torch.full((1, 1, 1, 1), -60.0, requires_grad=True)
    logits = class_logits(classes, masks)
    assert logits.flatten().tolist() == pytest.approx([math.log(SMALLEST_SCORE)] * 2)
    logits.sum().backward()
    assert classes.grad.isfinite().all()
    assert masks.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    classes = torch.tensor([[[0.0, -12.0, 0.0]]], dtype=torch.float16)
    logits = class_logits(classes, torch.zeros(1, 1, 1, 1, dtype=torch.float16))
    assert logits.dtype == torch.float32
    shares = torch.tensor([0.0, -12.0, 0.0]).softmax(0)[:2]
    torch.testing.assert_close(logits.flatten(), (shares / 2).log())
