"""The generator against segment_anything's own, on a small Sam with random weights."""

import inspect
import json
import math
import os
import warnings
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch.nn import functional as F

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam import crop, measure_cpu
from sfss_ray.masks.sam.crop import _embed_there, encode_crop
from sfss_ray.masks.sam.decoder import DecodedPoints, SharedImageDecoder, embed_points
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.masks.sam.reference_decoder import StockOrderDecoder
from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.masks.sam.stock_modules import is_stock
from sfss_ray.masks.sam.upsample import RegionUpsampler

REPOSITORY = Path(__file__).parents[3]
LOOSE = {"points_per_side": 8, "stability_score_thresh": 0.5, "box_nms_thresh": 0.9}
CASES = {
    "quality filter": {"pred_iou_thresh": 2.0},
    "no quality filter": {"pred_iou_thresh": -10.0, "points_per_batch": 5},
    "crops": {"pred_iou_thresh": 1.0, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "small regions": {"pred_iou_thresh": 1.0, "min_mask_region_area": 60},
    "negative offset": {"pred_iou_thresh": 1.0, "stability_score_offset": -0.5},
}


def small_sam(seed=5, gain=1.6):
    """A Sam of 256 pixels and patch 8 whose masks have parts and borders.

    Plain random weights give noise of single pixels, so the four pixels that an upscaling
    convolution makes of one are nearly alike here; larger weights make masks depend on the point.
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
    # Qualities are then about 1 to 5: a threshold of 2 drops some and keeps some.
    decoder.iou_prediction_head.layers[-1].bias.data.add_(5)
    return Sam(encoder, prompt, decoder).eval()


class ModelDecoder:
    """In place of SharedImageDecoder: calls prompt_encoder and mask_decoder as a predictor does."""

    def __init__(self, sam, embedding, dtype, input_size=None):
        self.sam, self.embedding = sam, embedding

    def decode(self, points, min_quality):
        labels = torch.ones((len(points), 1), dtype=torch.int)
        prompts = self.sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
        logits, quality = self.sam.mask_decoder(
            self.embedding, self.sam.prompt_encoder.get_dense_pe(), *prompts, multimask_output=True
        )
        least = -math.inf if min_quality is None else min_quality
        kept = torch.nonzero(quality.flatten() > least)[:, 0]
        return DecodedPoints(quality, kept, logits.flatten(0, 1)[kept], tuple(logits.shape[2:]))


@pytest.fixture(scope="module")
def sam():
    return small_sam()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def drawn_image(height=150, width=200, seed=0):
    y, x = np.mgrid[:height, :width]
    image = np.stack([255 * x / width, 255 * y / height, 0 * x], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(height + seed)
    for _ in range(6):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 40)
        image[np.hypot(y - cy, x - cx) < r] = rng.integers(0, 256, 3)
    return image


def real_images(kind="camvid/images/val/*.jpg", count=2):
    root = Path(os.environ.get("SFSS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    files = sorted(root.glob(kind))[:count]
    if len(files) < count:
        pytest.skip(f"no {kind} in {root}; set SFSS_TEST_DATA to a folder with real images")
    return [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]


def both(sam, image, **parameters):
    parameters = {**LOOSE, "output_mode": "coco_rle", **parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about how the stock generator uses it
        stock = SamAutomaticMaskGenerator(sam, **parameters).generate(image)
    return stock, AutomaticMaskGenerator(sam, **parameters).generate(image)


def assert_same_masks(pairs, least=5):
    """Same count and order; nearly all RLEs byte for byte, the others by a pixel or a thousandth.

    Only the decoder's roundoff can make one differ; of random weights' ragged masks it flips a
    pixel in 1 to 4 of a hundred, unless they are settled. It is as far from stock as stock is from
    itself in float64.
    """
    stock, ours = ([record for pair in pairs for record in pair[k]] for k in (0, 1))
    assert [len(a) for a, _ in pairs] == [len(b) for _, b in pairs]
    assert len(stock) >= least
    n_other = sum(not assert_same_record(a, b) for a, b in zip(stock, ours, strict=True))
    assert n_other <= max(1, 0.05 * len(stock))


def assert_same_record(stock, ours):
    """Whether the RLEs are equal; fails if more than roundoff differs."""
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


@pytest.mark.parametrize("whole", [False, True], ids=["regions", "whole images"])
@pytest.mark.parametrize("case", CASES)
def test_byte_identical_masks_with_the_models_own_decoder(sam, case, whole, monkeypatch):
    """All steps but the decoder lose nothing: not a pixel differs, as a CPU and as a GPU does it."""
    monkeypatch.setattr(crop, "SharedImageDecoder", ModelDecoder)
    monkeypatch.setattr(crop.EncodedCrop, "may_be_settled", False)
    monkeypatch.setattr(crop, "_one_at_a_time", lambda sam: not whole)
    stock, ours = both(sam, drawn_image(seed=1), **CASES[case])
    assert len(stock) >= 5
    assert [a["segmentation"] for a in stock] == [b["segmentation"] for b in ours]
    assert all(assert_same_record(a, b) for a, b in zip(stock, ours, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_doubtful_masks_are_those_of_stock(sam, case, monkeypatch):
    """Were rounding to decide every pixel, each mask would be stock's, byte for byte.

    Where a library orders sums otherwise (stock_order.py) they are stock's as nearly as without.
    """
    monkeypatch.setattr(measure_cpu, "_ROUNDING", math.inf)
    stock, ours = both(sam, drawn_image(seed=1), **CASES[case])
    if not torch.backends.mkl.is_available():
        assert_same_masks([(stock, ours)])
        return
    assert len(stock) >= 5
    assert [a["segmentation"] for a in stock] == [b["segmentation"] for b in ours]
    assert [a["bbox"] for a in stock] == [b["bbox"] for b in ours]


def test_only_doubtful_masks_are_decoded_again(sam, monkeypatch):
    parameters = {**LOOSE, "pred_iou_thresh": 1.0, "output_mode": "coco_rle"}
    every, again = AutomaticMaskGenerator(sam, **parameters).generate(drawn_image()), []
    decode = crop.StockOrderDecoder.logits
    monkeypatch.setattr(
        crop.StockOrderDecoder,
        "logits",
        lambda self, points, outputs: again.append(len(points)) or decode(self, points, outputs),
    )
    numbers = []
    for rounding in (-1.0, 1e-6, math.inf):
        monkeypatch.setattr(measure_cpu, "_ROUNDING", rounding)
        AutomaticMaskGenerator(sam, **parameters).generate(drawn_image())
        numbers.append(sum(again))
        again.clear()
    assert numbers[0] == 0
    assert numbers[1] < len(every)
    assert numbers[2] == len(every)


def test_nothing_is_settled_in_bfloat16(sam, monkeypatch):
    monkeypatch.setattr(measure_cpu, "_ROUNDING", math.inf)
    monkeypatch.setattr(crop, "StockOrderDecoder", None)
    generator = AutomaticMaskGenerator(sam, **LOOSE, pred_iou_thresh=1.0, dtype=torch.bfloat16)
    assert len(generator.generate(drawn_image())) >= 5


@pytest.mark.parametrize(("above", "doubtful"), [(2e-6, True), (2e-4, False), (-2e-6, True)])
@pytest.mark.parametrize("cut", [0.0, 0.5])
def test_a_mask_is_doubtful_where_a_logit_touches_the_cut(above, doubtful, cut):
    low = np.full((8, 8), cut - 4, np.float32)
    low[2:6, 2:6] = cut + 6
    low[3, 3] = cut + above
    upsampler = RegionUpsampler((8, 8), 8, (8, 8), (8, 8))
    found = measure_cpu.measure_mask(low, upsampler, cut, 1.0, look_for_doubts=True)
    assert found.mask.doubtful is doubtful
    assert found.pixels == (15, 16)
    assert found.box == (2, 2, 5, 5)
    assert found.mask.unpack().sum() == 15 + (above > 0)


@pytest.mark.parametrize(("count", "prompts"), [(1, 1), (2, 2), (5, 5), (5, 2)])
def test_masks_in_the_order_of_stock_are_those_asked_for(sam, count, prompts):
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(prompts, 2)
    points, outputs = points[torch.arange(count) % prompts], torch.arange(count) % 3
    with torch.no_grad():
        ours = StockOrderDecoder(sam, embedding).logits(points, outputs)
        stock = ModelDecoder(sam, embedding, torch.float32).decode(points, None).logits
    stock = stock.unflatten(0, (count, 3))[torch.arange(count), outputs]
    assert (ours - stock).abs().max() <= 3e-6 * stock.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_same_masks_as_stock_on_a_drawn_image(sam, case):
    assert_same_masks([both(sam, drawn_image(), **CASES[case])])


@pytest.mark.parametrize("whole", [False, True], ids=["regions", "whole images"])
@pytest.mark.parametrize("shape", [(200, 130), (256, 256), (90, 300), (40, 40), (31, 17)])
def test_same_masks_for_all_shapes(sam, shape, whole, monkeypatch):
    monkeypatch.setattr(crop, "_one_at_a_time", lambda sam: not whole)
    parameters = {"pred_iou_thresh": -10.0, "points_per_side": 6, "stability_score_thresh": 0.3}
    assert_same_masks([both(sam, drawn_image(*shape), **parameters)], least=3)


@pytest.mark.parametrize("case", ["quality filter", "crops"])
def test_same_masks_as_stock_on_real_images(sam, case):
    assert_same_masks([both(sam, image, **CASES[case]) for image in real_images()])


SHIPPED_CASES = {
    "whole": {},
    "crops and small regions": {
        "points_per_side": 8,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    },
}


def assert_same_up_to_one(pairs):
    """Same count and order; all RLEs equal but one in a hundred (or one), that with IoU .999."""
    stock, ours = ([record for pair in pairs for record in pair[k]] for k in (0, 1))
    assert [len(a) for a, _ in pairs] == [len(b) for _, b in pairs]
    assert len(stock) >= 3
    for name in ("point_coords", "crop_box"):
        assert [a[name] for a in stock] == [b[name] for b in ours]
    texts = [(a["segmentation"], b["segmentation"]) for a, b in zip(stock, ours, strict=True)]
    other = [coco.iou([a], [b], [0])[0, 0] for a, b in texts if a != b]
    assert len(other) <= max(1, 0.01 * len(stock))
    assert min(other, default=1) >= 0.999


@pytest.mark.parametrize("case", SHIPPED_CASES)
def test_trained_weights_give_the_masks_of_stock(case):
    """The shipped small SAM with the settings it was measured with, on real video."""
    settings = json.loads(shipped_small_sam().with_suffix(".json").read_text())["generator"]
    settings |= SHIPPED_CASES[case]
    sam = load_sam(shipped_small_sam())
    assert_same_up_to_one([both(sam, image, **settings) for image in real_images()])


def test_trained_weights_give_the_masks_of_stock_at_full_size():
    """2048 x 1024 pixels, with few points: stock takes seconds for each dozen."""
    images = real_images("cityscapes_sample/leftImg8bit/train/*/*.png", 1)
    settings = json.loads(shipped_small_sam().with_suffix(".json").read_text())["generator"]
    settings |= {"points_per_side": 4, "min_mask_region_area": 400, "pred_iou_thresh": 0.0}
    settings |= {"stability_score_thresh": 0.6}
    assert_same_up_to_one([both(load_sam(shipped_small_sam()), i, **settings) for i in images])


@pytest.mark.parametrize("whole", [False, True], ids=["regions", "whole images"])
def test_empty_masks_pass_only_without_stability_threshold(sam, whole, monkeypatch):
    """An empty mask has stability 0 / 0; stock keeps it when nothing is filtered."""
    monkeypatch.setattr(crop, "_one_at_a_time", lambda sam: not whole)
    sam = small_sam()
    sam.mask_threshold = 1e9
    free = {"pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "points_per_side": 4}
    stock, ours = both(sam, drawn_image(), **free)
    assert_same_masks([(stock, ours)], least=1)
    assert all(record["area"] == 0 and record["bbox"] == [0, 0, 0, 0] for record in ours)
    assert all(math.isnan(record["stability_score"]) for record in ours)
    free["stability_score_thresh"] = 0.01
    assert AutomaticMaskGenerator(sam, **free).generate(drawn_image()) == []


@pytest.mark.parametrize("whole", [False, True], ids=["regions", "whole images"])
def test_no_mask_passes_in_crops_and_with_small_regions(sam, whole, monkeypatch):
    monkeypatch.setattr(crop, "_one_at_a_time", lambda sam: not whole)
    generator = AutomaticMaskGenerator(
        sam, 4, pred_iou_thresh=1e9, crop_n_layers=1, min_mask_region_area=10
    )
    assert generator.generate(drawn_image()) == []


def test_parameters_are_those_of_the_stock_generator():
    stock, ours = (
        inspect.signature(made).parameters
        for made in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    )
    assert list(ours) == [*stock, "dtype"]
    assert all(ours[name].default == stock[name].default for name in stock)


def test_output_modes_hold_the_same_masks(sam):
    parameters = {**LOOSE, "pred_iou_thresh": 1.0}
    modes = ("binary_mask", "uncompressed_rle", "coco_rle")
    records = [
        AutomaticMaskGenerator(sam, output_mode=mode, **parameters).generate(drawn_image())
        for mode in modes
    ]
    assert len(records[0]) > 5
    for binary, runs, text in zip(*records, strict=True):
        mask, counts = binary["segmentation"], runs["segmentation"]["counts"]
        assert mask.dtype == bool
        assert mask.shape == (150, 200)
        assert sum(counts[1::2]) == mask.sum() == binary["area"]
        assert run_lengths.to_coco_string(counts) == text["segmentation"]["counts"]
        np.testing.assert_array_equal(coco.decode(text["segmentation"]), mask)
        assert runs["segmentation"]["size"] == text["segmentation"]["size"] == [150, 200]


def test_explicit_points(sam):
    grids = [np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.3]])]
    parameters = {"points_per_side": None, "point_grids": grids, "pred_iou_thresh": -10.0}
    pair = both(sam, drawn_image(), stability_score_thresh=0.1, **parameters)
    assert_same_masks([pair], least=1)


class _OwnDecoder(MaskDecoder):
    """A changed decoder: swaps the sign of the masks."""

    def forward(self, **inputs):
        logits, quality = super().forward(**inputs)
        return -logits, quality


def test_changed_decoder_classes_run_themselves():
    sam = small_sam()
    assert is_stock(sam)
    sam.mask_decoder.__class__ = _OwnDecoder
    assert not is_stock(sam)
    with pytest.warns(UserWarning, match="mask_decoder is a _OwnDecoder"):
        assert_same_masks([both(sam, drawn_image(), pred_iou_thresh=0.1)])


def _patched_forward(sam: Sam) -> None:
    stock = sam.mask_decoder.predict_masks
    sam.mask_decoder.predict_masks = lambda **inputs: (-stock(**inputs)[0], stock(**inputs)[1])


def _hook(sam: Sam) -> None:
    sam.mask_decoder.register_forward_hook(lambda module, inputs, found: (-found[0], found[1]))


def _deep_hook(sam: Sam) -> None:
    layer = sam.mask_decoder.transformer.layers[0].mlp
    layer.register_forward_pre_hook(lambda module, inputs: (0.9 * inputs[0],))


def _hook_of_prompts(sam: Sam) -> None:
    sam.prompt_encoder.register_forward_hook(lambda module, inputs, found: found)


@pytest.mark.parametrize("patch", [_patched_forward, _hook, _deep_hook, _hook_of_prompts])
def test_patched_modules_run_themselves(patch):
    sam = small_sam()
    patch(sam)
    assert not is_stock(sam)
    with pytest.warns(UserWarning, match=r"generator\.predictor\.model\.(mask_dec|prompt_enc)oder"):
        assert_same_masks([both(sam, drawn_image(), pred_iou_thresh=0.1, points_per_side=5)])


def test_changed_layers_are_not_stock():
    sam = small_sam()
    layer = sam.mask_decoder.transformer.layers[1]
    layer.mlp.lin1 = torch.nn.Sequential(layer.mlp.lin1, torch.nn.Dropout())
    assert not is_stock(sam)


@pytest.mark.parametrize("depth", [1, 3])
def test_decoder_equals_the_models_own_for_other_depths(depth):
    """Not only the images of one size and the two layers of the published models."""
    sam = small_sam()
    sam.mask_decoder.transformer = TwoWayTransformer(depth, 64, 4, 256).eval()
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(6, 2)
    with torch.no_grad():
        stock, ours = (
            decoder(sam, embedding, torch.float32).decode(points, None)
            for decoder in (ModelDecoder, SharedImageDecoder)
        )
    torch.testing.assert_close(ours.quality, stock.quality, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.kept, stock.kept)
    error = (ours.logits - stock.logits).abs().max() / stock.logits.std()
    assert error < 1e-4


@pytest.mark.parametrize("case", ["quality filter", "crops", "no quality filter"])
@pytest.mark.parametrize("limit", [0, 3 * 128 * 128 * 4 * 20])
def test_logits_are_dropped_early_where_they_are_many(sam, case, limit, monkeypatch):
    """Masks are those of holding all to the end; what is held stays near the limit."""
    monkeypatch.setattr(crop, "_one_at_a_time", lambda sam: False)
    parameters = {**LOOSE, "points_per_batch": 5, "output_mode": "coco_rle", **CASES[case]}
    generator = AutomaticMaskGenerator(sam, **parameters)
    whole = generator.generate(drawn_image())
    joined, join = [], crop._as_candidates
    monkeypatch.setattr(crop, "_MOST_HELD_BYTES", limit)
    monkeypatch.setattr(
        crop,
        "_as_candidates",
        lambda parts, *rest: joined.append(sum(p.nbytes for p in parts)) or join(parts, *rest),
    )
    assert generator.generate(drawn_image()) == whole
    assert len(whole) >= 5
    assert len(joined) >= 2
    assert max(joined) <= limit + 5 * 3 * 128 * 128 * 4


@pytest.mark.parametrize("seen", [(256, 256), (128, 256), (256, 101), (3, 256), (250, 7)])
def test_padding_makes_no_pixels(sam, seen):
    """What is left out is what no pixel of the image touches; the rest has the same values."""
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(6, 2)
    with torch.no_grad():
        whole = SharedImageDecoder(sam, embedding, torch.float32).decode(points, 2.0)
        part = SharedImageDecoder(sam, embedding, torch.float32, seen).decode(points, 2.0)
    assert part.kept.tolist() == whole.kept.tolist()
    assert 0 < len(part.kept) < 18
    assert part.low_size == whole.low_size == (128, 128)
    height, width = part.logits.shape[1:]
    # A low value is two pixels wide and is touched from one pixel beside it; four are made together.
    assert all(n <= min(128, side / 2 + 5) for n, side in zip((height, width), seen, strict=True))
    torch.testing.assert_close(part.logits, whole.logits[:, :height, :width], rtol=1e-5, atol=1e-4)
    size = (seen[0] * 2, seen[1] * 2)
    for left, low in zip(part.logits, whole.logits, strict=True):
        upsampler = RegionUpsampler((128, 128), 256, seen, size)
        regions = [upsampler.region(x.numpy(), above=-1e9) for x in (left, low)]
        assert [r.shape for r in regions] == [size[::-1]] * 2
        ours, stock = (np.concatenate([x for _, x in r.strips()]) for r in regions)
        np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-4)


def test_only_masks_above_the_quality_are_decoded(sam):
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(6, 2)
    with torch.no_grad():
        decoder = SharedImageDecoder(sam, embedding, torch.float32)
        every = decoder.decode(points, None)
        middle = every.quality.median().item()
        some = decoder.decode(points, middle)
    assert some.kept.tolist() == torch.nonzero(every.quality.flatten() > middle)[:, 0].tolist()
    torch.testing.assert_close(some.logits, every.logits[some.kept], rtol=1e-4, atol=1e-3)


def test_encoder_is_that_of_the_predictor(sam):
    image = drawn_image()
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    embedding, input_size = predictor.features, predictor.input_size
    with torch.no_grad():
        crop = encode_crop(predictor, image, torch.float32, PillowResize())
        stock = ModelDecoder(sam, embedding, torch.float32).decode(torch.tensor([[9.0, 9.0]]), None)
        ours = crop.decoder.decode(torch.tensor([[9.0, 9.0]]), None)
    assert crop.input_size == input_size == (192, 256)
    torch.testing.assert_close(ours.quality, stock.quality, atol=1e-4, rtol=1e-4)


def embedded_there(predictor, image, resize):
    """By the way of a GPU, whatever the device."""
    with torch.no_grad():
        return _embed_there(predictor, image, predictor.input_size, resize)


def test_an_image_that_is_set_on_the_device_is_the_predictors(sam):
    predictor, resize = SamPredictor(sam), PillowResize()
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (150, 200, 3), dtype=np.uint8)
        predictor.set_image(image)
        features = embedded_there(predictor, image, resize)
        assert torch.equal(predictor.get_image_embedding(), features)


def test_a_model_of_bgr_images_gets_them(sam, monkeypatch):
    monkeypatch.setattr(sam, "image_format", "BGR")
    predictor, image, resize = SamPredictor(sam), drawn_image(), PillowResize()
    predictor.set_image(image)
    expected = predictor.get_image_embedding()
    with torch.no_grad():
        here = encode_crop(predictor, image, torch.float32, resize).embedding
    assert torch.equal(here, expected)
    assert torch.equal(embedded_there(predictor, image[..., ::-1], resize), expected)


def test_points_are_embedded_as_by_the_prompt_encoder(sam):
    points = 256 * torch.rand(50, 2, dtype=torch.float64)
    labels = torch.ones((50, 1), dtype=torch.int)
    stock, _ = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    assert torch.equal(embed_points(sam.prompt_encoder, points), stock)


@pytest.mark.parametrize("shape", [((192, 256), (150, 200)), ((256, 120), (700, 328))])
def test_region_holds_all_pixels_above_and_the_same_values(shape):
    seen, size = shape
    rng = np.random.default_rng(0)
    upsampler = RegionUpsampler((128, 128), 256, seen, size)
    for _ in range(20):
        low = torch.full((128, 128), -5.0)
        y, x = rng.integers(0, 120, 2)
        low[y : y + rng.integers(1, 60), x : x + rng.integers(1, 60)] = 3.0
        low += torch.randn(128, 128) * 0.3
        full = F.interpolate(low[None, None], (256, 256), mode="bilinear")
        full = F.interpolate(full[..., : seen[0], : seen[1]], size, mode="bilinear")[0, 0]
        region = upsampler.region(low.numpy(), above=-1.0)
        if region is None:
            assert not (full > -1).any()
            continue
        logits = np.empty(region.shape, np.float32)
        for part, strip in region.strips():
            logits[part] = strip
        np.testing.assert_allclose(logits.T, full[region.rows, region.columns], atol=2e-5)
        assert (full > -1).sum() == (logits > -1).sum()


def test_bfloat16_gives_nearly_the_same_logits(sam):
    """Compared before the threshold: of random weights' masks, small parts lie near to it."""
    image, points = drawn_image(), 190 * torch.rand(6, 2)
    with torch.no_grad():
        exact, fast = (
            encode_crop(SamPredictor(sam), image, dtype, PillowResize()).decoder.decode(
                points, None
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert fast.logits.dtype == fast.quality.dtype == torch.float32
    assert (exact.quality - fast.quality).abs().max() < 0.1 * exact.quality.abs().max()
    assert (exact.logits - fast.logits).abs().mean() < 0.1 * exact.logits.std()
    parameters = {**LOOSE, "pred_iou_thresh": 1.0, "dtype": torch.bfloat16}
    assert AutomaticMaskGenerator(sam, **parameters).generate(image)


@pytest.mark.gpu
def test_cuda_gives_the_masks_of_the_cpu():
    parameters = {**LOOSE, "pred_iou_thresh": 1.0, "output_mode": "coco_rle"}
    sam = small_sam()
    cpu = AutomaticMaskGenerator(sam, **parameters).generate(drawn_image())
    gpu = AutomaticMaskGenerator(sam.cuda(), **parameters).generate(drawn_image())
    overlaps = coco.iou(*([r["segmentation"] for r in x] for x in (cpu, gpu)), [0] * len(gpu))
    assert np.median(overlaps.max(axis=1)) > 0.99


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"output_mode": "png"}, r"'png'.*binary_mask"),
        ({"dtype": torch.float16}, r"float16.*bfloat16"),
        ({"points_per_side": None}, "exactly one"),
        ({"point_grids": [np.zeros((1, 2))]}, "exactly one"),
        ({"points_per_side": None, "point_grids": [np.zeros((3, 3))]}, r"\(3, 3\)"),
        ({"points_per_side": 0}, "at least 1"),
        ({"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "layers"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
    ],
)
def test_parameter_errors(sam, parameters, message):
    with pytest.raises(ValueError, match=message):
        AutomaticMaskGenerator(sam, **parameters)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), int), np.zeros((0, 4, 3), np.uint8), "a"],
)
def test_image_errors(sam, image):
    with pytest.raises(ValueError, match=r"image is .*uint8 \(H, W, 3\)"):
        AutomaticMaskGenerator(sam, 2).generate(image)
