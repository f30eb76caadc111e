"""From the points of one crop to the masks that pass the quality filters."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.decoder import DecodedPoints, SharedImageDecoder
from sfss_ray.masks.sam.encoder import encode_image
from sfss_ray.masks.sam.measure_cpu import PackedMasks, measure_mask
from sfss_ray.masks.sam.measure_gpu import LaterMasks, WholeUpsampler, measure_whole
from sfss_ray.masks.sam.reference_decoder import StockOrderDecoder
from sfss_ray.masks.sam.replaced_parts import not_one_tensor
from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.masks.sam.upsample import RegionUpsampler

# What a CPU decodes at once, in bytes of image keys: more falls out of its caches.
_CPU_BATCH_BYTES = 16 << 20
_CPU_MOST_POINTS = 8

# Logits that a GPU holds before the unstable ones among them go: 2048 masks of a published SAM.
_MOST_HELD_BYTES = 512 << 20


_SETTLED_AT_ONCE = 16  # masks whose low-resolution logits are held


@dataclass(frozen=True)
class Thresholds:
    """Quality filters; a threshold of 0 or less filters nothing.

    Attributes:
        quality: masks need a greater predicted IoU.
        stability: masks need at least this IoU of the cuts at mask_threshold +- offset.
        offset: in logits.
    """

    quality: float
    stability: float
    offset: float


@dataclass(frozen=True)
class EncodedCrop:
    """A crop after the image encoder, all that is needed to turn points into masks.

    Attributes:
        sam: the model.
        embedding: float32 (1, C, h, w), the image encoder's output.
        decoder: the mask decoder with this embedding.
        size: (h, w) of the crop in pixels.
        input_size: (h, w) of the crop as the model sees it, without padding.
        dtype: of the image side of the decoder.
    """

    sam: Sam
    embedding: Tensor
    decoder: SharedImageDecoder
    size: tuple[int, int]
    input_size: tuple[int, int]
    dtype: torch.dtype

    @property
    def may_be_settled(self) -> bool:
        """Whether masks differ from stock's by the order of float32 sums, and by nothing else."""
        return self.dtype == torch.float32 and self.sam.device.type == "cpu"


Pixels = TypeVar("Pixels", PackedMasks, LaterMasks)


@dataclass(frozen=True)
class Candidates(Generic[Pixels]):
    """Masks in crop coordinates; parallel tensors of length n, on the CPU."""

    quality: Tensor  # float32 (n,), predicted IoU
    stability: Tensor  # float32 (n,)
    points: Tensor  # float64 (n, 2), x and y in pixels
    outputs: Tensor  # int64 (n,), which of its point's masks
    boxes: Tensor  # int64 (n, 4), x0 y0 x1 y1 in pixels, x1 and y1 are inside the mask
    masks: Pixels

    def select(self, keep: Tensor) -> "Candidates[Pixels]":
        """Those at the indices `keep`, in that order, or where a boolean `keep` is true."""
        index = torch.nonzero(keep)[:, 0] if keep.dtype == torch.bool else keep
        return Candidates(
            self.quality[index],
            self.stability[index],
            self.points[index],
            self.outputs[index],
            self.boxes[index],
            self.masks.select(index),
        )

    def runs(self, origin: tuple[int, int], size: tuple[int, int]) -> list[run_lengths.Counts]:
        """Run lengths in an image of `size` that has the crop's first pixel at `origin` (y, x)."""
        return self.masks.runs(self.boxes, origin, size)


Found = Candidates[PackedMasks] | Candidates[LaterMasks]


def encode_crop(
    predictor: SamPredictor, cropped: NDArray[Any], dtype: torch.dtype, resize: PillowResize
) -> EncodedCrop:
    """Runs the image encoder as SamPredictor.set_image does.

    Args:
        predictor: holds the model, of which replaced.replaced_part() finds nothing; it is left as
            it was.
        cropped: (h, w, 3), RGB, uint8 or floating as torchvision's to_pil_image takes it.
        dtype: torch.float32, or torch.bfloat16 to run under autocast.
        resize: for a GPU.

    Raises:
        ConfigError: the image encoder returns something other than one tensor.
    """
    sam = predictor.model
    height, width = cropped.shape[:2]
    seen = predictor.transform.get_preprocess_shape(height, width, sam.image_encoder.img_size)
    if sam.image_format != "RGB":
        cropped = cropped[..., ::-1]
    with torch.autocast(sam.device.type, torch.bfloat16, enabled=dtype != torch.float32):
        if sam.device.type == "cpu":
            embedding = _embed_here(predictor, cropped)
        else:
            embedding = _embed_there(predictor, cropped, seen, resize)
    if not isinstance(embedding, Tensor):
        raise not_one_tensor(sam.image_encoder, embedding)
    grid = sam.prompt_encoder.image_embedding_size
    embedding = embedding.float().expand(1, -1, *grid)
    decoder = SharedImageDecoder(sam, embedding, dtype, seen)
    return EncodedCrop(sam, embedding, decoder, (height, width), seen, dtype)


def _embed_here(predictor: SamPredictor, cropped: NDArray[Any]) -> Any:
    """predictor.set_image with an encoder that suits a CPU; channels in the model's order."""
    sam, resized = predictor.model, predictor.transform.apply_image(cropped)
    pixels = torch.as_tensor(resized).permute(2, 0, 1)[None].contiguous()
    return encode_image(sam.image_encoder, sam.preprocess(pixels))


def _embed_there(
    predictor: SamPredictor, cropped: NDArray[Any], seen: tuple[int, int], resize: PillowResize
) -> Any:
    """predictor.set_image without work on the CPU and without copies in between."""
    sam = predictor.model
    if cropped.dtype != np.uint8:
        cropped = np.asarray(to_pil_image(cropped))
    resized = resize(np.require(cropped, requirements=["C", "W"]), seen, sam.device)
    pixels = resized.permute(2, 0, 1)[None].contiguous()
    # The encoder makes tables of positions on the default device, and copies them to its own.
    with sam.device:
        return sam.image_encoder(sam.preprocess(pixels))


def find_candidates(
    crop: EncodedCrop, points: NDArray[np.float64], most_points: int, thresholds: Thresholds
) -> Found:
    """Masks that pass the thresholds, in the order of the points.

    Args:
        crop: the encoded crop.
        points: (n, 2) with n at least 1, x and y in pixels of the crop.
        most_points: upper bound of the points decoded at once.
        thresholds: quality filters.
    """
    find = _find_by_regions if _one_at_a_time(crop.sam) else _find_whole
    return find(crop, points, most_points, thresholds)


def _one_at_a_time(sam: Sam) -> bool:
    """What is faster is told by the device alone."""
    return sam.device.type == "cpu"


def _find_by_regions(
    crop: EncodedCrop, points: NDArray[np.float64], most_points: int, thresholds: Thresholds
) -> Candidates[PackedMasks]:
    """One mask at a time, only where it can be; masks that are not stable go after each batch."""
    batches = _decoded(crop, points, most_points, thresholds)
    return _join([_filter_masks(crop, decoded, seen, thresholds) for decoded, seen in batches])


def _find_whole(
    crop: EncodedCrop, points: NDArray[np.float64], most_points: int, thresholds: Thresholds
) -> Candidates[LaterMasks]:
    """Many masks at a time; the CPU waits for the GPU where the decoder needs it, and once more.

    Where there are very many, those that are not stable go before the last batch, at one more wait.
    """
    cut, parts, found = crop.sam.mask_threshold, [], []
    for decoded, seen in _decoded(crop, points, most_points, thresholds):
        upsampler = WholeUpsampler(decoded.low_size, *_sizes(crop))
        measured = measure_whole(decoded.logits, upsampler, cut, thresholds.offset)
        parts.append(_MeasuredBatch(decoded, seen, *measured))
        if thresholds.stability > 0 and sum(part.nbytes for part in parts) > _MOST_HELD_BYTES:
            found.append(_as_candidates(parts, upsampler, cut, thresholds))
    if parts or not found:
        found.append(_as_candidates(parts, upsampler, cut, thresholds))
    return found[0] if len(found) == 1 else _join_later(found, upsampler, cut)


@dataclass(frozen=True)
class _MeasuredBatch:
    """Masks of a batch of points before they are filtered, on the model's device."""

    decoded: DecodedPoints
    points: Tensor
    pixels: Tensor
    boxes: Tensor

    @property
    def nbytes(self) -> int:
        """Of the logits, which are by far the most."""
        return self.decoded.logits.nbytes


def _as_candidates(
    parts: list[_MeasuredBatch], upsampler: WholeUpsampler, cut: float, thresholds: Thresholds
) -> Candidates[LaterMasks]:
    """The stable ones; `parts` is emptied, so that their logits are not held twice."""
    pixels = torch.cat([part.pixels for part in parts]).cpu()
    quality = [part.decoded.quality.flatten()[part.decoded.kept] for part in parts]
    points = torch.cat([_points_of(part.decoded, part.points) for part in parts])
    outputs = torch.cat([_outputs_of(part.decoded) for part in parts])
    boxes = torch.cat([part.boxes for part in parts]).cpu()
    low = torch.cat([part.decoded.logits for part in parts])
    parts.clear()
    found = Candidates(
        quality=torch.cat(quality).cpu(),
        stability=pixels[:, 0] / pixels[:, 1],
        points=points,
        outputs=outputs,
        boxes=boxes,
        masks=LaterMasks(low, upsampler, cut),
    )
    return _stable(found, thresholds)


def _join_later(
    found: list[Candidates[LaterMasks]], upsampler: WholeUpsampler, cut: float
) -> Candidates[LaterMasks]:
    return Candidates(
        torch.cat([part.quality for part in found]),
        torch.cat([part.stability for part in found]),
        torch.cat([part.points for part in found]),
        torch.cat([part.outputs for part in found]),
        torch.cat([part.boxes for part in found]),
        LaterMasks(torch.cat([part.masks.low for part in found]), upsampler, cut),
    )


def _decoded(
    crop: EncodedCrop, points: NDArray[np.float64], most_points: int, thresholds: Thresholds
) -> Iterator[tuple[DecodedPoints, Tensor]]:
    """Masks of each batch with the batch's points."""
    seen = _seen_by_the_model(crop, points)
    min_quality = thresholds.quality if thresholds.quality > 0 else None
    for batch in _batches(crop.sam, len(points), most_points, crop.dtype):
        yield crop.decoder.decode(seen[batch], min_quality), torch.as_tensor(points[batch])


def _seen_by_the_model(crop: EncodedCrop, points: NDArray[np.float64]) -> Tensor:
    """Points (n, 2) in pixels of the crop to those of the model input, on its device."""
    scale = np.array([[new / old for new, old in zip(crop.input_size, crop.size, strict=True)]])
    return torch.as_tensor(points * scale[:, ::-1], device=crop.sam.device)


def _points_of(decoded: DecodedPoints, points: Tensor) -> Tensor:
    """The point of each mask that was kept."""
    return points[decoded.kept.cpu() // decoded.quality.shape[1]]


def _outputs_of(decoded: DecodedPoints) -> Tensor:
    """Which of its point's masks each one is that was kept."""
    return decoded.kept.cpu() % decoded.quality.shape[1]


def _batches(sam: Sam, n_points: int, most_points: int, dtype: torch.dtype) -> Iterator[slice]:
    if sam.device.type == "cpu":
        h, w = sam.prompt_encoder.image_embedding_size
        key_bytes = dtype.itemsize * h * w * sam.prompt_encoder.embed_dim
        in_cache = max(1, _CPU_BATCH_BYTES // key_bytes)
        most_points = min(most_points, _CPU_MOST_POINTS, in_cache)
    return (slice(k, k + most_points) for k in range(0, n_points, most_points))


def _filter_masks(
    crop: EncodedCrop, decoded: DecodedPoints, points: Tensor, thresholds: Thresholds
) -> Candidates[PackedMasks]:
    """Measures the masks of a batch at image size, one region at a time, and filters them."""
    cut, upsampler = crop.sam.mask_threshold, RegionUpsampler(decoded.low_size, *_sizes(crop))
    measured = [
        measure_mask(low, upsampler, cut, thresholds.offset, crop.may_be_settled)
        for low in decoded.logits.numpy()
    ]
    pixels = torch.tensor([m.pixels for m in measured], dtype=torch.int32).reshape(-1, 2)
    found = Candidates(
        quality=decoded.quality.flatten()[decoded.kept],
        stability=pixels[:, 0] / pixels[:, 1],
        points=_points_of(decoded, points),
        outputs=_outputs_of(decoded),
        boxes=torch.tensor([m.box for m in measured], dtype=torch.int64).reshape(-1, 4),
        masks=PackedMasks([m.mask for m in measured]),
    )
    return _stable(found, thresholds)


def _sizes(crop: EncodedCrop) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """What both upsamplers take behind the size of the decoder's logits."""
    return crop.sam.image_encoder.img_size, crop.input_size, crop.size


def _stable(found: Candidates[Pixels], thresholds: Thresholds) -> Candidates[Pixels]:
    """0 / 0 of an empty mask is NaN, which fails every threshold."""
    if thresholds.stability <= 0:
        return found
    stable = found.stability >= thresholds.stability
    return found if stable.all() else found.select(stable)


def _join(batches: list[Candidates[PackedMasks]]) -> Candidates[PackedMasks]:
    return Candidates(
        torch.cat([batch.quality for batch in batches]),
        torch.cat([batch.stability for batch in batches]),
        torch.cat([batch.points for batch in batches]),
        torch.cat([batch.outputs for batch in batches]),
        torch.cat([batch.boxes for batch in batches]),
        PackedMasks([mask for batch in batches for mask in batch.masks.masks]),
    )


def settle_doubtful(crop: EncodedCrop, found: Found, offset: float) -> Found:
    """The same masks, with the pixels that stock has where rounding decides.

    SharedImageDecoder adds the same numbers in another order. What differs are the last bits of a
    logit, which matter where it is that near to the cut; such masks are decoded once more. On a
    GPU and in bfloat16 nothing is done.

    Args:
        crop: the encoded crop.
        found: masks that will stay.
        offset: of the stability, in logits.
    """
    packed = found.masks
    if not isinstance(packed, PackedMasks) or not crop.may_be_settled:
        return found
    doubtful = [k for k, mask in enumerate(packed.masks) if mask.doubtful]
    if not doubtful:
        return found
    # Those of one point are next to each other: they are decoded together.
    doubtful.sort(key=lambda k: found.points[k].tolist())
    decoder, cut = StockOrderDecoder(crop.sam, crop.embedding), crop.sam.mask_threshold
    masks, boxes = list(packed.masks), found.boxes.clone()
    for start in range(0, len(doubtful), _SETTLED_AT_ONCE):
        part = doubtful[start : start + _SETTLED_AT_ONCE]
        points = _seen_by_the_model(crop, found.points[part].numpy())
        lows = decoder.logits(points, found.outputs[part])
        upsampler = RegionUpsampler((lows.shape[1], lows.shape[2]), *_sizes(crop))
        for k, low in zip(part, lows.numpy(), strict=True):
            settled = measure_mask(low, upsampler, cut, offset)
            masks[k], boxes[k] = settled.mask, torch.tensor(settled.box)
    return replace(found, boxes=boxes, masks=PackedMasks(masks))
