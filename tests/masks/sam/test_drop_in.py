"""Uses of segment_anything's generator in public code, with our generator."""

import copy
import pickle
import sys
import warnings
from unittest.mock import patch

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.utils.amg import MaskData
from stock_pairs import (
    STOCK_CALLS,
    KeepsLowQuality,
    assert_same_masks,
    build,
    image,
    patch_predict_torch,
    results,
    run_quietly,
    set_subclass,
    set_wrapper,
    unchanged,
)

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.masks.sam.stock_modules import is_stock


def shifted_points(base):
    class Generator(base):
        def _process_batch(self, points, im_size, crop_box, orig_size):
            data = super()._process_batch(points + 9, im_size, crop_box, orig_size)
            assert isinstance(data, MaskData)
            data.filter(data["iou_preds"] < 0.95)
            return data

    return Generator


def inverted_crops(base):
    class Generator(base):
        def _process_crop(self, picture, crop_box, crop_layer_idx, orig_size):
            return super()._process_crop(255 - picture, crop_box, crop_layer_idx, orig_size)

    return Generator


def first_masks(base):
    class Generator(base):
        def _generate_masks(self, picture):
            data = super()._generate_masks(picture)
            data.filter(torch.arange(3))
            return data

    return Generator


@pytest.mark.parametrize("settings", [{}, {"crop_n_layers": 1}], ids=["image", "crops"])
@pytest.mark.parametrize("make", [shifted_points, inverted_crops, first_masks])
def test_subclasses_override_the_steps(make, settings):
    settings = {"pred_iou_thresh": 0.1, **settings}
    stock, ours = (
        build(make(c), **settings) for c in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    )
    expected = run_quietly(stock, image())
    with pytest.warns(UserWarning, match=STOCK_CALLS):
        assert ours.generate(image()) == expected
    assert len(expected) >= 3


def test_an_overridden_generate_gets_the_fast_masks():
    class Generator(AutomaticMaskGenerator):
        def generate(self, picture):
            return sorted(super().generate(picture), key=lambda record: -record["area"])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = build(Generator).generate(image())
    assert_same_masks(sorted(unchanged(), key=lambda record: -record["area"]), ours)


def test_a_step_called_directly_is_the_stock_step():
    stock, ours = (build(c) for c in (SamAutomaticMaskGenerator, AutomaticMaskGenerator))
    assert isinstance(ours, SamAutomaticMaskGenerator)
    height, width = image().shape[:2]
    box = [20, 10, width, height]
    crops = [g._process_crop(image(), box, 0, (height, width)) for g in (stock, ours)]
    assert_same_data(*crops)
    points = np.array([[30.0, 40.0], [100.0, 60.0]])
    for generator in (stock, ours):
        generator.predictor.set_image(image())
    whole = [0, 0, width, height]
    assert_same_data(
        *(g._process_batch(points, (height, width), whole, (height, width)) for g in (stock, ours))
    )
    assert_same_data(*(g._generate_masks(image()) for g in (stock, ours)))


def assert_same_data(expected, ours):
    assert isinstance(ours, MaskData)
    assert len(expected["rles"]) > 0
    assert dict(expected.items()).keys() == dict(ours.items()).keys()
    for name, value in expected.items():
        assert np.array_equal(value, ours[name]), name


@pytest.mark.parametrize("holder", [AutomaticMaskGenerator, build], ids=["class", "instance"])
def test_small_regions_are_removed_by_the_stock_static_method(holder):
    """A ring of 64 pixels with a hole of 4 and an island of 1, and a copy without them."""
    ring = np.zeros((12, 12), bool)
    ring[2:10, 2:10] = True
    clean = ring.copy()
    ring[5:7, 5:7] = False
    ring[0, 11] = True
    rles = [
        {"size": [12, 12], "counts": np.diff(np.flatnonzero(edges)).tolist()}
        for edges in (
            np.concatenate([[True], np.diff(mask.T.ravel().astype(int)) != 0, [True]])
            for mask in (ring, clean)
        )
    ]
    boxes = torch.tensor([[2, 0, 11, 9], [2, 2, 9, 9]])
    data = MaskData(rles=list(rles), boxes=boxes, iou_preds=torch.tensor([0.5, 0.9]))
    generator = holder if isinstance(holder, type) else build(AutomaticMaskGenerator)
    cleaned = generator.postprocess_small_regions(data, 5, 0.7)
    assert cleaned["rles"] == [rles[1]]
    assert cleaned["iou_preds"].tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("area", [0, 30])
def test_an_overridden_removal_of_small_regions_runs_if_it_is_used(area):
    def change(generator):
        generator.postprocess_small_regions = lambda data, min_area, nms_thresh: data

    expected, ours, warning_texts = results(change, min_mask_region_area=area)
    assert_same_masks(expected, ours)
    assert len(warning_texts) == (area > 0)


ATTRIBUTES = {
    "points_per_batch": 7, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.4,
    "stability_score_offset": 0.2, "box_nms_thresh": 0.7, "crop_n_layers": 1, "crop_nms_thresh": 0.6,
    "crop_overlap_ratio": 0.4, "crop_n_points_downscale_factor": 1, "min_mask_region_area": 20,
    "output_mode": "coco_rle", "point_grids": [[[0.2, 0.3], [0.7, 0.6]], np.full((1, 2), 0.5)],
}  # fmt: skip


def without_constructor(cls):
    generator = object.__new__(cls)
    for name, value in ATTRIBUTES.items():
        setattr(generator, name, value)
    generator.predictor = SamPredictor(load_sam(shipped_small_sam()))
    return generator


def with_another_constructor(cls):
    class Generator(cls):
        def __init__(self, predictor, **attributes):
            self.predictor = predictor
            for name, value in attributes.items():
                setattr(self, name, value)

    return Generator(SamPredictor(load_sam(shipped_small_sam())), **ATTRIBUTES)


def changed_later(cls):
    generator = build(cls)
    for name, value in ATTRIBUTES.items():
        setattr(generator, name, value)
    return generator


@pytest.mark.parametrize("make", [without_constructor, with_another_constructor, changed_later])
def test_the_stock_attributes_suffice(make):
    expected = run_quietly(make(SamAutomaticMaskGenerator), image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = make(AutomaticMaskGenerator).generate(image())
    assert len(expected) >= 3
    assert_same_masks(expected, ours)


@pytest.mark.parametrize(
    "grid",
    [
        [[0, 0], [1, 1]],
        ((0.25, 0.5), (0.5, 0.25)),
        np.array([[0.25, 0.5], [0.75, 0.3]], np.float32),
        np.array([[0.3, 0.6], [0.8, 0.8]], np.float16),
        np.linspace(0.1, 0.9, 12).reshape(2, 6).T[::2],
    ],
    ids=["integers", "tuples", "float32", "float16", "view"],
)
@pytest.mark.parametrize("later", [False, True])
def test_point_grids_are_those_of_the_caller(grid, later):
    settings = {"pred_iou_thresh": -1.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    if later:
        change = lambda generator: setattr(generator, "point_grids", [grid])  # noqa: E731
    else:
        change, settings = (
            lambda _: None,
            {**settings, "points_per_side": None, "point_grids": [grid]},
        )
    expected, ours, _ = results(change, **settings)
    assert len(expected) >= 2
    assert_same_masks(expected, ours)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points_per_batch", 0, "points_per_batch is 0"),
        ("crop_n_layers", 2, "needed are 3 arrays"),
        ("point_grids", [[]], "point_grids have shapes"),
    ],
)
def test_attributes_out_of_range_are_refused_in_one_line(name, value, message):
    generator = build(AutomaticMaskGenerator)
    setattr(generator, name, value)
    with pytest.raises(ConfigError, match=message):
        generator.generate(image())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda g: pickle.loads(pickle.dumps(g))]
)
@pytest.mark.parametrize("used", [False, True])
def test_copies_make_the_same_masks(copied, used):
    generator = build(AutomaticMaskGenerator)
    if used:
        generator.generate(image())
    assert_same_masks(unchanged(), copied(generator).generate(image()))


def test_a_deep_copy_keeps_replaced_parts():
    generator = build(AutomaticMaskGenerator)
    generator.predictor = KeepsLowQuality(generator.predictor.model)
    expected = results(set_subclass)[0]
    assert run_quietly(copy.deepcopy(generator), image()) == expected
    assert run_quietly(pickle.loads(pickle.dumps(generator)), image()) == expected


def test_each_generator_warns_once_at_the_callers_line():
    generator = build(AutomaticMaskGenerator)
    patch_predict_torch(generator)
    with pytest.warns(UserWarning, match=STOCK_CALLS) as caught:
        generator.generate(image())
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.filterwarnings("error", STOCK_CALLS)
        generator.generate(image())
    other = build(AutomaticMaskGenerator)
    set_wrapper(other)
    with pytest.warns(UserWarning, match="is a Wrapper"):
        other.generate(image())


def test_stock_calls_run_in_float32_and_the_warning_says_so():
    generator = build(AutomaticMaskGenerator, dtype=torch.bfloat16)
    patch_predict_torch(generator)
    with pytest.warns(UserWarning, match=r"in float32 although dtype is torch\.bfloat16"):
        ours = generator.generate(image())
    assert ours == results(patch_predict_torch)[0]


def test_a_restored_part_is_not_replaced():
    generator = build(AutomaticMaskGenerator)
    decoder = generator.predictor.model.mask_decoder
    hook = decoder.register_forward_hook(lambda module, inputs, out: None)
    assert not is_stock(generator.predictor.model)
    hook.remove()
    assert is_stock(generator.predictor.model)
    assert_same_masks(unchanged(), generator.generate(image()))


def test_features_as_a_property_of_the_predictors_class(monkeypatch):
    unchanged()

    def keep_half(self, value):
        vars(self)["halved"] = None if value is None else 0.5 * value

    features = property(lambda self: vars(self)["halved"], keep_half)
    monkeypatch.setattr(SamPredictor, "features", features, raising=False)
    expected, ours, warning_texts = results()
    assert expected == ours != unchanged()
    assert "generator.predictor.features was replaced" in warning_texts[0]


def test_a_mock_that_wraps_a_method_is_called():
    generator = build(AutomaticMaskGenerator)
    predictor = generator.predictor
    with patch.object(predictor, "set_image", wraps=predictor.set_image) as set_image:
        ours = run_quietly(generator, image())
    set_image.assert_called_once()
    assert ours == unchanged()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_masks(unchanged(), generator.generate(image()))


def test_a_transform_of_another_size_fails_as_in_stock():
    for cls in (SamAutomaticMaskGenerator, AutomaticMaskGenerator):
        generator = build(cls)
        generator.predictor.transform.target_length = 128
        with pytest.raises(AssertionError, match="BCHW with long side 256"):
            run_quietly(generator, image())


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError])
def test_errors_of_replaced_parts_reach_the_caller(kind):
    def fail(*args, **kwargs):
        raise kind("of the caller")

    generator = build(AutomaticMaskGenerator)
    generator.predictor.predict_torch = fail
    with pytest.raises(kind, match="of the caller"):
        run_quietly(generator, image())


def test_stock_calls_without_pycocotools_name_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    generator = build(AutomaticMaskGenerator)
    assert_same_masks(unchanged(), generator.generate(image()))
    patch_predict_torch(generator)
    with pytest.raises(ConfigError, match="needs pycocotools: install it, or set output_mode"):
        run_quietly(generator, image())
    generator.output_mode = "uncompressed_rle"
    assert run_quietly(generator, image())
