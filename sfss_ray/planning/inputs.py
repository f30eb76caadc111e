"""Looking at all inputs of a run, so that everything missing is named at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfss_ray import cluster
from sfss_ray.config import Config
from sfss_ray.data.folders import ImageFile, LabelledImage, list_images, pair_labels
from sfss_ray.errors import DataError, SfssError
from sfss_ray.masks.regions import NOTES, RegionRecipe, SamType, make_recipe
from sfss_ray.masks.store import MaskStore, shards
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.train.prepared import check_stage, labelled_images


@dataclass
class Inputs:
    """What was found of a run's inputs; None where something is missing, and why in `missing`."""

    source: Source | None = None
    images: list[ImageFile] = field(default_factory=list)
    labelled: tuple[LabelledImage, ...] = ()
    recipe: RegionRecipe | None = None
    region_weights: Path | None = None
    masks_there: int = 0
    device: str = "cpu"
    found: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def look(self, name: str, work: Callable[[], tuple[Any, str]], absent: Any = None) -> Any:
        """Do a check: its result is found, its error is missing."""
        try:
            result, text = work()
        except SfssError as error:
            self.missing[name] = str(error)
            return absent
        self.found[name] = text
        return result


def look_at_inputs(
    source_model: SourceLike | None,
    target_images: Path | str | None,
    output_dir: Path | str,
    sam: tuple[Path | str | None, SamType],
    val: tuple[Path | str | None, Path | str | None],
    card: CardLike | None,
    config: Config,
) -> Inputs:
    """Every check that a run makes before it starts, none of which hides another."""
    seen = Inputs()
    seen.device = seen.look("device", lambda: _device(config), "cpu")
    seen.source = seen.look("source model", lambda: _source(source_model, card, config))
    seen.images = seen.look("target images", lambda: _images(target_images), [])
    regions = seen.look("regions", lambda: _regions(config, sam), (None, None))
    seen.recipe, seen.region_weights = regions
    if val != (None, None):
        seen.labelled = seen.look("val labels", lambda: _labelled(val, seen.source, config), ())
    seen.masks_there = seen.look("masks", lambda: _masks(Path(output_dir), seen.images), 0)
    return seen


def _device(config: Config) -> tuple[str, str]:
    check_stage(config.train, config.compute)
    cluster.check_address(config.compute)
    device = cluster.local_device(config.compute)
    return device, device


def _source(
    source_model: SourceLike | None, card: CardLike | None, config: Config
) -> tuple[Source, str]:
    if source_model is None:
        raise DataError("no source model was given: give a checkpoint or a model file")
    source = open_source(source_model, card, config.source_weights)
    return source, f"{source.origin}: {source.network}, {source.classes.name}"


def _images(folder: Path | str | None) -> tuple[list[ImageFile], str]:
    if folder is None:
        raise DataError("no target images were given: give a folder")
    images = list_images(folder)
    return images, f"{folder}: {len(images)} images"


def _regions(
    config: Config, sam: tuple[Path | str | None, SamType]
) -> tuple[tuple[RegionRecipe, Path | None], str]:
    recipe, weights = make_recipe(config.masks, *sam)
    return (recipe, weights), f"{recipe.sam_type or recipe.source} ({NOTES[recipe.source]})"


def _labelled(
    val: tuple[Path | str | None, Path | str | None], source: Source | None, config: Config
) -> tuple[tuple[LabelledImage, ...], str]:
    if source is not None:
        pairs = labelled_images(*val, source.classes, config)
    elif None in val:
        raise DataError("val images and val labels belong together: give both, or neither")
    else:
        pairs = tuple(pair_labels(*val))  # pyright: ignore[reportArgumentType]
    return pairs, f"{len(pairs)} pairs"


def _masks(output_dir: Path, images: list[ImageFile]) -> tuple[int, str]:
    folder = output_dir / "masks"
    done = set(MaskStore(folder).ids()) if shards(folder) else set()
    there = sum(image.image_id in done for image in images)
    return there, f"{there} of {len(images)} images have masks in {folder}"
