"""SAM's "segment everything" with the masks of the stock generator in a fraction of the time.

AutomaticMaskGenerator is a segment_anything.SamAutomaticMaskGenerator. The stock generator spends
its time on candidates that it throws away: it enlarges every candidate to image size in float32, then
filters. Here a candidate pays for a step only if it passed the one before: predicted IoU, then
low-resolution mask, then pixels of its region (stability, box, crop edge), then non-maximum
suppression, and only then its RLE. Masks that stay and have a pixel where rounding
decides are decoded once more in the order of stock's sums (stock_order.py). candidates.py has the
steps up to the suppression, decoder.py, upsample.py, packed.py (CPU) and whole_images.py (GPU) their
arithmetic.

All of this skips calls that the stock generator makes. Where a caller replaced one of them
(replaced.py), the inherited methods run instead.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor
from torchvision.ops import batched_nms

from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.crop import Thresholds, encode_crop, find_candidates, settle_doubtful
from sfss_ray.masks.sam.generator_checks import (
    FLOATS_ABOVE_ONE,
    check_counts,
    check_image,
    check_point_grids,
    check_sides,
    wraps_around,
)
from sfss_ray.masks.sam.measure_cpu import Box, tight_box
from sfss_ray.masks.sam.replaced_parts import mismatch, replaced_part
from sfss_ray.masks.sam.resize import PillowResize

_OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
_DTYPES = (torch.float32, torch.bfloat16)
_EDGE_TOLERANCE = 20  # pixels; a box this near to an inner crop edge is taken for cut off


@dataclass
class _Masks:
    """Masks of an image in image coordinates; parallel lists and tensors of length n."""

    counts: list[run_lengths.Counts]
    quality: Tensor  # float32 (n,), predicted IoU
    stability: Tensor  # float32 (n,)
    points: Tensor  # float64 (n, 2), x and y in pixels
    boxes: Tensor  # int64 (n, 4), x0 y0 x1 y1 in pixels, x1 and y1 are inside the mask
    crop_boxes: Tensor  # int64 (n, 4), x0 y0 x1 y1

    def select(self, index: Tensor) -> "_Masks":
        """Those at `index`, in that order."""
        return _Masks(
            [self.counts[i] for i in index.tolist()],
            self.quality[index],
            self.stability[index],
            self.points[index],
            self.boxes[index],
            self.crop_boxes[index],
        )


class AutomaticMaskGenerator(SamAutomaticMaskGenerator):
    """Generates masks for a whole image from a grid of point prompts.

    Drop-in for segment_anything.SamAutomaticMaskGenerator: the same parameters, and in float32 the
    same masks in the same order: on a CPU byte for byte, but for rare pixels of logits that differ
    in more than their last bits; on a GPU about 1 in 100 differs by a pixel or so. Where stock stops
    with an error because a crop has no mask, or no pixel at the network's size, the result has none
    of that crop.

    Where a call that stock makes would run something other than segment_anything's own code (another
    predictor, an overridden method, a patched function, a mask decoder of another class, a hook),
    generate() makes stock's calls in stock's order, in float32. The result is then stock's, errors
    included, and a warning names what was replaced. An image encoder may be replaced at no cost.

    Args:
        model: the Sam; its device is used.
        points_per_side: the grid has points_per_side ** 2 points; None to give `point_grids`.
        points_per_batch: upper bound of the points decoded at once. On a CPU fewer are taken, as
            many as its caches hold (at most 8); masks do not depend on it.
        pred_iou_thresh: keep masks with a greater predicted IoU; 0 or less keeps all.
        stability_score_thresh: keep masks with at least this stability; 0 or less keeps all.
        stability_score_offset: in logits; stability is the IoU of the masks cut at +- this.
        box_nms_thresh: of two masks of a crop with a greater box IoU, the lower quality goes.
        crop_n_layers: layers of crops, layer i has (2 ** i) ** 2 crops; 0 takes the image alone.
        crop_nms_thresh: as box_nms_thresh, between crops; the smaller crop wins.
        crop_overlap_ratio: overlap of the crops in layer 1, as a part of the image's short side.
        crop_n_points_downscale_factor: layer i has points_per_side / factor ** i points a side.
        point_grids: explicit points (n, 2) in [0, 1], x and y, one array for each crop layer.
        min_mask_region_area: holes and islands below this many pixels are removed; 0 for none.
        output_mode: "binary_mask" (bool array (H, W)), "uncompressed_rle" or "coco_rle" (dict with
            size and counts, as pycocotools).
        dtype: torch.bfloat16 makes encoder and decoder faster; masks then differ (typically IoU
            .97 to .99 to those of float32, single ones less).

    Raises:
        ConfigError: a parameter outside of what is allowed.
    """

    # Defaults of the class, for callers who set stock's attributes without this constructor.
    dtype: torch.dtype = torch.float32
    _resize: PillowResize | None = None
    _warned_of: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[np.float64]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if output_mode not in _OUTPUT_MODES:
            raise ConfigError(f"output_mode is {output_mode!r}; choose one of {_OUTPUT_MODES}")
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype is {dtype}; choose torch.float32 or torch.bfloat16")
        check_counts(points_per_batch, crop_n_layers)
        if (points_per_side is None) == (point_grids is None):
            raise ConfigError(
                f"points_per_side is {points_per_side} and point_grids is "
                f"{'None' if point_grids is None else 'given'}; give exactly one, and None for the"
                " other"
            )
        if points_per_side is not None:
            check_sides(points_per_side, crop_n_layers, crop_n_points_downscale_factor)
        if point_grids is not None:
            check_point_grids(point_grids, crop_n_layers)
        super().__init__(
            model=model,
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=crop_n_layers,
            crop_nms_thresh=crop_nms_thresh,
            crop_overlap_ratio=crop_overlap_ratio,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            point_grids=point_grids,  # pyright: ignore[reportArgumentType]
            min_mask_region_area=min_mask_region_area,
        )
        # Set here because stock's constructor imports pycocotools for "coco_rle".
        self.output_mode = output_mode
        self.dtype = dtype

    def generate(self, image: NDArray[Any]) -> list[dict[str, Any]]:
        """Masks of an image, best predicted IoU first within a crop.

        Args:
            image: uint8 (H, W, 3), RGB. Floating values are taken as stock takes them, in [0, 1].

        Returns:
            A dict for each mask: segmentation (see output_mode), area (pixels), bbox (x, y, w, h in
            pixels, w and h from first to last pixel, one less than COCO's), predicted_iou,
            point_coords ([[x, y]]), stability_score (0 to 1), crop_box (x, y, w, h).

        Raises:
            DataError: not such an array, or so narrow that the network would see no pixel of it.
            ConfigError: an attribute was set to a value that is not allowed, or the predictor
                cannot run the model.
        """
        part = replaced_part(self)
        if part is not None:
            self._warn_once("stock's calls", _text_of_replaced(part, self.dtype))
            return self._generate_by_stock(image)
        check_image(image)
        if wraps_around(image):
            self._warn_once("floats", FLOATS_ABOVE_ONE.format(image.dtype, image.max()))
        check_counts(self.points_per_batch, self.crop_n_layers)
        check_point_grids(self.point_grids, self.crop_n_layers)
        return self._generate_fast(image)

    def _warn_once(self, topic: str, text: str) -> None:
        """A warning for the caller of generate(), unless this generator gave one on the topic."""
        if topic not in self._warned_of:
            self._warned_of |= {topic}
            warnings.warn(text, stacklevel=3)

    def _generate_by_stock(self, image: NDArray[Any]) -> list[dict[str, Any]]:
        """Stock's generate(); errors of which the cause is known get one line."""
        try:
            return super().generate(image)
        except ModuleNotFoundError as error:
            if error.name != "pycocotools":
                raise
            raise ConfigError(
                "output_mode is 'coco_rle', for which segment_anything's own generator needs"
                " pycocotools: install it, or set output_mode to 'uncompressed_rle'"
            ) from error
        except (TypeError, AttributeError) as error:
            clear_error = mismatch(self.predictor)
            if clear_error is None:
                raise
            raise clear_error from error

    @torch.no_grad()
    def _generate_fast(self, image: NDArray[Any]) -> list[dict[str, Any]]:
        """The masks of stock without its calls; nothing of what it skips was replaced."""
        size = image.shape[:2]
        boxes, layers = _crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
        if not self._is_seen(boxes[0]):
            side = self.predictor.model.image_encoder.img_size
            raise DataError(
                f"image is {size[1]}x{size[0]} pixels, too narrow for a network that sees its longer"
                f" side as {side}: nothing of the shorter one is left; crop the image"
            )
        crops = [(b, k) for b, k in zip(boxes, layers, strict=True) if self._is_seen(b)]
        masks = _join([self._masks_of_crop(image, *crop) for crop in crops])
        if len(boxes) > 1:
            masks = self._without_duplicates_of_crops(masks)
        if self.min_mask_region_area > 0 and masks.counts:
            masks = self._without_small_regions(masks, size)
        return self._records(masks, size)

    def _is_seen(self, box: Box) -> bool:
        """Whether a crop has a pixel at the network's size; crops of tiny images may have none."""
        x0, y0, x1, y1 = box
        if x1 <= x0 or y1 <= y0:
            return False
        side = self.predictor.model.image_encoder.img_size
        return min(self.predictor.transform.get_preprocess_shape(y1 - y0, x1 - x0, side)) > 0

    def _masks_of_crop(self, image: NDArray[Any], box: Box, layer: int) -> _Masks:
        """Masks of one crop without duplicates among them."""
        x0, y0, x1, y1 = box
        size = image.shape[:2]
        if self._resize is None:
            self._resize = PillowResize()
        crop = encode_crop(self.predictor, image[y0:y1, x0:x1], self.dtype, self._resize)
        points = np.asarray(self.point_grids[layer]) * np.array([crop.size[::-1]])
        thresholds = Thresholds(
            self.pred_iou_thresh, self.stability_score_thresh, self.stability_score_offset
        )
        found = find_candidates(crop, points, self.points_per_batch, thresholds)
        found = found.select(~_near_crop_edge(found.boxes, box, size))
        found = found.select(_suppress(found.boxes, found.quality, self.box_nms_thresh))
        found = settle_doubtful(crop, found, self.stability_score_offset)
        boxes = found.boxes + torch.tensor([x0, y0, x0, y0])
        return _Masks(
            found.runs((y0, x0), size),
            found.quality,
            found.stability,
            found.points + torch.tensor([x0, y0]),
            boxes,
            torch.tensor(box).repeat(len(boxes), 1),
        )

    def _without_duplicates_of_crops(self, masks: _Masks) -> _Masks:
        """Where masks of several crops overlap, those of the smallest crop stay."""
        sides = masks.crop_boxes[:, 2:] - masks.crop_boxes[:, :2]
        return masks.select(_suppress(masks.boxes, 1 / sides.prod(dim=1), self.crop_nms_thresh))

    def _without_small_regions(self, masks: _Masks, size: tuple[int, int]) -> _Masks:
        """Fills small holes, removes small islands, and the duplicates that this makes.

        Masks that did not need it win over those that changed. Masks are decoded one at a time.
        """
        boxes, unchanged = [], []
        for k, counts in enumerate(masks.counts):
            mask, changed = _cleaned(run_lengths.decode(counts, size), self.min_mask_region_area)
            boxes.append(tight_box(mask.T) or (0, 0, 0, 0))
            unchanged.append(float(not changed))
            if changed:
                masks.counts[k] = run_lengths.encode_masks([mask])[0]
                masks.boxes[k] = torch.tensor(boxes[-1])
        threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
        return masks.select(_suppress(torch.tensor(boxes), torch.tensor(unchanged), threshold))

    def _records(self, masks: _Masks, size: tuple[int, int]) -> list[dict[str, Any]]:
        boxes, crops = _xywh(masks.boxes), _xywh(masks.crop_boxes)
        return [
            {
                "segmentation": segmentation,
                "area": run_lengths.area(masks.counts[k]),
                "bbox": boxes[k].tolist(),
                "predicted_iou": masks.quality[k].item(),
                "point_coords": [masks.points[k].tolist()],
                "stability_score": masks.stability[k].item(),
                "crop_box": crops[k].tolist(),
            }
            for k, segmentation in enumerate(self._segmentations(masks.counts, size))
        ]

    def _segmentations(self, masks: list[run_lengths.Counts], size: tuple[int, int]) -> list[Any]:
        if self.output_mode == "binary_mask":
            return [run_lengths.decode(counts, size) for counts in masks]
        if self.output_mode == "coco_rle":
            return [{"size": list(size), "counts": s} for s in run_lengths.to_coco_strings(masks)]
        return [{"size": list(size), "counts": counts.tolist()} for counts in masks]


def _text_of_replaced(part: str, dtype: torch.dtype) -> str:
    precision = "" if dtype == torch.float32 else f", in float32 although dtype is {dtype}"
    return (
        f"{part}, so the masks are made by the calls of segment_anything's own generator{precision}:"
        " they are the same as its masks, but take longer"
    )


def _crop_boxes(
    size: tuple[int, int], n_layers: int, overlap_ratio: float
) -> tuple[list[Box], list[int]]:
    """The image, then 2^i x 2^i overlapping crops for each layer i, column by column."""
    height, width = size
    boxes, layers = [(0, 0, width, height)], [0]
    for layer in range(1, n_layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / n))
        w, h = (ceil((overlap * (n - 1) + side) / n) for side in (width, height))
        for i, j in product(range(n), range(n)):
            x0, y0 = (w - overlap) * i, (h - overlap) * j
            boxes.append((x0, y0, min(x0 + w, width), min(y0 + h, height)))
            layers.append(layer)
    return boxes, layers


def _near_crop_edge(boxes: Tensor, crop: Box, size: tuple[int, int]) -> Tensor:
    """Which boxes (in crop coordinates) end near a crop edge that is not an image edge."""
    in_image = boxes + torch.tensor([crop[0], crop[1], crop[0], crop[1]])
    image_edges = torch.tensor([0, 0, size[1], size[0]])
    near_crop = (in_image - torch.tensor(crop)).abs() <= _EDGE_TOLERANCE
    near_image = (in_image - image_edges).abs() <= _EDGE_TOLERANCE
    return (near_crop & ~near_image).any(dim=1)


def _suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices that survive non-maximum suppression by box IoU, best score first."""
    return batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), threshold)


def _join(parts: list[_Masks]) -> _Masks:
    return _Masks(
        [counts for part in parts for counts in part.counts],
        torch.cat([part.quality for part in parts]),
        torch.cat([part.stability for part in parts]),
        torch.cat([part.points for part in parts]),
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.crop_boxes for part in parts]),
    )


def _cleaned(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Mask without holes and islands of fewer than min_area pixels, and whether it had any.

    If all islands are that small, the largest stays.
    """
    holes, hole_areas = _components(~mask)
    small_hole = np.append(False, hole_areas < min_area)
    filled = mask | small_hole[holes] if small_hole.any() else mask
    islands, island_areas = _components(filled)
    small = island_areas < min_area
    if not small.any():
        return filled, bool(small_hole.any())
    if small.all():
        small[np.argmax(island_areas)] = False
    return np.append(False, ~small)[islands], True


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels (H, W) of 8-connected components, 0 for background, and areas of labels 1, 2, ..."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return np.asarray(labels), np.asarray(stats)[1:, cv2.CC_STAT_AREA]


def _xywh(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
