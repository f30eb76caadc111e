"""The request of a run as its caller makes it, and its inputs once they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sfss_ray.config import Config
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.content import Content
from sfss_ray.data.folders import ImageFile, LabelledImage, split_held_out
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concept_stage import ConceptStage
from sfss_ray.masks.regions import RegionRecipe, SamType
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import Source, SourceLike
from sfss_ray.storage.places import Place, parsed

_PLACES = ("source_model", "target_images", "output_dir", "card", "class_groups", "sam_checkpoint")
_PLACES += ("masks", "val_images", "val_labels")


@dataclass(frozen=True)
class Request:
    """Arguments of a run; `adapt` describes them."""

    kind: Literal["adapt", "tune", "train"]
    source_model: SourceLike | None
    target_images: Place | str | None
    output_dir: Place | str
    config: Config
    card: CardLike | None = None
    class_groups: ClassGroupsLike | None = None
    sam_checkpoint: Place | str | None = None
    sam_type: SamType = "auto"
    masks: Place | str | None = None
    val_images: Place | str | None = None
    val_labels: Place | str | None = None

    def __post_init__(self):
        # From here on messages cannot contain the password of an address.
        for name in _PLACES:
            object.__setattr__(self, name, parsed(getattr(self, name)))


@dataclass(frozen=True)
class Inputs:
    """Inputs of a run that have passed every check."""

    source: Source
    images: tuple[ImageFile, ...]
    """The target images."""
    labelled: tuple[LabelledImage, ...]
    """Labelled images to score on; empty without labels."""
    recipe: RegionRecipe | None
    """How masks are made; None where the request names existing masks."""
    region_weights: Place | None
    """SAM weights of the recipe; None where it needs none."""
    masks: MaskStore | None
    """Existing masks that the request names."""
    device: str
    """Device of the workers, 'cpu' or 'cuda'."""
    config: Config
    """The request's config, with all that was open settled; the run's record holds it."""
    contents: dict[str, Content] | None = field(default=None, repr=False)
    """Contents of the input files by name, where a run is resumed."""
    notes: tuple[str, ...] = ()
    """Assumptions and choices, in lines for people."""
    concepts: ConceptStage | None = None
    """How masks with classes are made, where the config names a network for them."""

    @property
    def classes(self) -> ClassSet:
        """The class set of the source model."""
        return self.source.classes


def split_target_images(
    images: Sequence[ImageFile], masks: MaskStore | None, config: Config
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Split target images into training images and held-out images.

    Images that could not be read when the masks were made belong to neither.

    Args:
        images: All target images.
        masks: Their masks; None while there are none.
        config: `evaluation.held_out_share` and `evaluation.held_out_max` are used.
    """
    readable = [image for image in images if masks is None or image.image_id not in masks.errors]
    evaluation = config.evaluation
    return split_held_out(readable, evaluation.held_out_share, evaluation.held_out_max)
