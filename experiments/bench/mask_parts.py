"""The measurements of the mask bench, one function a part; see masks.py."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import mask_models
import numpy as np
import torch
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
from pycocotools import mask as coco
from records import machine, median_seconds, seconds_of
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

from sfss_ray.masks import automatic, candidates
from sfss_ray.masks.automatic import AutomaticMaskGenerator
from sfss_ray.masks.resize import PillowResize
from sfss_ray.masks.sam import load_sam, shipped_small_sam

CITYSCAPES = (1024, 2048)
CAMVID = (360, 480)
SMALL_SETTINGS = json.loads(shipped_small_sam().with_suffix(".json").read_text())["generator"]


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        data: folder with camvid/ and cityscapes_sample/.
        device: cpu or cuda.
        images: CamVid images of the comparison.
        repeats: calls of a median; `stock_repeats` for the slow stock generator.
        compared: folder for what is known of the images of the comparison.
    """

    data: Path
    device: str
    images: int
    repeats: int
    stock_repeats: int
    compared: Path


def camvid(options: Options, count: int) -> list[np.ndarray]:
    """The first `count` images of val, RGB."""
    return _read(sorted((options.data / "camvid" / "images" / "val").glob("*.jpg"))[:count])


def cityscapes(options: Options) -> list[np.ndarray]:
    """All four, RGB."""
    folder = options.data / "cityscapes_sample" / "leftImg8bit"
    return _read(sorted(folder.rglob("*_leftImg8bit.png")))


def _read(files: list[Path]) -> list[np.ndarray]:
    if not files:
        raise SystemExit("no images: give --data, a folder with camvid/ and cityscapes_sample/")
    return [cv2.cvtColor(_pixels(file), cv2.COLOR_BGR2RGB) for file in files]


def _pixels(file: Path) -> np.ndarray:
    pixels = cv2.imread(str(file))
    if pixels is None:
        raise SystemExit(f"{file} is no image")
    return pixels


# --- same masks ---------------------------------------------------------------------------------

_CROPS = {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
SAME_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "small SAM, CamVid": ("small", "camvid", {}),
    "small SAM, CamVid, crops and small regions": (
        "small",
        "camvid",
        _CROPS | {"min_mask_region_area": 100},
    ),
    "small SAM, Cityscapes": ("small", "cityscapes", {}),
    "small SAM, Cityscapes, crops and small regions": (
        "small",
        "cityscapes",
        _CROPS | {"min_mask_region_area": 400},
    ),
    "random ViT-B, CamVid": ("vit_b", "camvid", {}),
    "random ViT-B, Cityscapes": ("vit_b", "cityscapes", {}),
    "random ViT-B, CamVid, crops and small regions": (
        "vit_b",
        "camvid",
        # Masks of borders have nearly the same boxes: at the default .7 two of fifty are left.
        _CROPS | {"min_mask_region_area": 100, "crop_nms_thresh": 1.0},
    ),
}
# Random weights predict no meaningful IoU, draw soft borders, and show nearly the same under all points:
# thresholds at which many masks come out, alike or not. Few points, as the encoder is what takes time.
RANDOM_SETTINGS = {
    "points_per_side": 4,
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.2,
    "box_nms_thresh": 1.0,
}


def same_masks(options: Options, case: str) -> dict[str, Any]:
    """Both generators in float32 over the images of a case; images compared before are not again."""
    kind, source, changes = SAME_CASES[case]
    if kind == "small":
        sam, settings = load_sam(shipped_small_sam(), device=options.device), SMALL_SETTINGS
    else:
        sam, settings = calibrated_sam(kind, options.device), RANDOM_SETTINGS
    settings = {**settings, **changes, "output_mode": "coco_rle"}
    images = camvid(options, options.images) if source == "camvid" else cityscapes(options)
    done = Compared(options.compared / f"{case}.jsonl", {**settings, **machine(options.device)})
    with _convolutions_in_float32():
        seen = [
            done.get(image, lambda image=image: _compare(sam, image, settings)) for image in images
        ]
    row = _summed(seen)
    return {"images": len(images), **row, "settings": settings, **machine(options.device)}


class Compared:
    """What is known of images under the same settings, code and machine, a line of JSON each.

    A case of a large network takes an hour or two.
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path, self.facts = path, {k: v for k, v in facts.items() if k != "load"}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {one["key"]: one["found"] for one in map(json.loads, lines)}

    def get(self, image: np.ndarray, compare: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is known of this image, or what `compare` finds."""
        parts = [json.dumps(self.facts, sort_keys=True).encode(), *_sources(), image.tobytes()]
        key = hashlib.sha256(b"".join(parts)).hexdigest()
        if key not in self.known:
            self.known[key] = compare()
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, "found": self.known[key]}) + "\n")
            print(f"{self.path.stem}: {len(self.known)} images compared", flush=True)
        return self.known[key]


@cache
def _sources() -> list[bytes]:
    """The code that is compared, and that compares."""
    files = [
        *Path(automatic.__file__).parent.glob("*.py"),
        Path(__file__),
        Path(mask_models.__file__),
    ]
    return [file.read_bytes() for file in sorted(files)]


@contextmanager
def _convolutions_in_float32() -> Iterator[None]:
    """cuDNN rounds float32 convolutions to TF32 by default: stock's upscaling, which ours has as
    matrix products, would be compared at 10 bits.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _compare(sam: Sam, image: np.ndarray, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        with quiet():
            stock = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    except (RuntimeError, IndexError, KeyError):
        return {"stock_failed": 1}  # it stops where a crop has no mask
    ours = AutomaticMaskGenerator(sam, **settings).generate(image)
    named = [[(r["point_coords"], r["crop_box"]) for r in records] for records in (stock, ours)]
    overlaps = [
        1.0 if a["segmentation"] == b["segmentation"] else _iou(a, b)
        for a, b in zip(stock, ours, strict=False)
    ]
    identical = [a["segmentation"] == b["segmentation"] for a, b in zip(stock, ours, strict=False)]
    return {
        "stock_masks": len(stock),
        "our_masks": len(ours),
        "same_count": int(len(stock) == len(ours)),
        "same_order": int(named[0] == named[1]),
        "identical": sum(identical),
        "worst_iou": min(overlaps, default=1.0),
        "iou_below_999": sum(value < 0.999 for value in overlaps),
    }


def _iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    overlaps = np.asarray(coco.iou([a["segmentation"]], [b["segmentation"]], [0]))
    return float(overlaps[0, 0])


def _summed(seen: list[dict[str, Any]]) -> dict[str, Any]:
    compared = [one for one in seen if "stock_failed" not in one]
    row: dict[str, Any] = {"stock_failed": len(seen) - len(compared)}
    for name in compared[0] if compared else ():
        values = [one[name] for one in compared]
        row[name] = min(values) if name == "worst_iou" else sum(values)
    if compared:
        row["identical_percent"] = round(100 * row["identical"] / max(1, row["stock_masks"]), 2)
        # A difference in count or order is looked at one image at a time.
        row["images_that_differ"] = [
            k for k, one in enumerate(seen) if not one.get("same_order", 1)
        ]
    return row


# --- speed --------------------------------------------------------------------------------------


def post_processing(options: Options, size: tuple[int, int]) -> dict[str, Any]:
    """Everything but encoder and decoder, from drawn low-resolution logits to records.

    Time inside encoder and decoder (stock: set_image and mask_decoder; ours: encode_crop and
    decode) is taken off; it is that of stand-ins.
    """
    sam = random_sam("vit_b", options.device)
    sam.image_encoder = NoEncoder(sam)  # pyright: ignore[reportAttributeAccessIssue]
    drawn = draw_masks(low_size(size), 32, device=options.device)
    sam.mask_decoder = DrawnDecoder(drawn, None)  # pyright: ignore[reportAttributeAccessIssue]
    sam.to(options.device)
    image = smooth_image(size)
    row, found = {}, {}
    for name, build, repeats in (
        ("stock", SamAutomaticMaskGenerator, options.stock_repeats),
        ("ours", AutomaticMaskGenerator, options.repeats),
    ):
        generator = build(sam, output_mode="coco_rle")
        times = []
        for _ in range(repeats):
            with quiet(), _clock_of_others(drawn, options.device) as others:
                seconds, found[name] = seconds_of(
                    lambda g=generator: g.generate(image), options.device
                )
            times.append(seconds - sum(others))
        row[f"{name}_seconds"] = float(np.median(times))
    same = [a["segmentation"] == b["segmentation"] for a, b in zip(*found.values(), strict=False)]
    return {
        **row,
        "times_faster": round(row["stock_seconds"] / row["ours_seconds"], 1),
        "stock_masks": len(found["stock"]),
        "our_masks": len(found["ours"]),
        "identical": sum(same),
        **machine(options.device),
    }


@contextmanager
def _clock_of_others(drawn: DrawnMasks, device: str) -> Iterator[list[float]]:
    """Seconds spent in encoders and decoders, of which ours is a stand-in for drawn masks inside."""
    spent: list[float] = []

    def timed(work: Callable) -> Callable:
        def run(*arguments: Any, **named: Any) -> Any:
            seconds, result = seconds_of(lambda: work(*arguments, **named), device)
            spent.append(seconds)
            return result

        return run

    class Decoder(DrawnPoints):
        decode = timed(DrawnPoints.decode)

    places = (
        (automatic, "encode_crop", timed(automatic.encode_crop)),
        (candidates, "ModelDecoder", lambda *_: Decoder(drawn)),
        (SamPredictor, "set_image", timed(SamPredictor.set_image)),
        (DrawnDecoder, "forward", timed(DrawnDecoder.forward)),
    )
    with ExitStack() as stack:
        for owner, name, value in places:
            stack.enter_context(patch.object(owner, name, value))
        yield spent


def whole_image(
    options: Options, kind: str, who: str, points_per_batch: int = 64
) -> dict[str, Any]:
    """generate() at 2048x1024 with 1024 points: real encoder and decoder, drawn logits.

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
        seconds, found = median_seconds(lambda: generator.generate(image), repeats, options.device)
    row = {"seconds": seconds, "repeats": repeats, "masks": len(found)}
    if gpu:
        row["images_per_second"] = 1 / seconds
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["encoder_seconds"] = _encoder_seconds(generator.predictor, image, who, repeats)
    return {**row, "points_per_batch": points_per_batch, **machine(options.device)}


@torch.no_grad()
def _encoder_seconds(predictor: SamPredictor, image: np.ndarray, who: str, repeats: int) -> float:
    """Of them, those of the image encoder with its preparation of the image, on a GPU."""
    dtype = torch.bfloat16 if who == "bf16" else torch.float32
    resize = PillowResize()
    work = lambda: automatic.encode_crop(predictor, image, dtype, resize)  # noqa: E731
    return median_seconds(work, repeats, "cuda")[0]


def generator_of(sam: Sam, who: str, points_per_batch: int, **settings: Any) -> Any:
    settings = {"points_per_batch": points_per_batch, "output_mode": "coco_rle", **settings}
    if who == "stock":
        return SamAutomaticMaskGenerator(sam, **settings)
    dtype = torch.float32 if who == "fp32" else torch.bfloat16
    return AutomaticMaskGenerator(sam, dtype=dtype, **settings)


@contextmanager
def drawn_logits(sam: Sam, drawn: Any, who: str) -> Iterator[None]:
    """Inside, decoders do their work and hand out drawn logits."""
    if who == "stock":
        with patch.object(sam, "mask_decoder", DrawnDecoder(drawn, sam.mask_decoder)):
            yield
        return
    height, width = low_size(CITYSCAPES)
    with (
        patch.object(candidates, "SharedImageDecoder", drawn_shared_decoder(drawn)),
        patch.object(
            candidates, "StockOrderDecoder", drawn_stock_order(drawn, (4 * height, 4 * width))
        ),
    ):
        yield


def small_image(options: Options) -> dict[str, Any]:
    """The shipped small SAM with its trained weights on CamVid images, nothing replaced."""
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


def agreement(options: Options) -> dict[str, Any]:
    """Our bf16 against our fp32 with the trained small SAM: counts, and each mask's best IoU."""
    sam = load_sam(shipped_small_sam(), device=options.device)
    generators = [generator_of(sam, who, 64, **SMALL_SETTINGS) for who in ("fp32", "bf16")]
    counts, best = np.zeros(2, dtype=int), []
    for image in camvid(options, options.images):
        exact, fast = ([r["segmentation"] for r in g.generate(image)] for g in generators)
        counts += len(exact), len(fast)
        if exact:
            overlaps = coco.iou(exact, fast, [0] * len(fast)) if fast else np.zeros((len(exact), 1))
            best += np.asarray(overlaps).max(axis=1).tolist()
    return {
        "images": options.images,
        "fp32_masks": int(counts[0]),
        "bf16_masks": int(counts[1]),
        "count_difference_percent": round(100 * abs(counts[1] - counts[0]) / counts[0], 2),
        "mean_iou": float(np.mean(best)),
        "share_below_iou_90": float(np.mean(np.array(best) < 0.9)),
        "worst_iou": float(np.min(best)),
        **machine(options.device),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings about how the stock generator uses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
