"""Short measurements in this process: the masks of an image, training steps, an evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.config import Config, override
from sfss_ray.config.worker_shares import share_sizes, share_unit
from sfss_ray.data.augment import fit_crop
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.inspection.cost_meter import MB, Cost, PeakMemory, timed
from sfss_ray.masks.bank.schema import EMBEDDING, write_shard
from sfss_ray.masks.concept_stage import ConceptStage
from sfss_ray.masks.regions import RegionRecipe, build_region_source
from sfss_ray.models.source import Source
from sfss_ray.runtime.out_of_memory import enough_memory
from sfss_ray.storage.places import Place

SLOW_STEP_S = 10.0
"""Seconds from which on a step is measured once only."""
_STEPS = 3
_FEW_POINTS_PER_SIDE = 4


def measure_mask_generation(
    recipe: RegionRecipe, checkpoint: Place | None, image: np.ndarray, config: Config, device: str
) -> tuple[Cost, list[dict[str, Any]]]:
    """Make the masks of one image and measure that; returns the cost per image, and the masks.

    A published SAM takes minutes for an image on a CPU. Then its encoder runs once, a few points are
    decoded, and time and number of masks are scaled to all points of all crops.

    Args:
        recipe: How masks are made.
        checkpoint: SAM weights that the recipe needs.
        image: uint8 (H, W, 3) RGB.
        config: `masks.points_per_batch` is used.
        device: 'cpu' or 'cuda'.
    """
    is_scaled = recipe.sam_type not in ("", "small") and device == "cpu"
    few_points = {"points_per_side": _FEW_POINTS_PER_SIDE, "crop_n_layers": 0}
    knobs = recipe.knobs | (few_points if is_scaled else {})
    measured_recipe = dataclasses.replace(recipe, knobs=knobs)
    points_per_batch = config.masks.points_per_batch
    clock = _EncoderClock(device)
    build = partial(build_region_source, measured_recipe, checkpoint, points_per_batch, device)
    with PeakMemory(device) as peak:
        region_source = build(on_encoded=clock.stop) if is_scaled else build()
        if device == "cuda":
            region_source(image)  # the first image includes the start of CUDA
        clock.start()
        seconds, masks = timed(lambda: region_source(image))

    mask_count, note = float(len(masks)), f"{len(masks)} masks on this image"
    if is_scaled:
        seconds, factor = _scale_to_all_points(clock.seconds, seconds, recipe.knobs)
        mask_count *= factor
        note = f"from {_FEW_POINTS_PER_SIDE**2} points; disk at most"
    mb_per_mask = _shard_mb(image, masks, recipe) / max(len(masks), 1)
    return Cost(seconds, peak.mb, mb_per_mask * max(mask_count, 1), note), masks


def measure_concepts(stage: ConceptStage, image: np.ndarray, config: Config, device: str) -> Cost:
    """Find the masks of one prompt in one image, and scale the time after the encoder to all prompts.

    Args:
        stage: How masks with classes are made.
        image: uint8 (H, W, 3) RGB.
        config: `masks.points_per_batch` is used.
        device: 'cpu' or 'cuda'.
    """
    prompts = {name: list(texts) for name, texts in stage.prompts.items()}
    count = sum(map(len, prompts.values()))
    first = next(name for name, texts in prompts.items() if texts)
    knobs = stage.recipe.knobs | {"prompts": {first: prompts[first][:1]}}
    recipe = dataclasses.replace(stage.recipe, knobs=knobs)
    clock = _EncoderClock(device)
    with PeakMemory(device) as peak:
        points_per_batch = config.masks.points_per_batch
        find_masks = build_region_source(
            recipe, stage.checkpoint, points_per_batch, device, on_encoded=clock.stop
        )
        if device == "cuda":
            find_masks(image)  # the first image includes the start of CUDA
        clock.start()
        seconds, masks = timed(lambda: find_masks(image))
    per_prompt = max(seconds - clock.seconds, 0.0)
    disk_mb = count * _shard_mb(image, masks, recipe)
    note = f"external knowledge, from 1 of {count} prompts"
    return Cost(clock.seconds + count * per_prompt, peak.mb, disk_mb, note)


class _EncoderClock:
    """Seconds from the start of an image to the end of its first pass through the image encoder.

    Hooks of torch would make the mask generator take its slow way, so that the measured masks would
    not be made as those of a run. The region source therefore stops the clock itself.

    Args:
        device: Of the encoder. CUDA computes while Python goes on, so the clock waits for it.
    """

    def __init__(self, device: str) -> None:
        self.seconds = 0.0
        self._device, self._started = device, 0.0

    def start(self) -> None:
        """Start with a new image."""
        self.seconds, self._started = 0.0, time.perf_counter()

    def stop(self) -> None:
        """Take the time of the first pass."""
        if self.seconds:
            return
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._started


def _scale_to_all_points(
    encoder_seconds: float, seconds: float, knobs: dict[str, float]
) -> tuple[float, float]:
    """Scale a measurement with few points to all points of all crops.

    A crop takes one pass of the encoder. Layer i has 4**i crops, with the points per side divided by
    crop_n_points_downscale_factor**i.

    Args:
        encoder_seconds: Time of one pass of the encoder.
        seconds: Time of the encoder and the few points together.
        knobs: points_per_side, crop_n_layers and crop_n_points_downscale_factor of the recipe.

    Returns:
        Seconds of the whole image, and its number of points divided by that of the few points.
    """
    few_points = _FEW_POINTS_PER_SIDE**2
    per_point = max(seconds - encoder_seconds, 0.0) / few_points
    layers = range(int(knobs["crop_n_layers"]) + 1)
    downscale = knobs.get("crop_n_points_downscale_factor", 1)
    points = sum(4**i * int(knobs["points_per_side"] / downscale**i) ** 2 for i in layers)
    crops = sum(4**i for i in layers)
    return crops * encoder_seconds + points * per_point, points / few_points


def _row(file: ImageFile, image: np.ndarray, masks: list[dict[str, Any]]) -> dict[str, Any]:
    row = {"image_id": file.image_id, "path": str(file.path), "error": None, "masks": masks}
    return row | {"height": image.shape[0], "width": image.shape[1]}


def _shard_mb(image: np.ndarray, masks: list[dict[str, Any]], recipe: RegionRecipe) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks-0.parquet"
        write_shard(path, [_row(ImageFile("0", path), image, masks)], recipe.as_dict())
        return path.stat().st_size / MB


class _MeasurementDone(Exception):
    """Ends a training once it is measured."""


class _TimedRun:
    """A run that records only the time of its last step and the size of its state."""

    def __init__(self, device: str):
        import torch

        self.rank, self.world, self.device = 0, 1, torch.device(device)
        self.seconds = self.state_mb = 0.0
        self._step_started = time.perf_counter()

    def resume_state(self) -> dict[str, Any] | None:
        """Start the clock: the loop calls this once its networks are built."""
        self._step_started = time.perf_counter()
        return None

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Stop the clock: the loop calls this after each step."""
        self.seconds = time.perf_counter() - self._step_started
        self.state_mb = self.state_mb or _tensor_mb(state())
        if self.seconds > SLOW_STEP_S:
            raise _MeasurementDone
        self._step_started = time.perf_counter()

    def is_preempted(self) -> bool:
        """Return False."""
        return False

    def log(self, record: dict[str, Any]) -> None:
        """Drop the record."""

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Drop the file."""


def _tensor_mb(state: Any) -> float:
    import torch

    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size() / MB
    if isinstance(state, dict):
        return sum(_tensor_mb(value) for value in state.values())
    return sum(map(_tensor_mb, state)) if isinstance(state, (list, tuple)) else 0.0


def measure_training(
    source: Source,
    file: ImageFile,
    masks: list[dict[str, Any]],
    config: Config,
    device: str,
) -> Cost:
    """Measure up to three steps of one worker, at the real crop and its largest part of the batch.

    The contrast loss is on from the first step.

    Args:
        source: The source model.
        file: An image to train on.
        masks: Its masks, as a region source returns them.
        config: `train` and `compute` are used.
        device: 'cpu' or 'cuda'.
    """
    from sfss_ray.train.adaptation import AdaptationTask, adapt_student

    batch_size = _largest_share(config)
    short = override(
        config,
        {
            "train.num_steps": _STEPS,
            "train.evaluate_every": 1,
            "train.statistics_images": 0,
            "train.batch_size": batch_size,
            "train.loss.ramp": [0.0, 0.0],
            "compute.loader_processes": 0,
        },
    )
    run = _TimedRun(device)
    height, width = fit_crop(config.train.augment, source.size_multiple).chosen_crop_size
    crops = f"{batch_size} crops of {height}x{width}"
    with (
        enough_memory(f"{crops} pixels", "lower train.augment.crop_size or train.batch_size"),
        tempfile.TemporaryDirectory() as path,
        PeakMemory(device) as peak,
        contextlib.suppress(_MeasurementDone),
    ):
        folder = Path(path)
        row = _row(file, file.read(max_pixels=None), masks)
        # An image without masks does not show whether the others have embeddings.
        has_embeddings = config.train.loss.compares_embeddings or any(EMBEDDING in m for m in masks)
        write_shard(folder / "masks-0.parquet", [row], {"embeddings": has_embeddings})
        copy = source.placed(folder)
        task = AdaptationTask(copy.path, (file,), folder, short, copy.carried)
        adapt_student(task, run)
    note = crops
    if not config.compute.workers.is_fixed:
        note += f", with the fewest of {config.compute.num_workers} workers"
    return Cost(run.seconds, peak.mb, run.state_mb, note)


def _largest_share(config: Config) -> int:
    """Return the crops of a step on one worker; of a range of workers, with the smallest number."""
    train = config.train
    crops = train.batch_size // train.accumulate
    shares = share_sizes(crops, config.compute.workers.smallest, share_unit(train))
    return max(1, train.accumulate * shares[0])


def measure_evaluation(
    source: Source, file: ImageFile | LabelledImage, config: Config, device: str
) -> Cost:
    """Measure one image through the network at the size of evaluation."""
    from sfss_ray.evaluation.inference import predict_file_probabilities

    image = file.read(max_pixels=None)  # its size was accepted before
    with PeakMemory(device) as peak:
        network = source.load(device).network
        predict = partial(predict_file_probabilities, network, file, image, config.evaluation)
        seconds, _ = timed(predict)
        if seconds < SLOW_STEP_S / 5:  # the first pass includes one-time costs
            seconds, _ = timed(predict)
    return Cost(seconds, peak.mb, 0.0, f"{image.shape[1]}x{image.shape[0]} image")
