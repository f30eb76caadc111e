"""Models of transformers against transformers' own forward pass and mask-generation pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image
from random_sam import assert_nearly_same_masks, drawn_image

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.measure_gpu import FullImageUpsampler
from sfss_ray.masks.sam.transformers_model import TransformersModel, check_weights, kind_of_module

transformers = pytest.importorskip("transformers")
from family_models import MODELS, pipeline_masks  # noqa: E402
from family_predictor import stock_records  # noqa: E402

SETTINGS = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.3}
NMS = 0.97


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def both(model, image, side, crops):
    """Return the pipeline's RLEs and scores, and our records by its convention."""
    runs, scores = pipeline_masks(
        model, image, points_per_crop=side, crops_n_layers=crops, crops_nms_thresh=NMS, **SETTINGS
    )
    generator = AutomaticMaskGenerator(
        model, side, crop_n_layers=crops, crop_nms_thresh=NMS, convention="transformers",
        output_mode="uncompressed_rle", **SETTINGS,
    )  # fmt: skip
    return runs, scores, generator.generate(image)


@pytest.mark.parametrize("crops", [0, 1])
def test_masks_are_those_of_the_pipeline_in_its_order(model, crops):
    total = 0
    for seed in range(3):
        runs, scores, records = both(model, drawn_image(seed=seed), 8, crops)
        total += len(runs)
        assert [run["counts"] for run in runs] == [r["segmentation"]["counts"] for r in records]
        expected = pytest.approx(scores.tolist(), rel=1e-4, abs=1e-5)
        assert [record["predicted_iou"] for record in records] == expected
    assert total >= 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_n_layers": 1, "crop_nms_thresh": 0.98, "crop_n_points_downscale_factor": 2},
        {"min_mask_region_area": 30},
    ],
    ids=["whole image", "crops", "small regions"],
)
def test_all_parameters_mean_the_same_as_in_segment_anythings_generator(model, changes):
    """Its generator runs the same network by a predictor that calls transformers."""
    settings = {
        "points_per_side": 8, "box_nms_thresh": 0.95, "stability_score_offset": 0.8,
        "output_mode": "coco_rle", **SETTINGS, **changes,
    }  # fmt: skip
    image = drawn_image(80, 200)
    expected = stock_records(model, image, **settings)
    ours = AutomaticMaskGenerator(model, **settings).generate(image)
    assert_nearly_same_masks([(expected, ours)], at_least=1)


@pytest.mark.slow
@pytest.mark.parametrize("crops", [0, 1])
@pytest.mark.parametrize("kind", ["hf_sam", "sam2"])
def test_masks_of_camvid_are_those_of_the_pipeline(kind, crops, shared_data):
    """Of all masks, 99 % are equal byte for byte; count and order are equal on every image."""
    model, total, equal = MODELS[kind](), 0, 0
    paths = sorted((shared_data("camvid") / "images").rglob("*.jpg"))[::20][:22]
    for path in paths:
        runs, _, records = both(model, np.asarray(Image.open(path).convert("RGB")), 6, crops)
        assert len(runs) == len(records)
        for run, record in zip(runs, records, strict=True):
            total, equal = total + 1, equal + (run["counts"] == record["segmentation"]["counts"])
    assert len(paths) >= 20
    assert total >= 40
    assert equal >= 0.99 * total


@torch.no_grad()
def test_logits_and_scores_are_those_of_the_models_forward_pass(model):
    image, points = drawn_image(), np.random.default_rng(0).uniform((0, 0), (200, 150), (7, 2))
    wrapped = TransformersModel(model)
    crop = wrapped.encode(image, torch.float32)
    inputs = wrapped.processor(images=Image.fromarray(image), return_tensors="pt")
    prompts = crop.to_model_input(points.astype(np.float32))
    expected = model(
        pixel_values=inputs["pixel_values"],
        input_points=prompts[None, :, None],
        input_labels=torch.ones(1, 7, 1, dtype=torch.int64),
    )
    decoded = crop.decoder.decode(prompts, None)
    torch.testing.assert_close(decoded.predicted_iou, expected.iou_scores[0], atol=1e-5, rtol=1e-4)
    logits = expected.pred_masks[0].flatten(0, 1)
    h, w = decoded.logits.shape[1:]
    assert (decoded.logits - logits[:, :h, :w]).abs().max() < 2e-5 * logits.abs().max()


@torch.no_grad()
def test_logits_are_enlarged_as_by_the_image_processor(model):
    wrapped, image = TransformersModel(model), drawn_image(70, 40)
    crop = wrapped.encode(image, torch.float32)
    point = crop.to_model_input(np.array([[20.0, 30.0]]))
    low = crop.decoder.decode(point, None)
    sizes = {} if wrapped.kind != "hf_sam" else {"reshaped_input_sizes": [crop.input_size]}
    outputs = wrapped._call(levels_of(wrapped, image), point)
    expected = wrapped.processor.post_process_masks(
        [outputs[0]], [(70, 40)], binarize=False, **sizes
    )[0][0]
    (enlarged,) = FullImageUpsampler(low.low_size, *crop.upsampling_sizes).chunks(low.logits)
    torch.testing.assert_close(enlarged, expected, atol=1e-4, rtol=1e-4)


def levels_of(wrapped, image):
    features = wrapped.model.get_image_embeddings(wrapped._pixel_values(image))
    return features if isinstance(features, list) else [features]


@torch.no_grad()
def test_points_reach_the_corners_of_the_model_input(model):
    wrapped = TransformersModel(model)
    crop = wrapped.encode(drawn_image(60, 120), torch.float32)
    corner = crop.to_model_input(np.array([[120.0, 60.0]])).tolist()[0]
    side = wrapped.input_side
    assert corner == pytest.approx([side, side / 2 if wrapped.kind == "hf_sam" else side])


def test_a_decoder_with_a_hook_runs_itself_and_gives_the_same_masks(model):
    image, changed = drawn_image(), MODELS[TransformersModel(model).kind]()
    settings = {"points_per_side": 5, "output_mode": "uncompressed_rle", **SETTINGS}
    expected = AutomaticMaskGenerator(model, **settings).generate(image)
    calls = []
    changed.mask_decoder.register_forward_hook(lambda *_: calls.append(1))
    records = AutomaticMaskGenerator(changed, **settings).generate(image)
    assert [r["segmentation"] for r in records] == [r["segmentation"] for r in expected]
    assert len(calls) >= 2
    assert len(records) >= 1


def test_bfloat16_gives_about_the_same_scores(model):
    wrapped, points = TransformersModel(model), 100 * torch.rand(6, 2)
    with torch.no_grad():
        exact, fast = (
            wrapped.encode(drawn_image(), dtype).decoder.decode(points, None)
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert fast.logits.dtype == fast.predicted_iou.dtype == torch.float32
    assert (exact.logits - fast.logits).abs().mean() < 0.15 * exact.logits.std()


@pytest.mark.parametrize("size", [(1, 1), (3, 31), (31, 5), (2, 200)])
def test_images_of_few_pixels_have_masks(model, size):
    records = AutomaticMaskGenerator(
        model, 3, pred_iou_thresh=-100.0, stability_score_thresh=0.0
    ).generate(drawn_image(*size))
    assert len(records) >= 1
    assert all(record["segmentation"].shape == size for record in records)


def test_floats_are_images_from_0_to_1(model):
    wrapped, image = TransformersModel(model), drawn_image()
    pixels = wrapped._pixel_values(image)
    assert torch.equal(wrapped._pixel_values(image / np.float32(255) + 1e-4), pixels)


def test_the_callers_model_can_still_be_trained(model):
    AutomaticMaskGenerator(model, 2).generate(drawn_image(20, 30))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_kinds_are_told_from_the_class():
    assert [kind_of_module(build()) for build in MODELS.values()] == ["hf_sam", "sam2", "sam3"]
    with pytest.raises(ConfigError, match=r"model is a Linear; allowed are .*Sam2Model"):
        kind_of_module(torch.nn.Linear(1, 1))


def test_weights_that_cannot_be_used_are_refused():
    network = torch.nn.Sequential(torch.nn.Linear(1, 1).half())
    with pytest.raises(ConfigError, match=r"Linear is on the meta device.*load it with weights"):
        check_weights(torch.nn.Linear(1, 1, device="meta"))
    with pytest.raises(
        ConfigError, match=r"Sequential are torch\.float16 and must be float32: call"
    ):
        check_weights(network, network[0])
    check_weights(network)
