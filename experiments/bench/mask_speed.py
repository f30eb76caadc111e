"""Time mask generation beside the stock generator, one function for each part. See masks.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mask_images import CITYSCAPES, SMALL_SETTINGS, Options, camvid, quiet
from mask_models import (
    DrawnDecoder,
    DrawnMasks,
    DrawnPoints,
    NoEncoder,
    calibrated_sam,
    draw_masks,
    drawn_shared_decoder,
    drawn_stock_order,
    low_size,
    random_sam,
    smooth_image,
)
from records import machine, median_seconds, seconds_of
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

from sfss_ray.masks.sam import conventions as conventions_module
from sfss_ray.masks.sam import crop as crop_module
from sfss_ray.masks.sam import segment_anything_model as stock_model_module
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.masks.sam.resize import PillowResize


def post_processing(options: Options, size: tuple[int, int]) -> dict[str, Any]:
    """Time everything except encoder and decoder, from drawn low-resolution logits to records.

    Time inside encoder and decoder (stock: set_image and mask_decoder; ours: encode_crop and
    decode) is subtracted, because both are stand-ins. Ours decodes no doubtful mask again.
    """
    sam = random_sam("vit_b", options.device)
    sam.image_encoder = NoEncoder(sam)  # pyright: ignore[reportAttributeAccessIssue]
    drawn = draw_masks(low_size(size), 32, device=options.device)
    sam.to(options.device)
    image = smooth_image(size)
    row, masks = {}, {}
    for name, build, repeats in (
        ("stock", SamAutomaticMaskGenerator, options.stock_repeats),
        ("ours", AutomaticMaskGenerator, options.repeats),
    ):
        generator = build(sam, output_mode="coco_rle")
        times = []
        for _ in range(repeats):
            with quiet(), _clock_of_others(name, sam, drawn, options.device) as other_seconds:
                seconds, masks[name] = seconds_of(
                    lambda g=generator: g.generate(image), options.device
                )
            times.append(seconds - sum(other_seconds))
        row[f"{name}_seconds"] = float(np.median(times))
    same = [a["segmentation"] == b["segmentation"] for a, b in zip(*masks.values(), strict=False)]
    return {
        **row,
        "times_faster": round(row["stock_seconds"] / row["ours_seconds"], 1),
        "stock_masks": len(masks["stock"]),
        "our_masks": len(masks["ours"]),
        "identical": sum(same),
        **machine(options.device),
    }


@contextmanager
def _clock_of_others(name: str, sam: Sam, drawn: DrawnMasks, device: str) -> Iterator[list[float]]:
    """Collect the seconds in encoder and decoder of "stock" or "ours". Decoders return drawn masks.

    Only the parts of that generator are replaced, because ours calls the stock code where its parts are
    replaced.
    """
    spent: list[float] = []

    def timed(work: Callable) -> Callable:
        def run(*arguments: Any, **named: Any) -> Any:
            seconds, result = seconds_of(lambda: work(*arguments, **named), device)
            spent.append(seconds)
            return result

        return run

    class Decoder(DrawnPoints):
        decode = timed(DrawnPoints.decode)

    replacements = {
        "ours": (
            (stock_model_module, "encode_crop", timed(crop_module.encode_crop)),
            (
                conventions_module,
                "recompute_ambiguous",
                lambda crop, candidates, offset: candidates,
            ),
            (crop_module, "SharedImageDecoder", lambda *_: Decoder(drawn)),
        ),
        "stock": (
            (sam, "mask_decoder", DrawnDecoder(drawn, None)),
            (SamPredictor, "set_image", timed(SamPredictor.set_image)),
            (DrawnDecoder, "forward", timed(DrawnDecoder.forward)),
        ),
    }
    with ExitStack() as stack:
        for owner, attribute, value in replacements[name]:
            stack.enter_context(patch.object(owner, attribute, value))
        yield spent


def whole_image(
    options: Options, kind: str, who: str, points_per_batch: int = 64
) -> dict[str, Any]:
    """Time generate() at 2048x1024 with 1024 points: real encoder and decoder, drawn logits.

    `who` is stock, fp32 or bf16 (both ours).
    """
    sam = calibrated_sam(kind, options.device)
    drawn = draw_masks(low_size(CITYSCAPES), 32, device=options.device)
    image = smooth_image(CITYSCAPES)
    repeats = options.stock_repeats if who == "stock" else options.repeats
    gpu = options.device == "cuda"
    with quiet(), drawn_logits(sam, drawn, who):
        generator = generator_of(sam, who, points_per_batch)
        if gpu:
            generator.generate(image)
            torch.cuda.reset_peak_memory_stats()
        seconds, masks = median_seconds(lambda: generator.generate(image), repeats, options.device)
    row = {"seconds": seconds, "repeats": repeats, "masks": len(masks)}
    if gpu:
        row["images_per_second"] = 1 / seconds
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["encoder_seconds"] = _encoder_seconds(generator.predictor, image, who, repeats)
    return {**row, "points_per_batch": points_per_batch, **machine(options.device)}


@torch.no_grad()
def _encoder_seconds(predictor: SamPredictor, image: np.ndarray, who: str, repeats: int) -> float:
    """Return the seconds of the image encoder with its preprocessing, on a GPU."""
    dtype = torch.bfloat16 if who == "bf16" else torch.float32
    resize = PillowResize()
    work = lambda: crop_module.encode_crop(predictor, image, dtype, resize)  # noqa: E731
    return median_seconds(work, repeats, "cuda")[0]


def generator_of(sam: Sam, who: str, points_per_batch: int, **settings: Any) -> Any:
    """Return the generator that `who` names: stock, fp32 or bf16."""
    settings = {"points_per_batch": points_per_batch, "output_mode": "coco_rle", **settings}
    if who == "stock":
        return SamAutomaticMaskGenerator(sam, **settings)
    dtype = torch.float32 if who == "fp32" else torch.bfloat16
    return AutomaticMaskGenerator(sam, dtype=dtype, **settings)


@contextmanager
def drawn_logits(sam: Sam, drawn: Any, who: str) -> Iterator[None]:
    """Let decoders do their work inside the block and return drawn logits."""
    if who == "stock":
        with patch.object(sam, "mask_decoder", DrawnDecoder(drawn, sam.mask_decoder)):
            yield
        return
    height, width = low_size(CITYSCAPES)
    with (
        patch.object(crop_module, "SharedImageDecoder", drawn_shared_decoder(drawn)),
        patch.object(
            crop_module, "ReferenceDecoder", drawn_stock_order(drawn, (4 * height, 4 * width))
        ),
    ):
        yield


def small_image(options: Options) -> dict[str, Any]:
    """Time the shipped small SAM with its trained weights on CamVid images, nothing replaced."""
    sam = load_sam(shipped_small_sam(), device=options.device)
    images = camvid(options, 3)
    row = {}
    for who in ("stock", "fp32", "bf16"):
        generator = generator_of(sam, who, 64, **SMALL_SETTINGS)
        with quiet():
            generator.generate(images[0])
            times = [seconds_of(lambda: generator.generate(i), options.device)[0] for i in images]  # noqa: B023
        row[f"{who}_seconds"] = float(np.median(times))
    row["times_faster"] = round(row["stock_seconds"] / row["fp32_seconds"], 1)
    row["times_faster_bf16"] = round(row["stock_seconds"] / row["bf16_seconds"], 1)
    return {**row, **machine(options.device)}
