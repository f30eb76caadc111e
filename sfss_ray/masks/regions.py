"""Region sources: SAM, the small SAM shipped with this package, or a classical segmenter.

A region source is any callable that takes a uint8 (H, W, 3) RGB image and returns a list of mask
records, in the form of the `masks` column of the shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sfss_ray.config import MaskConfig
from sfss_ray.data.depth import White
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import ConfigError
from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_strings
from sfss_ray.masks.bank.schema import CONCEPTS
from sfss_ray.storage.places import Place

if TYPE_CHECKING:
    from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
    from sfss_ray.masks.sam.promptable import EncodedCrop

RegionSource = Callable[[np.ndarray], list[dict[str, Any]]]
SamType = Literal["auto", "vit_b", "vit_l", "vit_h", "small", "hf_sam", "sam2", "sam3"]

_SAM_KNOBS = (
    "points_per_side",
    "pred_iou_thresh",
    "stability_score_thresh",
    "stability_score_offset",
    "box_nms_thresh",
    "crop_n_layers",
    "min_mask_region_area",
)
SAM_THRESHOLDS = {
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.95,
    "stability_score_offset": 1.0,
    "box_nms_thresh": 0.7,
}
"""SAM's own thresholds, defaults of its SamAutomaticMaskGenerator."""
_CROP_DEFAULTS = {
    "crop_n_points_downscale_factor": 1,
    "crop_overlap_ratio": 512 / 1500,
    "crop_nms_thresh": 0.7,
}
"""SAM's own defaults. A recipe omits them, because earlier releases had no such settings."""
_FELZENSZWALB_KNOBS = ("felzenszwalb_scale", "felzenszwalb_min_size")
_REFERENCE_PIXELS = 480 * 360  # felzenszwalb_min_size is stated for this image size
IMPORTED = "imported"
"""Source of imported masks; no setting of this package makes them."""
NOTES = {
    "sam": "segment-anything",
    "small_sam": "the small SAM shipped with this package, trained on drawn scenes alone",
    "felzenszwalb": "Felzenszwalb's graph segmentation: a classical segmenter, not SAM",
    IMPORTED: "made elsewhere and imported",
    CONCEPTS: "SAM 3 prompted with class names",
}


_NETWORK_NOTES = {
    **{name: f"segment-anything, {name}" for name in ("vit_b", "vit_l", "vit_h")},
    "hf_sam": "SAM, from transformers",
    "sam2": "SAM 2, from transformers",
    "sam3": "SAM 3, from transformers",
}


def note_of(recipe: Mapping[str, Any]) -> str:
    """Return the words for the source of masks, from the metadata of their shards."""
    network_note = _NETWORK_NOTES.get(recipe.get("sam_type", ""))
    unknown = "a source that this version does not know"
    return network_note or NOTES.get(str(recipe.get("source", "unknown")), unknown)


@dataclass(frozen=True)
class RegionRecipe:
    """Everything that determines the masks: two equal recipes give equal masks."""

    source: str
    sam_type: str
    sam_sha256: str
    knobs: dict[str, Any]
    precision: str = "fp32"
    white_level: float | None = None
    """Pixel value of white in images of more than 8 bits; None without such images."""
    embeddings: bool = False
    """Whether each mask has the mean embedding of the image encoder."""
    white_was_set: bool = False
    """Whether the user set it, so that it was not estimated from the images."""

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for the metadata of shards, without defaults that earlier releases lacked."""
        entries, defaults = asdict(self), {f.name: f.default for f in fields(self)}
        return {name: entry for name, entry in entries.items() if entry != defaults[name]}

    def for_images(self, images: Sequence[ImageFile]) -> RegionRecipe:
        """Return the recipe with the white level of these images."""
        white = next((image.white for image in images if image.white is not None), None)
        if white is None:
            return self
        return replace(self, white_level=white.value, white_was_set=white.was_set)

    @property
    def white(self) -> White | None:
        """White level of images of more than 8 bits."""
        return white_in(self.as_dict())

    @property
    def is_network(self) -> bool:
        """Whether a network finds the regions; other sources need neither torch nor a GPU."""
        return bool(self.sam_type)


def white_in(recipe: Mapping[str, Any]) -> White | None:
    """Return the white level of the images of masks, from the metadata of their shards."""
    level = recipe.get("white_level")
    return None if level is None else White(level, recipe.get("white_was_set", False))


def choose_source(config: MaskConfig, sam_checkpoint: Place | str | None) -> str:
    """Resolve `regions = auto`.

    Raises:
        ConfigError: region source and checkpoint contradict each other.
    """
    if config.regions == "auto":
        return "felzenszwalb" if sam_checkpoint is None else "sam"
    if config.regions == "sam" and sam_checkpoint is None:
        raise ConfigError(
            "regions is 'sam' but no SAM checkpoint was given: give one (sam_checkpoint), or choose"
            " regions small_sam or felzenszwalb"
        )
    if config.regions != "sam" and sam_checkpoint is not None:
        raise ConfigError(
            f"regions is {config.regions!r} but a SAM checkpoint was given: choose regions sam, or"
            " leave the checkpoint out"
        )
    return config.regions


def make_recipe(
    config: MaskConfig, sam_checkpoint: Place | str | None, sam_type: SamType = "auto"
) -> tuple[RegionRecipe, Place | None]:
    """Return the recipe of a mask run and the checkpoint it needs, after checking the weights.

    Args:
        config: settings of masks.
        sam_checkpoint: SAM weights (a file, a folder, the address of either, or a name in the Hub's
            cache), or None.
        sam_type: the type that the checkpoint must contain.

    Raises:
        CheckpointError: the weights are missing, not of the SAM family, or of another type than
            `sam_type`.
        ConfigError: region source and checkpoint contradict each other, or a layer of crops has no
            points.
    """
    source = choose_source(config, sam_checkpoint)
    if source == "felzenszwalb":
        return RegionRecipe(source, "", "", _knobs(config, _FELZENSZWALB_KNOBS)), None
    _require_points(config)
    from sfss_ray.masks.sam.loading import load_promptable, resolve_checkpoint, type_of_network
    from sfss_ray.masks.sam.networks import shipped_small_sam
    from sfss_ray.models.checkpoint_copy import checkpoint_on_disk
    from sfss_ray.models.reading import checkpoint_sha256

    is_small = source == "small_sam"
    shipped = shipped_small_sam()
    checkpoint = shipped if is_small else resolve_checkpoint(sam_checkpoint or "")
    actual_type = type_of_network(load_promptable(checkpoint, sam_type))
    # Thresholds that the user did not set are those of the weights.
    defaults = _small_sam_thresholds(shipped) if is_small else SAM_THRESHOLDS
    configured = {k: v for k, v in _knobs(config, _SAM_KNOBS).items() if v is not None}
    knobs = {name: configured.get(name, defaults.get(name)) for name in _SAM_KNOBS}
    if config.crop_n_layers:
        knobs |= {
            k: v for k, v in _knobs(config, tuple(_CROP_DEFAULTS)).items() if v != _CROP_DEFAULTS[k]
        }
    if config.skip_covered_iou is not None:  # earlier releases had no such setting
        knobs["skip_covered_iou"] = config.skip_covered_iou
    with checkpoint_on_disk(checkpoint) as file:
        sha256 = checkpoint_sha256(Path(file))
    recipe = RegionRecipe(source, actual_type, sha256, knobs, config.precision)
    return replace(recipe, embeddings=config.embeddings), checkpoint


def _require_points(config: MaskConfig) -> None:
    """Raise ConfigError if the smallest crops would have no points."""
    if config.points_per_side < config.crop_n_points_downscale_factor**config.crop_n_layers:
        raise ConfigError(
            f"crops of layer {config.crop_n_layers} would have no points: raise points_per_side"
            f" ({config.points_per_side}) or lower crop_n_points_downscale_factor"
            f" ({config.crop_n_points_downscale_factor})"
        )


def _small_sam_thresholds(checkpoint: Path) -> dict[str, float]:
    """Return the thresholds of the small SAM, measured after its training."""
    measured = json.loads(checkpoint.with_suffix(".json").read_text())["generator"]
    return {name: measured[name] for name in SAM_THRESHOLDS}


def _knobs(config: MaskConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def build_region_source(
    recipe: RegionRecipe,
    checkpoint: Place | None,
    points_per_batch: int,
    device: str,
    as_strings: bool = True,
    on_encoded: Callable[[], None] = lambda: None,
) -> RegionSource:
    """Return the region source of a recipe.

    Args:
        recipe: of the masks.
        checkpoint: SAM weights, or None for a recipe without a network.
        points_per_batch: points decoded at once; it changes no mask.
        device: of the network.
        as_strings: whether `counts` of the records are COCO strings. A source may return int32 run
            lengths otherwise, from which `encode_counts` makes the strings in another process.
        on_encoded: called each time the network's image encoder is done with an image or a crop.
    """
    if recipe.source == "felzenszwalb":
        return _felzenszwalb(**recipe.knobs)
    import torch

    from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
    from sfss_ray.masks.sam.image_masks import RUN_LENGTHS
    from sfss_ray.masks.sam.loading import load_promptable
    from sfss_ray.masks.sam.networks import shipped_small_sam

    if recipe.source == "small_sam":  # the package lies elsewhere on another node
        checkpoint = shipped_small_sam()
    assert checkpoint is not None
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    if recipe.source == CONCEPTS:
        from sfss_ray.masks.concepts.class_masks import class_mask_source
        from sfss_ray.masks.concepts.concept_checkpoint import load_concepts

        assert isinstance(checkpoint, Path), "networks that take text are folders on a disk"
        model = load_concepts(checkpoint, device, dtype)
        model.on_encoded = on_encoded
        return class_mask_source(model, **recipe.knobs)
    generator = AutomaticMaskGenerator(
        load_promptable(checkpoint, device=device),
        points_per_batch=points_per_batch,
        output_mode="coco_rle",
        dtype=dtype,
        **recipe.knobs,  # pyright: ignore[reportArgumentType]
    )
    if not as_strings:
        generator.output_mode = RUN_LENGTHS
    if not recipe.embeddings:
        generator.on_encoded = lambda _crop: on_encoded()
        return lambda image: [_record(mask) for mask in generator.generate(image)]
    return partial(_generate_with_embeddings, generator, on_encoded)


def _generate_with_embeddings(
    generator: AutomaticMaskGenerator, on_encoded: Callable[[], None], image: np.ndarray
) -> list[dict[str, Any]]:
    from sfss_ray.masks.sam.mask_embeddings import add_embeddings

    crops: list[EncodedCrop] = []

    def keep(crop: EncodedCrop) -> None:
        crops.append(crop)
        on_encoded()

    generator.on_encoded = keep
    records = [_record(mask) for mask in generator.generate(image)]
    return add_embeddings(records, crops[0], (image.shape[0], image.shape[1]))


def _record(mask: dict[str, Any]) -> dict[str, Any]:
    counts = mask["segmentation"]["counts"]
    return {
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
        "area": int(mask["area"]),
        "bbox": [int(v) for v in mask["bbox"]],
        "predicted_iou": float(mask["predicted_iou"]),
        "stability_score": float(mask["stability_score"]),
        "point": [float(v) for v in mask["point_coords"][0]],
        "crop_box": [int(v) for v in mask["crop_box"]],
    }


def encode_counts(rows: Sequence[dict[str, Any]]) -> None:
    """Replace the run lengths of all masks of rows by COCO strings; strings stay as they are."""
    for row in rows:
        pending = [mask for mask in row["masks"] if not isinstance(mask["counts"], str)]
        strings = to_coco_strings([mask["counts"] for mask in pending])
        for mask, string in zip(pending, strings, strict=True):
            mask["counts"] = string


def _felzenszwalb(felzenszwalb_scale: float, felzenszwalb_min_size: float) -> RegionSource:
    from skimage.segmentation import felzenszwalb

    def segment(image: np.ndarray) -> list[dict[str, Any]]:
        height, width = image.shape[:2]
        min_size = max(1, round(felzenszwalb_min_size * height * width / _REFERENCE_PIXELS))
        ids = felzenszwalb(image, scale=felzenszwalb_scale, sigma=0.8, min_size=min_size)
        return region_records(ids + 1)

    return segment


def region_records(ids: np.ndarray) -> list[dict[str, Any]]:
    """Return a record for each region of an id map (H, W), 0 = no region, in the order of the ids.

    A classical segmenter has neither prompts nor scores, so these are NaN.
    """
    from scipy.ndimage import find_objects

    boxes = [(k, box) for k, box in enumerate(find_objects(ids), start=1) if box is not None]
    regions = [ids[box] == k for k, box in boxes]
    origins = [(box[0].start, box[1].start) for _, box in boxes]
    strings = to_coco_strings(encode_masks(regions, origins, ids.shape))
    return [
        _classical_record(region, origin, counts, ids.shape)
        for region, origin, counts in zip(regions, origins, strings, strict=True)
    ]


def _classical_record(
    region: np.ndarray, origin: tuple[int, int], counts: str, size: tuple[int, int]
) -> dict[str, Any]:
    nan = float("nan")
    return {
        "counts": counts,
        "area": int(region.sum()),
        "bbox": [origin[1], origin[0], region.shape[1], region.shape[0]],
        "predicted_iou": nan,
        "stability_score": nan,
        "point": [nan, nan],
        "crop_box": [0, 0, size[1], size[0]],
    }
