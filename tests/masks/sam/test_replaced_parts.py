"""Parts replaced as in public code: the stock calls run if the fast path would skip one."""

import copy
import functools
import re

import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, automatic_mask_generator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, image_encoder
from segment_anything.modeling.transformer import Attention
from segment_anything.utils.transforms import ResizeLongestSide
from stock_pairs import (
    KeepsLowQuality,
    assert_same_masks,
    image,
    negated,
    patch_predict_torch,
    results,
    set_subclass,
    set_wrapper,
    unchanged,
)
from torch import nn

from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam


class Drawn:
    """A predictor without a Sam: three boxes at each point, with logits of +-1."""

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


def set_stub(generator):
    generator.predictor = Drawn()


def set_no_masks(generator):
    generator.predictor = NoMasks(generator.predictor.model)


def patch_set_image(generator):
    set_image = generator.predictor.set_image
    generator.predictor.set_image = lambda picture, *rest: set_image(picture[::-1], *rest)


def use_cached_embedding(generator):
    """Use an embedding of another picture; set_image does nothing."""
    generator.predictor.set_image(image(7))
    generator.predictor.set_image = lambda *_: None
    generator.predictor.reset_image = lambda: None


def patch_set_torch_image(generator):
    set_torch = generator.predictor.set_torch_image
    generator.predictor.set_torch_image = lambda x, size: set_torch(255 - x, size)


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
    """Logits of +-1, of which half lie exactly at the threshold once they are enlarged."""

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
    """Set layers of the same classes with another geometry."""
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
def test_parts_that_the_fast_path_would_skip_run_as_in_stock(change, clause):
    """The records are equal to the last bit, and a warning names the replaced part."""
    expected, ours, warning_texts = results(change)
    assert expected == ours
    assert expected != unchanged()
    assert len(warning_texts) == 1
    assert re.search(clause, warning_texts[0])


def patched_class(owner, name, make):
    """Return a change of a class: owner, name, and a function from the present method to the new one."""
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
    expected, ours, warning_texts = results()
    assert expected == ours
    assert expected != unchanged()
    assert len(warning_texts) == 1
    assert f".{name} was replaced" in warning_texts[0]
    monkeypatch.undo()
    assert results()[2] == []


def test_a_hook_for_all_modules_counts():
    def halve(module, inputs, out):
        return 0.5 * out if isinstance(module, nn.Linear) else None

    unchanged()
    with nn.modules.module.register_module_forward_hook(halve):
        expected, ours, warning_texts = results()
    assert expected == ours != unchanged()
    assert "a hook for all modules" in warning_texts[0]


def other_model(generator):
    """Set a predictor of the stock class with another network."""
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
    """Returns the mean colours of 8x8 cells."""

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
    """Leave bound methods on the instances, as pytest's monkeypatch does."""
    generator._process_batch = generator._process_batch
    decoder = generator.predictor.model.mask_decoder
    decoder.forward = decoder.forward


RUN_BY_FAST_PATH = [
    other_model,
    swap_model,
    patch_encoder,
    hook_encoder,
    set_encoder,
    patch_preprocess,
]


@pytest.mark.parametrize("change", [*RUN_BY_FAST_PATH, patch_embedding, restore_methods])
def test_parts_that_the_fast_path_runs_need_no_stock_calls(change):
    expected, ours, warning_texts = results(change)
    assert_same_masks(expected, ours)
    assert warning_texts == []
    assert (expected != unchanged()) is (change in RUN_BY_FAST_PATH)


@pytest.mark.parametrize("name", ["forward", "get_rel_pos", "add_decomposed_rel_pos"])
def test_patches_of_the_image_encoders_code_count(name, monkeypatch):
    unchanged()
    owner = image_encoder if hasattr(image_encoder, name) else ImageEncoderViT
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, returns(function, lambda x: 0.5 * x))
    expected, ours, warning_texts = results()
    assert_same_masks(expected, ours)
    assert warning_texts == []
    assert expected != unchanged()
