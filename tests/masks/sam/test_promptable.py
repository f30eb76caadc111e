"""Facts of an encoded crop."""

import numpy as np
import torch

from sfss_ray.masks.sam.promptable import EncodedCrop


def encoded(**changes):
    facts = {
        "decoder": None, "size": (50, 100), "upsampling_sizes": (64, (32, 64), (50, 100)),
        "point_scale": (0.64, 0.5), "input_side": 64, "mask_threshold": 0.0,
        "device": torch.device("cpu"), "key_bytes": 4,
    }  # fmt: skip
    return EncodedCrop(**{**facts, **changes})


def test_points_keep_their_precision():
    points = np.array([[10.0, 20.0], [100.0, 50.0]])
    expected = [[6.4, 10.0], [64.0, 25.0]]
    exact = encoded().to_model_input(points)
    assert exact.dtype == torch.float64
    np.testing.assert_allclose(exact.numpy(), expected)
    single = encoded().to_model_input(points.astype(np.float32))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-6)


def test_only_a_crop_with_a_reference_can_match_it():
    assert not encoded().can_match_stock
    assert encoded(reference=lambda: None).can_match_stock
    assert encoded().input_size == (32, 64)
