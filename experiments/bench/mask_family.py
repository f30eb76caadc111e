"""Compare the mask generator with the mask-generation pipeline of transformers. See masks.py.

Both get the same network with random weights, the same image and the same points, in one process. The
last layer of the IoU head is shifted so that a share of PASSING candidates passes .88. Nothing else is
replaced, except in rows of drawn masks: random weights make soft borders that no trained network makes,
so there both decoders do their work and return the logits of drawn objects, as in the rows of ViT-B.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mask_images import Options, camvid, quiet
from mask_models import PASSING, draw_masks, drawn_shared_decoder, drawn_stock_order
from PIL import Image
from records import machine, seconds_of

from sfss_ray.masks.sam import conventions, transformers_model
from sfss_ray.masks.sam.factored_decoder import FactoredDecoder
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.reference_decoder import FamilyReferenceDecoder
from sfss_ray.masks.sam.transformers_model import TransformersModel

FAMILY = ("hf_sam", "sam2", "sam3")
SIZES = ("small", "published")
_POINTS_PER_SIDE = {"small": 16, "published": 32}
_NMS = 0.97  # masks of random weights overlap more than objects do
_STABILITY = 0.3  # borders of random weights are soft
_SMALL_SIDE = {"hf_sam": 256, "sam2": 256, "sam3": 224}


def family(options: Options, kind: str, size: str, masks: str = "random") -> dict[str, Any]:
    """Time both programs on CamVid images in turns, and count equal masks.

    Args:
        options: `images` are compared, but only one with a published size. Times are medians on the
            first image: `stock_repeats` times both programs run once each, then ours until it has run
            `repeats` times.
        kind: hf_sam, sam2 or sam3.
        size: "small", or "published": SAM's ViT-B, SAM 2.1's tiny Hiera, SAM 3.
        masks: "random", or "drawn" for sam2.
    """
    model = random_family_model(kind, size).to(options.device)
    wrapped = TransformersModel(model)
    images = camvid(options, 1 if size == "published" else options.images)
    side = _POINTS_PER_SIDE[size]
    side = options.points_per_side or side
    reference, ours = _pipeline(wrapped, options, side), _generator(model, side)
    counts = {"checked": 0, "decoded_again": 0}
    drawn = _drawn_masks(model, side, images[0]) if masks == "drawn" else nullcontext()
    with quiet(), drawn, _counting(counts):
        turns = _take_turns(reference, ours, images[0], options)
        pairs = [turns.pop("first")]
        pairs += [(reference(image), ours(image)) for image in images[1:]]
    equal = [a == b for expected, actual in pairs for a, b in zip(expected, actual, strict=False)]
    return {
        **turns,
        "images": len(images),
        "same_count": sum(len(expected) == len(actual) for expected, actual in pairs),
        "reference_masks": sum(len(expected) for expected, _ in pairs),
        "identical": sum(equal),
        "decoded_again_percent": round(100 * counts["decoded_again"] / max(1, counts["checked"])),
        "points": side**2,
        **machine(options.device),
    }


def _take_turns(reference: Any, ours: Any, image: np.ndarray, options: Options) -> dict[str, Any]:
    """Return the median seconds of both programs, and `first`, the last result of each."""
    seconds: dict[Any, list[float]] = {reference: [], ours: []}
    results: dict[Any, Any] = {}
    for turn in range(max(options.repeats, options.stock_repeats)):
        for program in (reference, ours) if turn < options.stock_repeats else (ours,):
            spent, results[program] = seconds_of(partial(program, image), options.device)
            seconds[program].append(spent)
    reference_seconds, our_seconds = median(seconds[reference]), median(seconds[ours])
    return {
        "reference_seconds": reference_seconds,
        "our_seconds": our_seconds,
        "times_faster": round(reference_seconds / our_seconds, 1),
        "first": (results[reference], results[ours]),
    }


@contextmanager
def _counting(counts: dict[str, int]) -> Iterator[None]:
    """Count the masks that survive all filters, and those of them that are decoded again."""
    recompute = conventions.recompute_ambiguous

    def count(crop: Any, candidates: Any) -> Any:
        masks = getattr(candidates.masks, "masks", [])
        counts["checked"] += len(masks)
        counts["decoded_again"] += sum(mask.ambiguous for mask in masks)
        return recompute(crop, candidates)

    with patch.object(conventions, "recompute_ambiguous", count):
        yield


@contextmanager
def _drawn_masks(model: Any, side: int, image: np.ndarray) -> Iterator[None]:
    """Let the decoders of both programs do their work inside the block and return drawn logits."""
    low_side = 4 * model.prompt_encoder.image_embedding_size[0]
    input_side = model.prompt_encoder.input_image_size
    scale = input_side / max(image.shape[:2])
    unpadded = image.shape[0] * scale, image.shape[1] * scale  # where the pipeline puts its points
    drawn = draw_masks((low_side, low_side), side, low_side)

    def replace_logits(_module: Any, _inputs: Any, outputs: Any) -> Any:
        object_ids, _ = drawn.next(outputs.pred_masks.shape[1])
        outputs.pred_masks = drawn.objects[object_ids][None]
        return outputs

    hook = model.register_forward_hook(replace_logits)
    again = drawn_stock_order(drawn, unpadded, FamilyReferenceDecoder)
    decoder = drawn_shared_decoder(drawn, FactoredDecoder)
    with (
        patch.object(transformers_model, "image_decoder", decoder),
        patch.object(transformers_model, "FamilyReferenceDecoder", again),
    ):
        try:
            yield
        finally:
            hook.remove()


def _pipeline(wrapped: TransformersModel, options: Options, side: int) -> Any:
    """Return a function from an image to the pipeline's run lengths."""
    from transformers.pipelines.mask_generation import MaskGenerationPipeline

    pipeline = MaskGenerationPipeline(
        model=wrapped.model, image_processor=wrapped.processor, device=options.device
    )

    def run(image: np.ndarray) -> list[list[int]]:
        outputs = pipeline(
            Image.fromarray(image), points_per_crop=side, output_rle_mask=True,
            stability_score_thresh=_STABILITY, crops_nms_thresh=_NMS,
        )  # fmt: skip
        return [mask["counts"] for mask in outputs["rle_mask"]]

    return run


def _generator(model: Any, side: int) -> Any:
    """Return a function from an image to our run lengths, by the pipeline's convention."""
    generator = AutomaticMaskGenerator(
        model, side, stability_score_thresh=_STABILITY, crop_nms_thresh=_NMS,
        output_mode="uncompressed_rle", convention="transformers",
    )  # fmt: skip
    return lambda image: [mask["segmentation"]["counts"] for mask in generator.generate(image)]


def random_family_model(kind: str, size: str, seed: int = 5, gain: float = 1.6) -> Any:
    """Return a model whose masks have parts and borders, as mask_models.random_sam explains.

    A share of PASSING of its candidates passes .88.
    """
    torch.manual_seed(seed)
    model = _build(kind, size).eval().requires_grad_(False)
    decoder, generator = model.mask_decoder, torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(gain / math.sqrt(parameter[0].numel()) * noise)
    for convolution in (decoder.upscale_conv1, decoder.upscale_conv2):
        weight = convolution.weight
        weight.copy_(2 * weight.mean((2, 3), keepdim=True) + 0.03 * weight)
    for network in decoder.output_hypernetworks_mlps:
        network.proj_out.weight.mul_(16)
    for name in ("conv_s0", "conv_s1"):
        if hasattr(decoder, name):
            getattr(decoder, name).weight.mul_(0.2)
    _calibrate(TransformersModel(model))
    return model


def _build(kind: str, size: str) -> Any:
    """Build a model of transformers: of its default size, or with a few narrow layers."""
    hf: Any = importlib.import_module("transformers")
    if size == "published":
        return {
            "hf_sam": lambda: hf.SamModel(hf.SamConfig()),
            "sam2": lambda: hf.Sam2Model(hf.Sam2Config()),
            "sam3": lambda: hf.Sam3TrackerModel(hf.Sam3TrackerConfig()),
        }[kind]()
    side, decoder = _SMALL_SIDE[kind], {"hidden_size": 64, "mlp_dim": 256, "num_attention_heads": 4}
    patch = {"hf_sam": 8, "sam2": 16, "sam3": 14}[kind]
    prompts = {"hidden_size": 64, "image_size": side, "patch_size": patch}
    parts = {"prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    levels = [[4 * side // patch] * 2, [2 * side // patch] * 2, [side // patch] * 2]
    vision: dict[str, Any] = {"initializer_range": 0.1, "image_size": side}
    if kind == "hf_sam":
        vision |= {
            "hidden_size": 128, "output_channels": 64, "num_hidden_layers": 4, "patch_size": 8,
            "num_attention_heads": 4, "window_size": 8, "global_attn_indexes": [1, 3],
            "num_pos_feats": 32, "mlp_dim": 512,
        }  # fmt: skip
        return hf.SamModel(hf.SamConfig(vision_config=vision, **parts))
    neck = {"fpn_hidden_size": 64, "backbone_feature_sizes": levels, "initializer_range": 0.1}
    if kind == "sam2":
        vision |= {
            "hidden_size": 32, "num_attention_heads": 1, "image_size": [side, side],
            "blocks_per_stage": [1, 1, 3, 1], "embed_dim_per_stage": [32, 64, 128, 256],
            "num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [4],
            "window_size_per_stage": [8, 4, 8, 4], "model_type": "sam2_hiera_det_model",
            "window_positional_embedding_background_size": [4, 4],
        }  # fmt: skip
        neck |= {"backbone_config": vision, "backbone_channel_list": [256, 128, 64, 32]}
        return hf.Sam2Model(hf.Sam2Config(vision_config=hf.Sam2VisionConfig(**neck), **parts))
    vision |= {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "patch_size": patch,
        "num_attention_heads": 4, "window_size": 8, "global_attn_indexes": [1, 3],
        "pretrain_image_size": side // 2, "model_type": "sam3_vit_model",
    }  # fmt: skip
    neck |= {"backbone_config": vision}
    config = hf.Sam3TrackerConfig(vision_config=hf.Sam3VisionConfig(**neck), **parts)
    return hf.Sam3TrackerModel(config)


@torch.no_grad()
def _calibrate(wrapped: TransformersModel, threshold: float = 0.88) -> None:
    """Shift the last layer of the IoU head: a share of PASSING candidates of noise passes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    crop = wrapped.encode(noise, torch.float32)
    points = crop.to_model_input(rng.uniform((0, 0), (320, 240), (48, 2)))
    chunks = [crop.decoder.decode(chunk, 1e9).predicted_iou for chunk in points.split(8)]
    quality, head = torch.cat(chunks), wrapped.model.mask_decoder.iou_prediction_head
    if head.sigmoid_output:
        quality, threshold = torch.logit(quality), math.log(threshold / (1 - threshold))
    head.proj_out.bias[1:] += threshold - quality.quantile(1 - PASSING, dim=0)
