"""Embeddings of crops against SamPredictor, on the path of a CPU and on that of a GPU."""

import warnings

import numpy as np
import pytest
import torch
from image_arrays import IMAGES
from random_sam import StockDecoder, drawn_image, random_sam
from segment_anything import SamPredictor

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.crop import _embed_on_device, encode_crop
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.masks.sam.resize import PillowResize


@pytest.fixture(scope="module")
def sam():
    return random_sam()


def test_the_encoder_is_that_of_the_predictor(sam):
    image = drawn_image()
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    embedding, input_size = predictor.features, predictor.input_size
    with torch.no_grad():
        crop = encode_crop(predictor, image, torch.float32, PillowResize())
        stock = StockDecoder(sam, embedding, torch.float32).decode(torch.tensor([[9.0, 9.0]]), None)
        ours = crop.decoder.decode(torch.tensor([[9.0, 9.0]]), None)
    assert crop.input_size == input_size == (192, 256)
    assert crop.size == (150, 200)
    torch.testing.assert_close(ours.predicted_iou, stock.predicted_iou, atol=1e-4, rtol=1e-4)


def test_points_are_scaled_to_the_model_input(sam):
    predictor = SamPredictor(sam)
    with torch.no_grad():
        crop = encode_crop(predictor, drawn_image(), torch.float32, PillowResize())
    points = np.array([[0.0, 0.0], [200.0, 150.0], [33.0, 71.5]])
    expected = predictor.transform.apply_coords(points, (150, 200))
    np.testing.assert_allclose(crop.to_model_input(points).numpy(), expected)


def test_only_float32_on_a_cpu_can_match_stock(sam):
    predictor = SamPredictor(sam)
    with torch.no_grad():
        crops = [
            encode_crop(predictor, drawn_image(), dtype, PillowResize())
            for dtype in (torch.float32, torch.bfloat16)
        ]
    assert [crop.can_match_stock for crop in crops] == [True, False]
    assert crops[0].upsampling_sizes == (256, (192, 256), (150, 200))


def test_an_encoder_of_several_outputs_is_refused(monkeypatch):
    sam = random_sam()
    monkeypatch.setattr(sam.image_encoder, "forward", lambda x: (x, x))
    with torch.no_grad(), pytest.raises(ConfigError, match=r"returns a tuple, but .* one tensor"):
        encode_crop(SamPredictor(sam), drawn_image(), torch.float32, PillowResize())


def embed_on_device(predictor, image, resize):
    """Take the path of a GPU on any device."""
    with torch.no_grad():
        return _embed_on_device(predictor, image, predictor.input_size, resize)


def test_embeddings_made_on_the_device_are_those_of_the_predictor(sam):
    predictor, resize = SamPredictor(sam), PillowResize()
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (150, 200, 3), dtype=np.uint8)
        predictor.set_image(image)
        features = embed_on_device(predictor, image, resize)
        assert torch.equal(predictor.get_image_embedding(), features)


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_of_array_is_embedded_on_the_device_as_by_the_predictor(kind):
    """The caller's array is not written to."""
    predictor = SamPredictor(load_sam(shipped_small_sam()))
    image, resize = IMAGES[kind](), PillowResize()
    before = image.copy()
    predictor.set_image(image)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            features = embed_on_device(predictor, image, resize)
        assert torch.equal(features, predictor.features)
    np.testing.assert_array_equal(image, before)


def test_a_model_of_bgr_images_gets_bgr_images(sam, monkeypatch):
    monkeypatch.setattr(sam, "image_format", "BGR")
    predictor, image, resize = SamPredictor(sam), drawn_image(), PillowResize()
    predictor.set_image(image)
    expected = predictor.get_image_embedding()
    with torch.no_grad():
        on_cpu = encode_crop(predictor, image, torch.float32, resize).decoder.embedding
    assert torch.equal(on_cpu, expected)
    assert torch.equal(embed_on_device(predictor, image[..., ::-1], resize), expected)


def test_bfloat16_gives_nearly_the_same_logits(sam):
    """Compared before the threshold: small parts of random masks lie close to it."""
    image, points = drawn_image(), 190 * torch.rand(6, 2)
    with torch.no_grad():
        exact, fast = (
            encode_crop(SamPredictor(sam), image, dtype, PillowResize()).decoder.decode(
                points, None
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert fast.logits.dtype == fast.predicted_iou.dtype == torch.float32
    difference = (exact.predicted_iou - fast.predicted_iou).abs().max()
    assert difference < 0.1 * exact.predicted_iou.abs().max()
    assert (exact.logits - fast.logits).abs().mean() < 0.1 * exact.logits.std()
