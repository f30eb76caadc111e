"""Generators with parts replaced as public callers replace them, against segment_anything's own.

Every change is made to a stock generator and to ours, each with a model of its own.
"""

import copy
import functools
import pickle
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, automatic_mask_generator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, image_encoder
from segment_anything.modeling.transformer import Attention
from segment_anything.utils.amg import MaskData
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from sfss_ray.errors import ConfigError
from sfss_ray.masks.automatic import AutomaticMaskGenerator
from sfss_ray.masks.sam import load_sam, shipped_small_sam
from sfss_ray.masks.stock_modules import is_stock, origin
from sfss_ray.streets.scenes import render_scene

SETTINGS = {
    "points_per_side": 3, "points_per_batch": 4, "pred_iou_thresh": 0.3, "box_nms_thresh": 0.8,
    "stability_score_thresh": 0.3, "stability_score_offset": 0.1, "output_mode": "coco_rle",
}  # fmt: skip
STOCK_CALLS = "made by the calls of segment_anything's own generator"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@functools.cache
def image(seed=5):
    return render_scene("camera", seed, 0).image


@functools.cache
def shipped_sam():
    return load_sam(shipped_small_sam())


def build(cls, **settings):
    return cls(copy.deepcopy(shipped_sam()), **{**SETTINGS, **settings})


def run_quietly(generator, picture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generator.generate(picture)


def results(change=lambda generator: None, picture=None, **settings):
    """Records of stock and of ours after the same change, and the warnings of ours."""
    picture = image() if picture is None else picture
    stock, ours = (
        build(c, **settings) for c in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    )
    change(stock)
    change(ours)
    expected = run_quietly(stock, picture)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ours.generate(picture)
    return expected, found, [str(w.message) for w in caught if STOCK_CALLS in str(w.message)]


@functools.cache
def unchanged():
    expected, found, texts = results()
    assert_same_masks(expected, found)
    assert texts == []
    return expected


def assert_same_masks(expected, found):
    assert len(expected) == len(found)
    for name in ("segmentation", "area", "bbox", "point_coords", "crop_box"):
        assert [a[name] for a in expected] == [b[name] for b in found]
    for name in ("predicted_iou", "stability_score"):
        np.testing.assert_allclose(
            [b[name] for b in found], [a[name] for a in expected], atol=5e-3, rtol=1e-4
        )


def negated(function):
    """A decoder's or predictor's function with the masks of the background."""

    def run(*args, **kwargs):
        masks, *others = function(*args, **kwargs)
        return (-masks, *others)

    return run


class Wrapper:
    """Hands everything on, and gives each point the masks of its neighbour."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def predict_torch(self, *args, **kwargs):
        masks, quality, low = self.inner.predict_torch(*args, **kwargs)
        return masks.roll(1, 0), quality.roll(1, 0), low


class KeepsLowQuality(SamPredictor):
    def predict_torch(self, *args, **kwargs):
        masks, quality, low = super().predict_torch(*args, **kwargs)
        return masks, 1 - quality, low


class Drawn:
    """Not a predictor of a Sam at all: three boxes at each point, with logits of +-1."""

    class model:
        mask_threshold = 0.0

    class transform:
        @staticmethod
        def apply_coords(coords, original_size):
            return coords

    device = torch.device("cpu")

    def set_image(self, picture):
        self.size = picture.shape[:2]

    def reset_image(self):
        self.size = None

    def predict_torch(self, points, labels, multimask_output, return_logits):
        y, x = torch.meshgrid(*(torch.arange(n) for n in self.size), indexing="ij")
        center = torch.maximum(
            (x - points[:, 0, 0, None, None]).abs(), (y - points[:, 0, 1, None, None]).abs()
        )
        masks = torch.stack([1.0 - 2.0 * (center > r) for r in (5, 11, 17)], dim=1)
        return masks, torch.tensor([[0.9, 0.95, 0.99]]).repeat(len(points), 1), masks


class NoMasks(KeepsLowQuality):
    def predict_torch(self, *args, **kwargs):
        masks, quality, low = SamPredictor.predict_torch(self, *args, **kwargs)
        return masks, 0 * quality, low


def set_wrapper(generator):
    generator.predictor = Wrapper(generator.predictor)


def set_subclass(generator):
    generator.predictor = KeepsLowQuality(generator.predictor.model)


def set_stub(generator):
    generator.predictor = Drawn()


def set_no_masks(generator):
    generator.predictor = NoMasks(generator.predictor.model)


def patch_set_image(generator):
    set_image = generator.predictor.set_image
    generator.predictor.set_image = lambda picture, *rest: set_image(picture[::-1], *rest)


def use_cached_embedding(generator):
    """An embedding made before, of another picture; set_image does nothing."""
    generator.predictor.set_image(image(7))
    generator.predictor.set_image = lambda *_: None
    generator.predictor.reset_image = lambda: None


def patch_set_torch_image(generator):
    set_torch = generator.predictor.set_torch_image
    generator.predictor.set_torch_image = lambda x, size: set_torch(255 - x, size)


def patch_predict_torch(generator):
    generator.predictor.predict_torch = negated(generator.predictor.predict_torch)


def patch_transform(generator):
    apply_image = generator.predictor.transform.apply_image
    generator.predictor.transform.apply_image = lambda picture: apply_image(255 - picture)


class Shifted(ResizeLongestSide):
    def apply_coords(self, coords, original_size):
        return super().apply_coords(coords, original_size) + 9


def set_transform(generator):
    generator.predictor.transform = Shifted(256)


def patch_postprocess_masks(generator):
    model = generator.predictor.model
    stock = model.postprocess_masks
    model.postprocess_masks = lambda *args: stock(*args).flip(-1)


def patch_decoder(generator):
    decoder = generator.predictor.model.mask_decoder
    decoder.forward = negated(decoder.forward)


def hook_decoder(generator):
    generator.predictor.model.mask_decoder.register_forward_hook(
        lambda m, i, out: (-out[0], out[1])
    )


def hook_layer(generator):
    layer = generator.predictor.model.mask_decoder.transformer.layers[1].mlp
    layer.register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0],))


class Steps(MaskDecoder):
    """Logits of +-1 alone, of which half lie exactly at the cut once they are enlarged."""

    def forward(self, **inputs):
        masks, quality = super().forward(**inputs)
        return masks.sign(), quality


def set_decoder_class(generator):
    generator.predictor.model.mask_decoder.__class__ = Steps


class Constant(nn.Module):
    def forward(self, image_embeddings, sparse_prompt_embeddings, **inputs):
        masks = image_embeddings[:, :3].repeat_interleave(len(sparse_prompt_embeddings), dim=0)
        quality = torch.linspace(0.2, 0.9, 3).expand(len(masks), -1)
        return masks.half(), quality


def set_decoder(generator):
    generator.predictor.model.mask_decoder = Constant()


def set_other_upscaling(generator):
    """Layers of the same classes with another geometry."""
    torch.manual_seed(0)
    upscaling = generator.predictor.model.mask_decoder.output_upscaling
    conv = nn.ConvTranspose2d(64, 16, kernel_size=4, stride=2, padding=1)
    upscaling[0] = conv


def set_other_projection(generator):
    attention = generator.predictor.model.mask_decoder.transformer.final_attn_token_to_image
    attention.v_proj = nn.Sequential(attention.v_proj, nn.ReLU())


def patch_prompts(generator):
    prompts = generator.predictor.model.prompt_encoder
    stock = prompts.forward
    prompts.forward = lambda points, boxes, masks: stock((points[0] + 7, points[1]), boxes, masks)


def patch_dense_pe(generator):
    prompts = generator.predictor.model.prompt_encoder
    stock = prompts.get_dense_pe
    prompts.get_dense_pe = lambda: 0.5 * stock()


def patch_pe_layer(generator):
    pe_layer = generator.predictor.model.prompt_encoder.pe_layer
    stock = pe_layer.forward_with_coords
    pe_layer.forward_with_coords = lambda coords, size: stock(coords.flip(-1), size)


def hook_prompts(generator):
    hook = lambda module, inputs, out: (0.5 * out[0], out[1])  # noqa: E731
    generator.predictor.model.prompt_encoder.register_forward_hook(hook)


def patch_batch(generator):
    stock = generator._process_batch
    generator._process_batch = lambda points, *rest: stock(points + 8, *rest)


def patch_crop(generator):
    stock = generator._process_crop
    generator._process_crop = lambda picture, *rest: stock(255 - picture, *rest)


def patch_generate_masks(generator):
    stock = generator._generate_masks

    def every_other(picture):
        data = stock(picture)
        data.filter(torch.arange(0, len(data["rles"]), 2))
        return data

    generator._generate_masks = every_other


SKIPPED = [
    (set_wrapper, r"generator\.predictor is a Wrapper, not segment_anything's SamPredictor"),
    (set_subclass, "generator.predictor is a KeepsLowQuality"),
    (set_stub, "generator.predictor is a Drawn"),
    (set_no_masks, "generator.predictor is a NoMasks"),
    (patch_set_image, "generator.predictor.set_image was replaced"),
    (use_cached_embedding, "generator.predictor.set_image was replaced"),
    (patch_set_torch_image, "generator.predictor.set_torch_image was replaced"),
    (patch_predict_torch, "generator.predictor.predict_torch was replaced"),
    (patch_transform, "generator.predictor.transform.apply_image was replaced"),
    (set_transform, "generator.predictor.transform is a Shifted"),
    (patch_postprocess_masks, "generator.predictor.model.postprocess_masks"),
    (patch_decoder, "model.mask_decoder.forward was replaced"),
    (hook_decoder, "model.mask_decoder has hooks"),
    (hook_layer, r"model\.mask_decoder\.transformer\.layers\.1\.mlp has hooks"),
    (set_decoder_class, "model.mask_decoder is a Steps, not segment_anything's MaskDecoder"),
    (set_decoder, "model.mask_decoder is a Constant"),
    (set_other_upscaling, "model.mask_decoder has other layers"),
    (set_other_projection, "model.mask_decoder has other layers"),
    (patch_prompts, "model.prompt_encoder.forward was replaced"),
    (patch_dense_pe, "model.prompt_encoder.get_dense_pe was replaced"),
    (patch_pe_layer, "model.prompt_encoder.pe_layer.forward_with_coords was replaced"),
    (hook_prompts, "model.prompt_encoder has hooks"),
    (patch_batch, "generator._process_batch was replaced"),
    (patch_crop, "generator._process_crop was replaced"),
    (patch_generate_masks, "generator._generate_masks was replaced"),
]


@pytest.mark.parametrize(("change", "clause"), SKIPPED, ids=lambda x: getattr(x, "__name__", ""))
def test_what_the_fast_path_would_skip_runs_as_in_stock(change, clause):
    """The same records to the last bit, and a warning that names what was replaced."""
    expected, found, texts = results(change)
    assert expected == found
    assert expected != unchanged()
    assert len(texts) == 1
    assert re.search(clause, texts[0])


def patched_class(owner, name, make):
    """A change of a class: (owner, name, replacement made of the present function)."""
    return pytest.param(owner, name, make, id=f"{owner.__name__}.{name}")


def returns(function, value):
    return lambda *args, **kwargs: value(function(*args, **kwargs))


IN_CLASSES = [
    patched_class(SamPredictor, "set_image", lambda f: lambda self, p: f(self, p[::-1])),
    patched_class(SamPredictor, "predict_torch", negated),
    patched_class(
        SamAutomaticMaskGenerator,
        "_process_batch",
        lambda f: lambda self, p, *r: f(self, p + 9, *r),
    ),
    patched_class(MaskDecoder, "forward", negated),
    patched_class(MaskDecoder, "predict_masks", negated),
    patched_class(PromptEncoder, "get_dense_pe", lambda f: returns(f, lambda pe: 0.5 * pe)),
    patched_class(Attention, "forward", lambda f: returns(f, lambda x: 0.8 * x)),
    patched_class(nn.ConvTranspose2d, "forward", lambda f: returns(f, lambda x: x.abs())),
    patched_class(ResizeLongestSide, "apply_image", lambda f: lambda self, p: f(self, 255 - p)),
    patched_class(automatic_mask_generator, "batched_nms", lambda f: returns(f, lambda x: x[:-1])),
    patched_class(
        automatic_mask_generator,
        "calculate_stability_score",
        lambda f: returns(f, lambda score: 1 - score),
    ),
]


@pytest.mark.parametrize(("owner", "name", "make"), IN_CLASSES)
def test_patches_of_classes_and_modules_count(owner, name, make, monkeypatch):
    unchanged()
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, functools.wraps(function)(make(function)))
    expected, found, texts = results()
    assert expected == found
    assert expected != unchanged()
    assert len(texts) == 1
    assert f".{name} was replaced" in texts[0]
    monkeypatch.undo()
    assert results()[2] == []


def test_a_hook_for_all_modules_counts():
    def halve(module, inputs, out):
        return 0.5 * out if isinstance(module, nn.Linear) else None

    unchanged()
    with nn.modules.module.register_module_forward_hook(halve):
        expected, found, texts = results()
    assert expected == found != unchanged()
    assert "a hook for all modules" in texts[0]


def test_a_wrapper_does_not_pass_for_the_function_it_wraps():
    """A patch counts even if it was made before this package was imported."""
    stock = SamPredictor.set_image
    patch = functools.wraps(stock)(lambda self, *args: stock(self, *args))
    assert patch.__qualname__ == "SamPredictor.set_image"
    assert origin(stock) == ("segment_anything.predictor", "SamPredictor.set_image")
    assert origin(patch)[0] == __name__
    assert origin(torch.no_grad()(patch))[0] == __name__
    assert origin(SamPredictor.predict_torch) == (
        "segment_anything.predictor",
        "SamPredictor.predict_torch",
    )


def other_model(generator):
    """A predictor of the stock class with another network."""
    model = load_sam(shipped_small_sam())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * parameter.std(correction=0) * torch.randn_like(parameter)
    generator.predictor = SamPredictor(model)


def swap_model(generator):
    scratch = copy.copy(generator)
    other_model(scratch)
    generator.predictor.model = scratch.predictor.model


def patch_embedding(generator):
    generator.predictor.get_image_embedding = lambda: 1 / 0


def patch_encoder(generator):
    encoder = generator.predictor.model.image_encoder
    stock = encoder.forward
    encoder.forward = lambda x: stock(x.flip(-2))


def hook_encoder(generator):
    generator.predictor.model.image_encoder.register_forward_hook(lambda m, i, out: out.flip(-1))


class Flat(nn.Module):
    """A picture's 8x8 cells, encoded by nothing."""

    img_size = 256

    def forward(self, x):
        return nn.functional.avg_pool2d(x, 8).repeat(1, 22, 1, 1)[:, :64].half()


def set_encoder(generator):
    generator.predictor.model.image_encoder = Flat()


def patch_preprocess(generator):
    model = generator.predictor.model
    stock = model.preprocess
    model.preprocess = lambda x: stock(255 - x)


def restore_methods(generator):
    """As pytest's monkeypatch leaves an instance."""
    generator._process_batch = generator._process_batch
    decoder = generator.predictor.model.mask_decoder
    decoder.forward = decoder.forward


KEPT = [other_model, swap_model, patch_encoder, hook_encoder, set_encoder, patch_preprocess]


@pytest.mark.parametrize("change", [*KEPT, patch_embedding, restore_methods])
def test_what_the_fast_path_runs_needs_no_stock_calls(change):
    expected, found, texts = results(change)
    assert_same_masks(expected, found)
    assert texts == []
    assert (expected != unchanged()) is (change in KEPT)


@pytest.mark.parametrize("name", ["forward", "get_rel_pos", "add_decomposed_rel_pos"])
def test_patches_of_the_image_encoders_code_count(name, monkeypatch):
    unchanged()
    owner = image_encoder if hasattr(image_encoder, name) else ImageEncoderViT
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, returns(function, lambda x: 0.5 * x))
    expected, found, texts = results()
    assert_same_masks(expected, found)
    assert texts == []
    assert expected != unchanged()


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
        found = build(Generator).generate(image())
    assert_same_masks(sorted(unchanged(), key=lambda record: -record["area"]), found)


def test_a_step_called_directly_is_stocks():
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


def assert_same_data(expected, found):
    assert isinstance(found, MaskData)
    assert len(expected["rles"]) > 0
    assert dict(expected.items()).keys() == dict(found.items()).keys()
    for name, value in expected.items():
        assert np.array_equal(value, found[name]), name


@pytest.mark.parametrize("holder", [AutomaticMaskGenerator, build], ids=["class", "instance"])
def test_small_regions_are_removed_by_stocks_static_method(holder):
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
    found = generator.postprocess_small_regions(data, 5, 0.7)
    assert found["rles"] == [rles[1]]
    assert found["iou_preds"].tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("area", [0, 30])
def test_an_overridden_removal_of_small_regions_runs_where_there_is_one(area):
    def change(generator):
        generator.postprocess_small_regions = lambda data, min_area, nms_thresh: data

    expected, found, texts = results(change, min_mask_region_area=area)
    assert_same_masks(expected, found)
    assert len(texts) == (area > 0)


ATTRIBUTES = {
    "points_per_batch": 7, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.4,
    "stability_score_offset": 0.2, "box_nms_thresh": 0.7, "crop_n_layers": 1, "crop_nms_thresh": 0.6,
    "crop_overlap_ratio": 0.4, "crop_n_points_downscale_factor": 1, "min_mask_region_area": 20,
    "output_mode": "coco_rle", "point_grids": [[[0.2, 0.3], [0.7, 0.6]], np.full((1, 2), 0.5)],
}  # fmt: skip


def by_hand(cls):
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


@pytest.mark.parametrize("make", [by_hand, with_another_constructor, changed_later])
def test_stocks_attributes_alone_are_enough(make):
    expected = run_quietly(make(SamAutomaticMaskGenerator), image())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = make(AutomaticMaskGenerator).generate(image())
    assert len(expected) >= 3
    assert_same_masks(expected, found)


@pytest.mark.parametrize(
    "grid",
    [
        [[0, 0], [1, 1]],
        ((0.25, 0.5), (0.5, 0.25)),
        np.array([[0.25, 0.5], [0.75, 0.3]], np.float32),
        np.array([[0.3, 0.6], [0.8, 0.8]], np.float16),
        np.linspace(0.1, 0.9, 12).reshape(2, 6).T[::2],
    ],
    ids=["whole numbers", "tuples", "float32", "float16", "view"],
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
    expected, found, _ = results(change, **settings)
    assert len(expected) >= 2
    assert_same_masks(expected, found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points_per_batch", 0, "points_per_batch is 0"),
        ("crop_n_layers", 2, "needed are 3 arrays"),
        ("point_grids", [[]], "point_grids have shapes"),
    ],
)
def test_attributes_that_cannot_work_get_one_line(name, value, message):
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


def test_a_deep_copy_keeps_what_was_replaced():
    generator = build(AutomaticMaskGenerator)
    generator.predictor = KeepsLowQuality(generator.predictor.model)
    expected = results(set_subclass)[0]
    assert run_quietly(copy.deepcopy(generator), image()) == expected
    assert run_quietly(pickle.loads(pickle.dumps(generator)), image()) == expected


def test_each_generator_warns_once_and_names_the_caller():
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


def test_stocks_calls_are_made_in_float32_and_the_warning_tells():
    generator = build(AutomaticMaskGenerator, dtype=torch.bfloat16)
    patch_predict_torch(generator)
    with pytest.warns(UserWarning, match=r"in float32 although dtype is torch\.bfloat16"):
        found = generator.generate(image())
    assert found == results(patch_predict_torch)[0]


def test_a_part_that_is_put_back_is_not_replaced():
    generator = build(AutomaticMaskGenerator)
    decoder = generator.predictor.model.mask_decoder
    hook = decoder.register_forward_hook(lambda module, inputs, out: None)
    assert not is_stock(generator.predictor.model)
    hook.remove()
    assert is_stock(generator.predictor.model)
    assert_same_masks(unchanged(), generator.generate(image()))


class ManyFeatures(ImageEncoderViT):
    """As of SAM-HQ: an embedding, and what the blocks made on the way."""

    def forward(self, x):
        embedding = super().forward(x)
        return embedding, [self.patch_embed(x)]


class FeatureDecoder(MaskDecoder):
    def forward(self, image_embeddings, interm_embeddings, hq_token_only, **inputs):
        assert hq_token_only is False
        masks, quality = super().forward(image_embeddings, **inputs)
        return masks + interm_embeddings[0].mean(), quality


class FeaturePredictor(SamPredictor):
    """A predictor that hands the features of ManyFeatures to a FeatureDecoder."""

    def set_torch_image(self, transformed_image, original_image_size):
        super().set_torch_image(transformed_image, original_image_size)
        self.features, self.interm_features = self.features

    @torch.no_grad()
    def predict_torch(self, coords, labels, multimask_output=True, return_logits=False):
        sparse, dense = self.model.prompt_encoder((coords, labels), None, None)
        low, quality = self.model.mask_decoder(
            image_embeddings=self.features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            hq_token_only=False,
            interm_embeddings=self.interm_features,
        )
        masks = self.model.postprocess_masks(low, self.input_size, self.original_size)
        return masks, quality, low


def many_features(generator, decoder=True):
    model = generator.predictor.model
    model.image_encoder.__class__ = ManyFeatures
    if decoder:
        model.mask_decoder.__class__ = FeatureDecoder


def with_its_predictor(generator):
    many_features(generator)
    generator.predictor = FeaturePredictor(generator.predictor.model)


def test_a_variant_with_more_features_works_with_its_own_predictor():
    expected, found, texts = results(with_its_predictor)
    assert expected == found
    assert expected not in ([], unchanged())
    assert len(texts) == 1


@pytest.mark.parametrize("decoder", [True, False], ids=["its decoder", "stock decoder"])
def test_an_encoder_of_several_features_needs_another_predictor(decoder):
    generator = build(AutomaticMaskGenerator)
    many_features(generator, decoder)
    with pytest.raises(
        ConfigError, match=r"\(ManyFeatures\) returns a tuple.* set generator\.predic"
    ):
        run_quietly(generator, image())


def test_a_decoder_of_other_arguments_needs_another_predictor():
    generator = build(AutomaticMaskGenerator)
    generator.predictor.model.mask_decoder.__class__ = FeatureDecoder
    with pytest.raises(
        ConfigError, match=r"\(FeatureDecoder\) cannot be called.*interm_embeddings"
    ):
        run_quietly(generator, image())


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError])
def test_errors_of_replaced_parts_are_the_callers(kind):
    def fail(*args, **kwargs):
        raise kind("of the caller")

    generator = build(AutomaticMaskGenerator)
    generator.predictor.predict_torch = fail
    with pytest.raises(kind, match="of the caller"):
        run_quietly(generator, image())


def test_without_pycocotools_stocks_calls_name_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    generator = build(AutomaticMaskGenerator)
    assert_same_masks(unchanged(), generator.generate(image()))
    patch_predict_torch(generator)
    with pytest.raises(ConfigError, match="needs pycocotools: install it, or set output_mode"):
        run_quietly(generator, image())
    generator.output_mode = "uncompressed_rle"
    assert run_quietly(generator, image())
