"""Tests of cards from preprocessor_config.json, against the image processors of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.preprocessors import (
    class_labels,
    preprocessor_card,
    preprocessor_notes,
)
from sfss_ray.models.segmenter import Segmenter

PIXELS = np.random.default_rng(5).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def prepared(entries: dict[str, Any], model_type: str = "") -> torch.Tensor:
    """Return PIXELS as a network with the card of these entries sees them."""
    card = preprocessor_card(entries, (), model_type)
    images = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].float() / 255
    return Segmenter(nn.Identity(), nn.Conv2d(3, 2, 1), card).prepare(images)


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("BeitImageProcessor", "beit"),
        ("BeitImageProcessor", "data2vec-vision"),
        ("DPTImageProcessor", "dpt"),
        ("MobileNetV2ImageProcessor", "mobilenet_v2"),
        ("MobileViTImageProcessor", "mobilevit"),
        ("MobileViTImageProcessor", "mobilevitv2"),
        ("SegformerImageProcessor", "upernet"),
        ("Mask2FormerImageProcessor", "mask2former"),
        ("MaskFormerImageProcessor", "maskformer"),
        ("OneFormerImageProcessor", "oneformer"),
        ("EomtImageProcessor", "eomt"),
    ],
)
def test_a_saved_processor_and_a_missing_one_prepare_images_as_transformers_does(name, model_type):
    transformers = pytest.importorskip(
        "transformers", reason="pip install 'sfss-ray[transformers]'"
    )
    options = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    kind = getattr(transformers, name)
    try:
        processor = kind(**options)
    except TypeError:  # OneFormer's needs a file of class names
        pytest.skip(f"{name} needs files")
    expected = processor(PIXELS, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared({}, model_type), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        prepared(processor.to_dict(), model_type), expected, rtol=1e-4, atol=1e-4
    )


def test_bad_entries_are_refused():
    with pytest.raises(CheckpointError, match="rescale_factor 0: allowed is a number above 0"):
        preprocessor_card({"rescale_factor": 0}, ())
    with pytest.raises(CheckpointError, match=r"image_std \[1\]: allowed are three numbers"):
        preprocessor_card({"image_std": [1]}, ())


def test_names_come_from_complete_and_meaningful_labels():
    assert class_labels({"id2label": {"0": "road", "1": " sky "}}, 2) == ("road", "sky")
    assert class_labels({"id2label": {0: "LABEL_0", 1: "LABEL_1"}}, 2) == ()
    assert class_labels({"id2label": {0: "road"}}, 2) == ()
    assert class_labels({"id2label": {0: "road", 1: "road"}}, 2) == ()
    assert class_labels({}, 2) == ()


def test_notes_name_a_missing_file_and_reduced_labels():
    (note,) = preprocessor_notes({}, "dpt")
    assert "no preprocessor_config.json beside the weights" in note
    assert "the usual one of dpt" in note
    for name in ("do_reduce_labels", "reduce_labels"):
        (note,) = preprocessor_notes({name: True}, "beit")
        assert "its output 0 is id 1 of the original label files" in note
    assert preprocessor_notes({"do_reduce_labels": False}, "beit") == ()
