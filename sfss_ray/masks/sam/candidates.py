"""Point prompts of one crop in, masks that pass the quality filters out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfss_ray.masks.bank.run_lengths import Counts
from sfss_ray.masks.sam.decoder import DecodedPoints
from sfss_ray.masks.sam.measure_cpu import PackedMasks, measure_mask
from sfss_ray.masks.sam.measure_gpu import DeferredMasks, FullImageUpsampler, measure_masks
from sfss_ray.masks.sam.promptable import EncodedCrop
from sfss_ray.masks.sam.upsample import RegionUpsampler
from sfss_ray.runtime.threads import one_numpy_thread

# Bytes of image keys that a CPU decodes at once: more would not fit its caches.
_CPU_BATCH_BYTES = 16 << 20
_CPU_MAX_POINTS = 8

# Bytes of logits on a GPU before unstable masks are dropped: 2048 masks of a published SAM.
_MAX_LOGIT_BYTES = 512 << 20


@dataclass(frozen=True)
class Thresholds:
    """Quality filters; a threshold of 0 or less filters nothing.

    Attributes:
        pred_iou_thresh: masks need a greater predicted IoU.
        stability_score_thresh: masks need at least this stability score, the IoU of the masks
            thresholded at mask_threshold +- stability_score_offset.
        stability_score_offset: in logits.
        above: whether a stability score must be greater than its threshold.
    """

    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    above: bool = False

    def stable(self, scores: Tensor) -> Tensor:
        """Return which scores pass. That of an empty mask is 0 / 0, a NaN, and never passes."""
        limit = self.stability_score_thresh
        return scores > limit if self.above else scores >= limit


Pixels = TypeVar("Pixels", PackedMasks, DeferredMasks)


@dataclass(frozen=True)
class Candidates(Generic[Pixels]):
    """Masks in crop coordinates: parallel tensors of length n, on the CPU."""

    predicted_iou: Tensor  # float32 (n,)
    stability_score: Tensor  # float32 (n,)
    points: Tensor  # float64 (n, 2), x and y in pixels
    outputs: Tensor  # int64 (n,), index among the masks of its point
    boxes: Tensor  # int64 (n, 4), x0 y0 x1 y1 in pixels, x1 and y1 lie inside the mask
    masks: Pixels

    def select(self, keep: Tensor) -> "Candidates[Pixels]":
        """Return the masks at the indices `keep`, in that order, or where a boolean `keep` is true."""
        indices = torch.nonzero(keep)[:, 0] if keep.dtype == torch.bool else keep
        return Candidates(
            self.predicted_iou[indices],
            self.stability_score[indices],
            self.points[indices],
            self.outputs[indices],
            self.boxes[indices],
            self.masks.select(indices),
        )

    def counts_in_image(self, origin: tuple[int, int], image_size: tuple[int, int]) -> list[Counts]:
        """Return run lengths in an image, where the crop's first pixel lies at `origin` (y, x)."""
        return self.masks.counts_in_image(self.boxes, origin, image_size)


CropMasks = Candidates[PackedMasks] | Candidates[DeferredMasks]


def find_candidates(
    crop: EncodedCrop, points: NDArray[np.float64], points_per_batch: int, thresholds: Thresholds
) -> CropMasks:
    """Return the masks that pass the thresholds, in the order of the points.

    Args:
        crop: the encoded crop.
        points: (n, 2) with n at least 1, x and y in pixels of the crop.
        points_per_batch: points decoded at once, at most.
        thresholds: quality filters.
    """
    find = _find_mask_by_mask if _runs_mask_by_mask(crop.device) else _find_in_batches
    return find(crop, points, points_per_batch, thresholds)


def _runs_mask_by_mask(device: torch.device) -> bool:
    """Return whether single masks are faster than batches; the device alone decides."""
    return device.type == "cpu"


def _find_mask_by_mask(
    crop: EncodedCrop, points: NDArray[np.float64], points_per_batch: int, thresholds: Thresholds
) -> Candidates[PackedMasks]:
    """Measure one mask at a time, only where it can be; drop unstable masks after each batch."""
    batches = _decode_batches(crop, points, points_per_batch, thresholds)
    return _concatenate_packed(
        [_measure_batch(crop, decoded, batch, thresholds) for decoded, batch in batches]
    )


def _find_in_batches(
    crop: EncodedCrop, points: NDArray[np.float64], points_per_batch: int, thresholds: Thresholds
) -> Candidates[DeferredMasks]:
    """Measure many masks at a time.

    The CPU waits for the GPU where the decoder needs it, and once at the end. If the logits exceed
    _MAX_LOGIT_BYTES, unstable masks are dropped earlier, which costs one more wait each time.
    """
    mask_threshold = crop.mask_threshold
    pending: list[_MeasuredBatch] = []
    candidates: list[Candidates[DeferredMasks]] = []
    for decoded, batch in _decode_batches(crop, points, points_per_batch, thresholds):
        upsampler = FullImageUpsampler(decoded.low_size, *crop.upsampling_sizes)
        measured = measure_masks(
            decoded.logits, upsampler, mask_threshold, thresholds.stability_score_offset
        )
        pending.append(_MeasuredBatch(decoded, batch, *measured))
        is_full = sum(part.nbytes for part in pending) > _MAX_LOGIT_BYTES
        if thresholds.stability_score_thresh > 0 and is_full:
            candidates.append(_to_candidates(pending, upsampler, mask_threshold, thresholds))
    if pending or not candidates:
        candidates.append(_to_candidates(pending, upsampler, mask_threshold, thresholds))
    return candidates[0] if len(candidates) == 1 else _concatenate_deferred(candidates)


@dataclass(frozen=True)
class _MeasuredBatch:
    """Masks of a batch of points before they are filtered, on the model's device."""

    decoded: DecodedPoints
    points: Tensor
    pixel_counts: Tensor
    boxes: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the logits, by far the largest array."""
        return self.decoded.logits.nbytes


def _to_candidates(
    pending: list[_MeasuredBatch],
    upsampler: FullImageUpsampler,
    mask_threshold: float,
    thresholds: Thresholds,
) -> Candidates[DeferredMasks]:
    """Return the stable masks; `pending` is emptied, so that its logits are not in memory twice."""
    pixel_counts = torch.cat([part.pixel_counts for part in pending]).cpu()
    predicted_iou = [part.decoded.predicted_iou.flatten()[part.decoded.passed] for part in pending]
    points = torch.cat([_points_of_masks(part.decoded, part.points) for part in pending])
    outputs = torch.cat([_outputs_of_masks(part.decoded) for part in pending])
    boxes = torch.cat([part.boxes for part in pending]).cpu()
    logits = torch.cat([part.decoded.logits for part in pending])
    pending.clear()
    candidates = Candidates(
        predicted_iou=torch.cat(predicted_iou).cpu(),
        stability_score=pixel_counts[:, 0] / pixel_counts[:, 1],
        points=points,
        outputs=outputs,
        boxes=boxes,
        masks=DeferredMasks(logits, upsampler, mask_threshold),
    )
    return _select_stable(candidates, thresholds)


def _concatenate_deferred(parts: list[Candidates[DeferredMasks]]) -> Candidates[DeferredMasks]:
    masks = parts[0].masks
    logits = torch.cat([part.masks.logits for part in parts])
    return Candidates(
        torch.cat([part.predicted_iou for part in parts]),
        torch.cat([part.stability_score for part in parts]),
        torch.cat([part.points for part in parts]),
        torch.cat([part.outputs for part in parts]),
        torch.cat([part.boxes for part in parts]),
        DeferredMasks(logits, masks.upsampler, masks.mask_threshold),
    )


def _decode_batches(
    crop: EncodedCrop, points: NDArray[np.float64], points_per_batch: int, thresholds: Thresholds
) -> Iterator[tuple[DecodedPoints, Tensor]]:
    """Yield the masks of each batch with the batch's points in pixels of the crop."""
    input_points = crop.to_model_input(points)
    pred_iou_thresh = thresholds.pred_iou_thresh if thresholds.pred_iou_thresh > 0 else None
    for batch in _batches(crop, len(points), points_per_batch):
        decoded = crop.decoder.decode(input_points[batch], pred_iou_thresh)
        yield decoded, torch.as_tensor(points[batch])


def batch_size(crop: EncodedCrop, points_per_batch: int) -> int:
    """Return how many points are decoded at once; on a CPU as many as fit its caches."""
    if crop.device.type != "cpu":
        return points_per_batch
    fits_cache = max(1, _CPU_BATCH_BYTES // crop.key_bytes)
    return min(points_per_batch, _CPU_MAX_POINTS, fits_cache)


def _batches(crop: EncodedCrop, n_points: int, points_per_batch: int) -> Iterator[slice]:
    points_per_batch = batch_size(crop, points_per_batch)
    return (slice(k, k + points_per_batch) for k in range(0, n_points, points_per_batch))


def _points_of_masks(decoded: DecodedPoints, points: Tensor) -> Tensor:
    """Return the point of each mask that passed."""
    return points[decoded.passed.cpu() // decoded.predicted_iou.shape[1]]


def _outputs_of_masks(decoded: DecodedPoints) -> Tensor:
    """Return for each mask that passed its index among the masks of its point."""
    return decoded.passed.cpu() % decoded.predicted_iou.shape[1]


def _measure_batch(
    crop: EncodedCrop, decoded: DecodedPoints, points: Tensor, thresholds: Thresholds
) -> Candidates[PackedMasks]:
    """Measure the masks of a batch at image size, one region at a time, and filter them."""
    upsampler = RegionUpsampler(decoded.low_size, *crop.upsampling_sizes)
    with one_numpy_thread():
        measured = [
            measure_mask(
                logits,
                upsampler,
                crop.mask_threshold,
                thresholds.stability_score_offset,
                check_rounding=crop.can_match_stock,
            )
            for logits in decoded.logits.numpy()
        ]
    pixel_counts = torch.tensor([m.pixel_counts for m in measured], dtype=torch.int32)
    pixel_counts = pixel_counts.reshape(-1, 2)
    candidates = Candidates(
        predicted_iou=decoded.predicted_iou.flatten()[decoded.passed],
        stability_score=pixel_counts[:, 0] / pixel_counts[:, 1],
        points=_points_of_masks(decoded, points),
        outputs=_outputs_of_masks(decoded),
        boxes=torch.tensor([m.box for m in measured], dtype=torch.int64).reshape(-1, 4),
        masks=PackedMasks([m.mask for m in measured]),
    )
    return _select_stable(candidates, thresholds)


def _select_stable(candidates: Candidates[Pixels], thresholds: Thresholds) -> Candidates[Pixels]:
    """Drop unstable masks."""
    if thresholds.stability_score_thresh <= 0:
        return candidates
    stable = thresholds.stable(candidates.stability_score)
    return candidates if stable.all() else candidates.select(stable)


def concatenate(parts: list[CropMasks]) -> CropMasks:
    """Join masks of one crop, in order; there must be at least one part."""
    packed = [part for part in parts if isinstance(part.masks, PackedMasks)]
    deferred = [part for part in parts if isinstance(part.masks, DeferredMasks)]
    if packed:
        return _concatenate_packed(packed)  # pyright: ignore[reportArgumentType]
    return _concatenate_deferred(deferred)  # pyright: ignore[reportArgumentType]


def _concatenate_packed(batches: list[Candidates[PackedMasks]]) -> Candidates[PackedMasks]:
    return Candidates(
        torch.cat([batch.predicted_iou for batch in batches]),
        torch.cat([batch.stability_score for batch in batches]),
        torch.cat([batch.points for batch in batches]),
        torch.cat([batch.outputs for batch in batches]),
        torch.cat([batch.boxes for batch in batches]),
        PackedMasks([mask for batch in batches for mask in batch.masks.masks]),
    )
