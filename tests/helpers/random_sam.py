"""A small Sam with random weights whose masks depend on the point, and comparisons with stock."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from sfss_ray.masks.sam.decoder import DecodedPoints
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator

LOOSE = {"points_per_side": 8, "stability_score_thresh": 0.5, "box_nms_thresh": 0.9}
CASES = {
    "quality filter": {"pred_iou_thresh": 2.0},
    "no quality filter": {"pred_iou_thresh": -10.0, "points_per_batch": 5},
    "crops": {"pred_iou_thresh": 1.0, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "small regions": {"pred_iou_thresh": 1.0, "min_mask_region_area": 60},
    "negative offset": {"pred_iou_thresh": 1.0, "stability_score_offset": -0.5},
}
"""Settings that differ from LOOSE."""


def random_sam(seed=5, gain=1.6):
    """Build a Sam of 256 pixels and patch 8 whose masks have parts and borders.

    Plain random weights give noise of single pixels. Here the four pixels that an upscaling
    convolution makes of one are therefore nearly equal. Larger weights make masks depend on the point.
    """
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        depth=4, embed_dim=128, img_size=256, num_heads=4, patch_size=8, window_size=8,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True,
        global_attn_indexes=(1, 3), out_chans=64,
    )  # fmt: skip
    prompt = PromptEncoder(
        embed_dim=64, image_embedding_size=(32, 32), input_image_size=(256, 256), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=256, num_heads=4)
    decoder = MaskDecoder(transformer_dim=64, transformer=transformer, iou_head_hidden_dim=64)
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(gain / math.sqrt(parameter.shape[1]) * noise)
    for convolution in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
        weight = convolution.weight.data
        weight.copy_(2 * weight.mean((2, 3), keepdim=True) + 0.03 * weight)
    for network in decoder.output_hypernetworks_mlps:
        network.layers[-1].weight.data.mul_(16)
    # The predicted IoUs are then about 1 to 5, so that a threshold of 2 drops some masks.
    decoder.iou_prediction_head.layers[-1].bias.data.add_(5)
    return Sam(encoder, prompt, decoder).eval()


class StockDecoder:
    """Replaces SharedImageDecoder: calls prompt_encoder and mask_decoder as a predictor does."""

    def __init__(self, sam, embedding, dtype, input_size=None):
        self.sam, self.embedding = sam, embedding

    def decode(self, points, pred_iou_thresh):
        labels = torch.ones((len(points), 1), dtype=torch.int)
        prompts = self.sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
        logits, predicted_iou = self.sam.mask_decoder(
            self.embedding, self.sam.prompt_encoder.get_dense_pe(), *prompts, multimask_output=True
        )
        threshold = -math.inf if pred_iou_thresh is None else pred_iou_thresh
        passed = torch.nonzero(predicted_iou.flatten() > threshold)[:, 0]
        low_size = tuple(logits.shape[2:])
        return DecodedPoints(predicted_iou, passed, logits.flatten(0, 1)[passed], low_size)


def drawn_image(height=150, width=200, seed=0):
    """Return uint8 (H, W, 3): discs on a colour gradient."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * x / width, 255 * y / height, 0 * x], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(height + seed)
    for _ in range(6):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 40)
        image[np.hypot(y - cy, x - cx) < r] = rng.integers(0, 256, 3)
    return image


def generate_with_both(sam, image, **settings):
    """Return the records of the stock generator and of ours, with LOOSE unless overridden."""
    settings = {**LOOSE, "output_mode": "coco_rle", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about how the stock generator uses it
        stock = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    return stock, AutomaticMaskGenerator(sam, **settings).generate(image)


def assert_nearly_same_masks(pairs, at_least=5):
    """Assert the same masks in the same order, up to a pixel or a thousandth in 5 of 100 RLEs.

    Only the roundoff of the decoder can make an RLE differ. In the ragged masks of random weights it
    flips a pixel in 1 to 4 of a hundred, unless they are rechecked. Stock differs as much from itself
    in float64.
    """
    stock, ours = ([record for pair in pairs for record in pair[k]] for k in (0, 1))
    assert [len(a) for a, _ in pairs] == [len(b) for _, b in pairs]
    assert len(stock) >= at_least
    n_different = sum(not assert_same_record(a, b) for a, b in zip(stock, ours, strict=True))
    assert n_different <= max(1, 0.05 * len(stock))


def assert_same_record(stock, ours):
    """Return whether the RLEs are equal; fail if more than roundoff differs."""
    assert list(stock) == list(ours)
    assert stock["point_coords"] == ours["point_coords"]
    assert stock["crop_box"] == ours["crop_box"]
    assert stock["predicted_iou"] == pytest.approx(ours["predicted_iou"], abs=1e-4, rel=1e-4)
    assert stock["stability_score"] == pytest.approx(ours["stability_score"], abs=5e-3, nan_ok=True)
    if stock["segmentation"] == ours["segmentation"]:
        assert stock["bbox"] == ours["bbox"]
        assert stock["area"] == ours["area"]
        return True
    a, b = (coco.decode(record["segmentation"]) for record in (stock, ours))
    assert (a != b).sum() <= max(1, 0.001 * (a | b).sum())
    return False
