"""Masks in which rounding decides a pixel are decoded again and equal the stock masks."""

import math

import pytest
import torch
from random_sam import (
    CASES,
    LOOSE,
    assert_nearly_same_masks,
    drawn_image,
    generate_with_both,
    random_sam,
)

from sfss_ray.masks.sam import crop, measure_cpu
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.reference_decoder import ReferenceDecoder


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.mark.parametrize("case", CASES)
def test_ambiguous_masks_equal_the_stock_masks(sam, case, monkeypatch):
    """If every mask is treated as ambiguous, each equals its stock mask byte for byte.

    With a library that orders sums differently (reference_decoder.py) they agree up to roundoff.
    """
    monkeypatch.setattr(measure_cpu, "_ROUNDING", math.inf)
    stock, ours = generate_with_both(sam, drawn_image(seed=1), **CASES[case])
    if not torch.backends.mkl.is_available():
        assert_nearly_same_masks([(stock, ours)])
        return
    assert len(stock) >= 5
    assert [a["segmentation"] for a in stock] == [b["segmentation"] for b in ours]
    assert [a["bbox"] for a in stock] == [b["bbox"] for b in ours]


def test_only_ambiguous_masks_are_decoded_again(sam, monkeypatch):
    settings = {**LOOSE, "pred_iou_thresh": 1.0, "output_mode": "coco_rle"}
    masks, batch_sizes = AutomaticMaskGenerator(sam, **settings).generate(drawn_image()), []
    decode = ReferenceDecoder.logits
    monkeypatch.setattr(
        ReferenceDecoder,
        "logits",
        lambda self, points, outputs: (
            batch_sizes.append(len(points)) or decode(self, points, outputs)
        ),
    )
    decoded_again = []
    for rounding in (-1.0, 1e-6, math.inf):
        monkeypatch.setattr(measure_cpu, "_ROUNDING", rounding)
        AutomaticMaskGenerator(sam, **settings).generate(drawn_image())
        decoded_again.append(sum(batch_sizes))
        batch_sizes.clear()
    assert decoded_again[0] == 0
    assert decoded_again[1] < len(masks)
    assert decoded_again[2] == len(masks)


def test_nothing_is_decoded_again_in_bfloat16(sam, monkeypatch):
    monkeypatch.setattr(measure_cpu, "_ROUNDING", math.inf)
    monkeypatch.setattr(crop, "ReferenceDecoder", None)
    generator = AutomaticMaskGenerator(sam, **LOOSE, pred_iou_thresh=1.0, dtype=torch.bfloat16)
    assert len(generator.generate(drawn_image())) >= 5
