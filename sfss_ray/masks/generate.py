"""Stage 1: images -> Parquet shards of masks, over a pool of actors on Ray Data.

One item of the Ray data set is one shard. On CPUs an actor does all of its work. On GPUs a task decodes
its images, an actor finds the masks, and a task writes the shard, each in a process of its own
(masks/stages.py). The shard gets its final name in one rename. The name is a hash of the image ids.
Even after a crash or a retry, a shard therefore exists whole or not at all, and never twice. Ray Data
restarts lost work without limit. runtime/crash_guard.py gives up an image, or a network, that kills its
process repeatedly.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sfss_ray.config import ComputeConfig, Config
from sfss_ray.data.decoded_items import images_that_fit
from sfss_ray.data.folders import ImageFile
from sfss_ray.data.image_folder import open_images
from sfss_ray.errors import ConfigError
from sfss_ray.masks.actor import MaskActor, actor_spec
from sfss_ray.masks.bank.claims import claim_folder, require_claim
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import RegionRecipe, SamType, make_recipe
from sfss_ray.masks.resume import drop_rows_of, find_rows, remaining_work, remove_leftovers
from sfss_ray.masks.stages import StagedMaskActor, decode_shard, write_rows
from sfss_ray.masks.summary import HOW_TO_GET_MASKS, MaskSummary, summarise
from sfss_ray.runtime import cluster
from sfss_ray.runtime.devices import choose_device
from sfss_ray.runtime.pool import Pool, Stages
from sfss_ray.runtime.pool_plan import ITEM_BYTES, PoolPlan, make_plan
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.runtime.resources import (
    Demand,
    Resources,
    actor_demand,
    actor_gpus,
)
from sfss_ray.storage.files import lasting_place
from sfss_ray.storage.places import Place, to_place, to_text


def generate_masks(
    target_images: Place | str,
    output_dir: Place | str,
    *,
    sam_checkpoint: Place | str | None = None,
    sam_type: SamType = "auto",
    strict: bool = False,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> MaskSummary:
    """Make class-agnostic masks of all images below a folder.

    If an image cannot be read, or its masks cannot be made, its row says why. The next run tries it
    again once it can be read. The exit code of the command is 0 if all images have masks, else 10 plus
    the number of failed images (99: 89 or more).

    Args:
        target_images: Folder of images; its subfolders are searched too.
        output_dir: Folder for the Parquet shards: an address such as s3://bucket/masks, or a path on a
            disk that all nodes share. Finished shards in it are kept: run again to resume after an
            interruption.
        sam_checkpoint: SAM weights: a file, a folder of transformers, or a name in the cache of the
            Hugging Face Hub; without them `config.masks.regions` finds the regions.
        sam_type: The SAM type that the checkpoint must contain; auto recognises it from the weights.
        strict: Raise an error for images that cannot be read, after all other images are done.
        config: The whole config; `masks` and `compute` are used.
        progress: Called with a line of text during the run.

    Returns:
        Counts, and the images that could not be read with the reason.

    Raises:
        DataError: the folder does not exist, or has no image or no readable image; with `strict`, an
            image cannot be read; the output folder is a file.
        CheckpointError: the SAM checkpoint is missing, damaged or of another type.
        ConfigError: `masks.concepts` is set, which needs the classes of a source model.
        ResumeError: the folder contains masks of other weights, settings or images, or another run is
            making masks there.
        ClusterError: the cluster cannot be reached, has no GPU although one is required, or lost the
            pool.
    """
    config = config or Config()
    _refuse_concepts(config)
    started = time.monotonic()
    images, notes = open_images(target_images, config)
    for note in notes:
        progress(note)
    recipe, checkpoint = make_recipe(config.masks, sam_checkpoint, sam_type)
    folder = lasting_place(output_dir, "masks folder")
    _check_pool(recipe, config, progress)
    num_made = mask_images(images, folder, recipe, checkpoint, config, progress)
    seconds = time.monotonic() - started
    summary = summarise(MaskStore(folder), images, recipe.source, num_made, seconds)
    if not summary.masks:
        advice = HOW_TO_GET_MASKS[recipe.source]
        progress(f"masks: no image has a mask by {recipe.source}: {advice}")
    if strict:
        summary.require_all()
    return dataclasses.replace(summary, folder=folder)


def _refuse_concepts(config: Config) -> None:
    if config.masks.concepts:
        raise ConfigError(
            f"masks.concepts is {config.masks.concepts!r}, but masks are made without a source model,"
            " whose classes are the prompts: set it with adapt, tune or train"
        )


def _check_pool(recipe: RegionRecipe, config: Config, progress: ProgressSink) -> None:
    """Raise ClusterError, before anything starts, if the pool can never fit the cluster."""
    compute = config.compute
    cluster.check_address(compute)
    cluster.local_device(compute)
    resources = cluster.capacity(compute)
    device = choose_device(compute, resources) if recipe.is_network else "cpu"
    _pool_demand(compute, device).require(resources)
    progress(f"device: {device} ({resources.describe()})")


def _pool_demand(compute: ComputeConfig, device: str) -> Demand:
    return actor_demand("mask", compute.mask_actors, actor_gpus(compute, device))


def mask_images(
    images: Sequence[ImageFile],
    folder: Place,
    recipe: RegionRecipe,
    checkpoint: Place | str | None,
    config: Config,
    progress: ProgressSink,
) -> int:
    """Make the masks of these images that `folder` lacks; return the number of images done."""
    recipe = recipe.for_images(images)
    with claim_folder(folder, progress) as claim:
        remove_leftovers(folder)
        rows = find_rows(folder, recipe, remove_damaged=True)
        work = remaining_work(folder, rows, images, config.masks.max_pixels)
        drop_rows_of(work.retried | work.changed, rows, recipe)
        if work.images:
            progress(f"masks by {recipe.source}: {work.describe(len(images))}")
            with cluster.connected(config.compute) as resources:
                device = cluster.resolve_device(config.compute) if recipe.is_network else "cpu"
                demand = _pool_demand(config.compute, device)
                resources = cluster.wait_for_nodes(config.compute, demand, resources, progress)
                spec = actor_spec(recipe, checkpoint, folder, config.masks, device, claim)
                _run_pool(work.images, spec, config, resources, progress)
    return len(work.images)


def _run_pool(
    images: list[ImageFile],
    spec: dict[str, Any],
    config: Config,
    resources: Resources,
    progress: ProgressSink,
) -> None:
    gpus = actor_gpus(config.compute, spec["device"])
    plan = make_plan(config.compute.mask_actors, resources, gpus)
    shards = list(_shard_items(images, _images_per_shard(images, plan, config)))
    folder, stages = to_place(spec["folder"]), Stages(decode_shard, StagedMaskActor, write_rows)
    pool = Pool("masks", folder, MaskActor, plan, config.compute, stages)
    bar, num_errors = Progress("masks", len(images), progress), 0
    with pool.results(shards, spec) as results:
        for counts in results:
            require_claim(pool.folder, spec["claim"])
            num_errors += int(counts["errors"])
            bar.advance(int(counts["images"]), f", {num_errors} unreadable" if num_errors else "")


def _images_per_shard(images: list[ImageFile], plan: PoolPlan, config: Config) -> int:
    """Return a smaller number for few images, so that every actor has work and progress is visible.

    Where decoded images travel between processes, those of a shard must fit into one item.
    """
    count = min(config.masks.images_per_shard, len(images) // (4 * plan.actors.largest))
    if plan.staged:
        count = min(count, images_that_fit(images, ITEM_BYTES))
    return max(1, count)


def _shard_items(images: list[ImageFile], images_per_shard: int) -> Iterator[dict[str, str]]:
    """Yield the images of each shard as JSON text: Ray would turn lists of lists into tensors."""
    for start in range(0, len(images), images_per_shard):
        part = images[start : start + images_per_shard]
        yield {"shard": json.dumps([(i.image_id, to_text(i.path.absolute())) for i in part])}
