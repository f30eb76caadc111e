"""SAM's automatic mask generation: the masks of segment_anything in a fraction of the time.

AutomaticMaskGenerator is a drop-in for segment_anything.SamAutomaticMaskGenerator, called "stock" in
this folder. The stock generator spends most of its time on candidates that it later discards: it
enlarges every candidate to image size in float32 and filters afterwards. Here each step runs only on
the candidates that passed the previous one: predicted IoU, then the low-resolution mask, then the
pixels of its region (stability, box, crop edge), then non-maximum suppression, and only then the RLE.
Surviving masks with a pixel where rounding decides are decoded again with the stock order of sums
(reference_decoder.py).

candidates.py holds the steps up to the suppression. decoder.py, upsample.py, measure_cpu.py and
measure_gpu.py hold their arithmetic. This fast path skips functions that the stock generator calls.
If a caller replaced one of them (replaced_parts.py), the inherited methods run instead.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import build_all_layer_point_grids

from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.sam.boxes import Box, crop_boxes
from sfss_ray.masks.sam.candidates import Thresholds
from sfss_ray.masks.sam.conventions import (
    CropRequest,
    ImageRequest,
    Suppression,
    masks_of_image,
    masks_of_pipeline,
)
from sfss_ray.masks.sam.generator_checks import (
    FLOATS_ABOVE_ONE,
    check_convention,
    check_counts,
    check_image,
    check_options,
    check_point_grids,
    check_points,
    wraps_around,
)
from sfss_ray.masks.sam.loading import load_promptable
from sfss_ray.masks.sam.promptable import EncodedCrop, PromptableModel
from sfss_ray.masks.sam.recognition import check_float32, promptable_model
from sfss_ray.masks.sam.replaced_parts import mismatch, replaced_part
from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.masks.sam.segment_anything_model import SegmentAnythingModel


class AutomaticMaskGenerator(SamAutomaticMaskGenerator):
    """Generate masks for a whole image from a grid of point prompts.

    Drop-in for segment_anything.SamAutomaticMaskGenerator: it takes the same parameters and in float32
    returns the same masks in the same order. On a CPU they are equal byte for byte, except for rare
    pixels whose logits differ by more than their last bits. On a GPU about 1 mask in 100 differs by
    about a pixel. The stock generator raises an error for a crop without masks, or without a pixel at
    the network's size. Here such a crop contributes no masks.

    A caller may have replaced code of segment_anything: the predictor, a method, a function, the class
    of the mask decoder, or a hook. generate() then calls the stock methods in their order, in float32.
    The result, errors included, is that of the stock generator, and a warning names the replaced part.
    Replacing the image encoder does not need this and costs no speed.

    Models of transformers go the same fast way: SAM, SAM 2 and the tracker of SAM 3, with the image
    processor and the image encoder of transformers.

    Args:
        model: segment_anything's Sam, or a SamModel, Sam2Model or Sam3TrackerModel of transformers;
            its device is used. Or a module with image_encoder, prompt_encoder and mask_decoder like
            Sam's. Or the path of weights, or the name of a model in the local cache of the Hugging
            Face Hub (loading.py).
        points_per_side: the grid has points_per_side ** 2 points; None if `point_grids` is given.
        points_per_batch: points decoded at once, at most. On a CPU fewer are decoded at once, as many
            as fit its caches (at most 8). Masks do not depend on it.
        pred_iou_thresh: keep masks with a greater predicted IoU; 0 or less keeps all.
        stability_score_thresh: keep masks with at least this stability score; 0 or less keeps all.
        stability_score_offset: in logits; the stability score is the IoU of the masks thresholded
            this far above and below the mask threshold.
        box_nms_thresh: if the boxes of two masks of a crop have a greater IoU, the mask with the lower
            predicted IoU is dropped.
        crop_n_layers: layers of crops; layer i has (2 ** i) ** 2 crops, 0 uses the whole image only.
        crop_nms_thresh: as box_nms_thresh, between crops; the mask of the smaller crop wins.
        crop_overlap_ratio: overlap of the crops in layer 1, as a fraction of the image's short side.
        crop_n_points_downscale_factor: layer i has points_per_side / factor ** i points a side.
        point_grids: explicit points (n, 2) in [0, 1], x and y, one array for each crop layer.
        min_mask_region_area: holes and islands with fewer pixels are removed; 0 keeps all.
        output_mode: "binary_mask" (bool array (H, W)), "uncompressed_rle" or "coco_rle" (dict with
            size and counts, as pycocotools).
        dtype: torch.bfloat16 makes encoder and decoder faster. Masks then differ: their IoU with the
            float32 masks is typically .97 to .99, and lower for single masks.
        convention: "segment_anything" gives all parameters the meaning above. "transformers", for its
            models, gives the masks of its mask-generation pipeline: crop_nms_thresh applies to the
            masks of all crops together, box_nms_thresh does not apply (conventions.py).
        skip_covered_iou: points inside a mask already found with at least this predicted IoU are
            skipped. That is faster and loses masks; None skips no point.

    Raises:
        ConfigError: a parameter is out of range, or the model cannot be used.
        CheckpointError: the weights cannot be loaded.
    """

    # Class defaults, for callers who set the stock attributes without calling this constructor.
    dtype: torch.dtype = torch.float32
    convention: str = "segment_anything"
    skip_covered_iou: float | None = None
    on_encoded: Callable[[EncodedCrop], None] | None = None
    """Called with each crop after the image encoder, the whole image first; not by stock calls."""
    _model: PromptableModel | None = None
    _resize: PillowResize | None = None
    _warned_topics: frozenset[str] = frozenset()

    def __init__(
        self,
        model: Any,
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
        convention: str = "segment_anything",
        skip_covered_iou: float | None = None,
    ) -> None:
        check_options(output_mode, dtype)
        check_counts(points_per_batch, crop_n_layers)
        check_points(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        settings: dict[str, Any] = {
            "points_per_batch": points_per_batch,
            "pred_iou_thresh": pred_iou_thresh,
            "stability_score_thresh": stability_score_thresh,
            "stability_score_offset": stability_score_offset,
            "box_nms_thresh": box_nms_thresh,
            "crop_n_layers": crop_n_layers,
            "crop_nms_thresh": crop_nms_thresh,
            "crop_overlap_ratio": crop_overlap_ratio,
            "crop_n_points_downscale_factor": crop_n_points_downscale_factor,
            "min_mask_region_area": min_mask_region_area,
        }
        if isinstance(model, str | Path):
            model = load_promptable(model)
        self._model = promptable_model(model)
        check_convention(convention, is_stock=self._model is None)
        self.convention, self.skip_covered_iou = convention, skip_covered_iou
        if self._model is None:
            super().__init__(model, points_per_side, point_grids=point_grids, **settings)  # pyright: ignore[reportArgumentType]
        else:  # there is no stock predictor for other models
            vars(self).update(settings)
            self.point_grids: Any = point_grids
            if points_per_side is not None:
                self.point_grids = build_all_layer_point_grids(
                    points_per_side, crop_n_layers, crop_n_points_downscale_factor
                )
        # Set here because the stock constructor imports pycocotools for "coco_rle".
        self.output_mode = output_mode
        self.dtype = dtype

    def generate(self, image: NDArray[Any]) -> list[dict[str, Any]]:
        """Return the masks of an image, within a crop in descending order of predicted IoU.

        Args:
            image: uint8 (H, W, 3), RGB. Floating-point images are in [0, 1], as in segment_anything.

        Returns:
            A dict for each mask: segmentation (see output_mode), area (pixels), bbox (x, y, w, h in
            pixels, w and h from first to last pixel, one less than COCO's), predicted_iou,
            point_coords ([[x, y]]), stability_score (0 to 1), crop_box (x, y, w, h).

        Raises:
            DataError: the image is not such an array, or so narrow that its shorter side has no pixel
                at the network's size.
            ConfigError: an attribute was set to a value out of range, or the predictor cannot run the
                model.
        """
        clause = replaced_part(self) if self._model is None else None
        if clause is not None:
            self._warn_once("stock calls", _replacement_warning(clause, self.dtype))
            return self._generate_with_stock_calls(image)
        check_image(image)
        if wraps_around(image):
            self._warn_once("floats", FLOATS_ABOVE_ONE.format(image.dtype, image.max()))
        check_counts(self.points_per_batch, self.crop_n_layers)
        check_point_grids(self.point_grids, self.crop_n_layers)
        return self._generate_fast(image)

    def _warn_once(self, topic: str, message: str) -> None:
        """Warn the caller of generate(), once per topic and generator."""
        if topic not in self._warned_topics:
            self._warned_topics |= {topic}
            warnings.warn(message, stacklevel=3)

    def _generate_with_stock_calls(self, image: NDArray[Any]) -> list[dict[str, Any]]:
        """Call the stock generate(); errors with a known cause become one line."""
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
        """Compute the stock masks without the stock calls, none of which was replaced."""
        model, image_size = self._promptable_model(), (image.shape[0], image.shape[1])
        boxes, layers = crop_boxes(image_size, self.crop_n_layers, self.crop_overlap_ratio)
        if not _has_pixels(model, boxes[0]):
            raise DataError(
                f"image is {image_size[1]}x{image_size[0]} pixels, too narrow for a network that"
                f" resizes the longer side to {model.input_side}: the shorter side has no pixel left;"
                " crop the image"
            )
        crops = [
            CropRequest(box, self.point_grids[layer], partial(self._encode, model, image, box))
            for box, layer in zip(boxes, layers, strict=True)
            if _has_pixels(model, box)
        ]
        thresholds = Thresholds(
            self.pred_iou_thresh, self.stability_score_thresh, self.stability_score_offset
        )
        suppression = Suppression(self.box_nms_thresh, self.crop_nms_thresh)
        request = ImageRequest(
            image_size,
            crops,
            self.points_per_batch,
            thresholds,
            suppression,
            self.skip_covered_iou,
        )
        make = masks_of_pipeline if self.convention == "transformers" else masks_of_image
        masks = make(request)
        if self.min_mask_region_area > 0 and masks.counts:
            iou_threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
            masks = masks.without_small_regions(
                self.min_mask_region_area, image_size, iou_threshold
            )
        return masks.to_records(image_size, self.output_mode)

    def _encode(self, model: PromptableModel, image: NDArray[Any], box: Box) -> EncodedCrop:
        x0, y0, x1, y1 = box
        encoded = model.encode(image[y0:y1, x0:x1], self.dtype)
        if self.on_encoded is not None:
            self.on_encoded(encoded)
        return encoded

    def _promptable_model(self) -> PromptableModel:
        """Return the model; a Sam is that of the current predictor, which a caller may replace."""
        if self._model is not None:
            return self._model
        check_float32(self.predictor.model)
        if self._resize is None:
            self._resize = PillowResize()
        return SegmentAnythingModel(self.predictor, self._resize)


def _has_pixels(model: PromptableModel, box: Box) -> bool:
    """Return whether a crop has a pixel at the network's size; tiny crops may have none."""
    x0, y0, x1, y1 = box
    return x1 > x0 and y1 > y0 and model.has_pixels(y1 - y0, x1 - x0)


def _replacement_warning(clause: str, dtype: torch.dtype) -> str:
    precision = "" if dtype == torch.float32 else f", in float32 although dtype is {dtype}"
    return (
        f"{clause}, so the masks are made by the calls of segment_anything's own generator{precision}:"
        " they are the same as its masks, but take longer"
    )
