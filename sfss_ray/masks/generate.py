"""Stage 1: images -> Parquet shards of masks, over a pool of actors on Ray Data.

One item of the data set is one shard. An actor makes all masks of a shard and writes it under its
final name in one rename, and the name is a hash of the shard's image ids: whatever is killed or
retried, a shard is there whole or not at all, and never twice. Ray Data starts what was lost again
without end; deaths.py sees to it that an image which kills its process is given up, and a network
that does.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sfss_ray.config import Config
from sfss_ray.data.folders import ImageFile
from sfss_ray.data.image_folder import open_images
from sfss_ray.masks.actor import MaskActor, actor_spec
from sfss_ray.masks.bank.claims import claimed, refuse_former
from sfss_ray.masks.bank.shards import local_folder
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import RegionRecipe, SamType, make_recipe
from sfss_ray.masks.resume import drop_rows_of, find_rows, remaining, remove_leftovers
from sfss_ray.masks.summary import LOWER, MaskSummary, summarise
from sfss_ray.runtime import cluster
from sfss_ray.runtime.pool import Pool, pool_size
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.runtime.resources import Resources, actor_demand


def generate_masks(
    target_images: Path | str,
    output_dir: Path | str,
    *,
    sam_checkpoint: Path | str | None = None,
    sam_type: SamType = "auto",
    strict: bool = False,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> MaskSummary:
    """Make class-agnostic masks of all images below a folder.

    An image that cannot be read, or whose masks cannot be made, gets a row that says why; it is tried
    again by the next run once it can be read. The command's exit code is 10 and their number (99: 89
    or more), 0 where there is none.

    Args:
        target_images: Folder of images; its folders are searched too.
        output_dir: Folder for the Parquet shards, on a disk that all nodes share. What is finished
            there is kept: run again to go on after an interruption.
        sam_checkpoint: SAM weights; without them regions are found by `config.masks.regions`.
        sam_type: The SAM that the checkpoint must hold; auto tells it from the weights.
        strict: Images that cannot be read are an error, after all others were done.
        config: The whole config; `masks` and `compute` are used.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, and the images that could not be read with the reason.

    Raises:
        DataError: no such folder, no image, or not one readable image; with `strict`, one that is not;
            an output folder that is a file.
        CheckpointError: the SAM checkpoint is missing, damaged or of another type.
        ResumeError: the folder holds masks made by other weights or other knobs, or of other images,
            or another run is making masks there.
        ClusterError: the cluster cannot be reached, has no GPU where one is asked for, or lost the pool.
    """
    config = config or Config()
    started = time.monotonic()
    images, notes = open_images(target_images, config)
    for note in notes:
        progress(note)
    recipe, checkpoint = make_recipe(config.masks, sam_checkpoint, sam_type)
    folder = local_folder(output_dir)
    _check_pool(recipe, config, progress)
    made = mask_images(images, folder, recipe, checkpoint, config, progress)
    seconds = time.monotonic() - started
    summary = summarise(MaskStore(folder), images, recipe.source, made, seconds)
    if not summary.masks:
        progress(f"masks: no image has a mask by {recipe.source}: {LOWER[recipe.source]}")
    if strict:
        summary.require_all()
    return dataclasses.replace(summary, folder=folder)


def _check_pool(recipe: RegionRecipe, config: Config, progress: ProgressSink) -> None:
    """ClusterError, before anything starts, for a pool that the cluster can never hold."""
    compute = config.compute
    cluster.check_address(compute)
    cluster.local_device(compute)
    resources = cluster.capacity(compute)
    device = cluster.choose_device(compute, resources) if recipe.is_network else "cpu"
    actor_demand("mask", compute.mask_actors, device).require(resources)
    progress(f"device: {device} ({resources.describe()})")


def mask_images(
    images: Sequence[ImageFile],
    folder: Path,
    recipe: RegionRecipe,
    checkpoint: Path | str | None,
    config: Config,
    progress: ProgressSink,
) -> int:
    """Make the masks that `folder` lacks of these images; returns of how many images."""
    recipe = recipe.of(images)
    with claimed(folder) as claim:
        remove_leftovers(folder)
        rows = find_rows(folder, recipe, remove_damaged=True)
        left = remaining(folder, rows, images, config.masks.max_pixels)
        drop_rows_of(left.retried | left.changed, rows, recipe)
        if left.images:
            progress(f"masks by {recipe.source}: {left.describe(len(images))}")
            with cluster.connected(config.compute) as resources:
                device = cluster.resolve_device(config.compute) if recipe.is_network else "cpu"
                spec = actor_spec(recipe, checkpoint, folder, config.masks, device, claim)
                _run_pool(left.images, spec, config, resources, progress)
    return len(left.images)


def _run_pool(
    images: list[ImageFile],
    spec: dict[str, Any],
    config: Config,
    resources: Resources,
    progress: ProgressSink,
) -> None:
    on_gpu = spec["device"] == "cuda"
    size = pool_size(config.compute.mask_actors, resources, on_gpu)
    items = list(_shard_items(images, _shard_length(len(images), size, config)))
    pool = Pool("masks", Path(spec["folder"]), MaskActor, size, on_gpu, resources)
    bar, errors = Progress("masks", len(images), progress), 0
    for facts in pool.results(items, spec):
        refuse_former(pool.folder, spec["claim"])
        errors += int(facts["errors"])
        bar.advance(int(facts["images"]), f", {errors} unreadable" if errors else "")


def _shard_length(images: int, pool: int, config: Config) -> int:
    """Few images make short shards, so that every actor has work and progress is seen."""
    return max(1, min(config.masks.images_per_shard, images // (4 * pool)))


def _shard_items(images: list[ImageFile], length: int) -> Iterator[dict[str, str]]:
    """A shard is JSON text: Ray would turn lists of lists into tensors."""
    for start in range(0, len(images), length):
        part = images[start : start + length]
        yield {"shard": json.dumps([(i.image_id, str(i.path.absolute())) for i in part])}
