"""segment_anything's Sam as a promptable model."""

import pytest
import torch
from random_sam import drawn_image, random_sam
from segment_anything import SamPredictor

from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.masks.sam.segment_anything_model import SegmentAnythingModel


@pytest.fixture(scope="module")
def model():
    return SegmentAnythingModel(SamPredictor(random_sam()), PillowResize())


def test_a_crop_needs_a_pixel_at_the_networks_size(model):
    assert model.input_side == 256
    assert model.has_pixels(1, 511)  # half a pixel is rounded up
    assert not model.has_pixels(1, 514)


@torch.no_grad()
def test_embedding_and_sizes_are_those_of_the_predictor(model):
    predictor = SamPredictor(random_sam())
    predictor.set_image(drawn_image())
    crop = model.encode(drawn_image(), torch.float32)
    assert torch.equal(crop.decoder.embedding, predictor.features)
    assert crop.upsampling_sizes == (256, predictor.input_size, (150, 200))
    assert crop.can_match_stock
    assert crop.key_bytes == 4 * 64 * 32 * 32
