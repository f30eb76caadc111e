"""Short measurements in this process: one image's masks, a training step, one image's evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.config import Config, override
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.regions import RegionRecipe, build_region_source
from sfss_ray.models.source import Source

SLOW_STEP_S = 10.0
"""A step that takes longer is measured once."""
_STEPS = 3
_FEW_POINTS_PER_SIDE = 4
_MB = 1e6


@dataclass(frozen=True)
class Measured:
    """One measurement."""

    seconds: float
    """Per image, or per step."""
    memory_mb: float
    """Peak of this process (CUDA: of the GPU's memory that torch held)."""
    disk_mb: float = 0.0
    """Per image, or of one checkpoint."""
    note: str = ""


class _Peak:
    """Peak memory inside `with`: CUDA's own counter, else this process's resident memory, sampled."""

    def __init__(self, device: str):
        self.device, self.mb = device, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Peak:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            import torch

            self.mb = torch.cuda.max_memory_allocated() / _MB
        else:
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        while True:
            self.mb = max(self.mb, _resident_mb())
            if self._stop.wait(0.02):
                return


def _resident_mb() -> float:
    """Resident memory of this process; its peak so far where the system tells no more."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MB


@contextlib.contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """So many compute threads inside the block, as a process of the stage has them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_masks(
    recipe: RegionRecipe, checkpoint: Path | None, image: np.ndarray, config: Config, device: str
) -> tuple[Measured, list[dict[str, Any]]]:
    """One image through the region source, and its masks.

    A published SAM on a CPU takes minutes for an image: then its encoder runs once, a few points are
    decoded, and time and masks are scaled to all points of all crops.
    """
    by_parts = recipe.sam_type not in ("", "small") and device == "cpu"
    few = {"points_per_side": _FEW_POINTS_PER_SIDE, "crop_n_layers": 0} if by_parts else {}
    knobs = recipe.knobs | few
    asked = dataclasses.replace(recipe, knobs=knobs)
    with _Peak(device) as peak, _EncoderClock() as encoder:
        find = build_region_source(asked, checkpoint, config.masks.points_per_batch, device)
        if device == "cuda":
            find(image)  # the first image pays for CUDA's start
        seconds, masks = _timed(lambda: find(image))
    found, note = float(len(masks)), f"{len(masks)} masks on this image"
    if by_parts:
        seconds, factor = _scaled(encoder.seconds, seconds, recipe.knobs)
        found *= factor
        note = f"from {_FEW_POINTS_PER_SIDE**2} points; disk at most"
    per_mask = _shard_mb(image, masks, recipe) / max(len(masks), 1)
    return Measured(seconds, peak.mb, per_mask * max(found, 1), note), masks


class _EncoderClock:
    """Seconds of SAM's image encoder inside `with`; right on a CPU, where calls return when done."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0
        self._hooks: list[Any] = []

    def __enter__(self) -> _EncoderClock:
        from torch.nn.modules.module import (
            register_module_forward_hook,
            register_module_forward_pre_hook,
        )

        self._hooks = [
            register_module_forward_pre_hook(self._start),
            register_module_forward_hook(self._stop),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, module: Any, _inputs: Any) -> None:
        if _is_encoder(module):
            self._started = time.perf_counter()

    def _stop(self, module: Any, _inputs: Any, _output: Any) -> None:
        if _is_encoder(module):
            self.seconds += time.perf_counter() - self._started


def _is_encoder(module: Any) -> bool:
    return type(module).__name__ == "ImageEncoderViT"


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _scaled(encoder: float, few: float, knobs: dict[str, float]) -> tuple[float, float]:
    """(seconds of the whole image, points of the whole image / few points).

    Args:
        encoder: seconds of one pass of the encoder.
        few: seconds of the encoder and the few points together.
        knobs: the recipe's: points_per_side, crop_n_layers, crop_n_points_downscale_factor.
    """
    few_points = _FEW_POINTS_PER_SIDE**2
    per_point = max(few - encoder, 0.0) / few_points
    layers = range(int(knobs["crop_n_layers"]) + 1)
    smaller = knobs.get("crop_n_points_downscale_factor", 1)
    points = sum(4**i * int(knobs["points_per_side"] / smaller**i) ** 2 for i in layers)
    crops = sum(4**i for i in layers)
    return crops * encoder + points * per_point, points / few_points


def _row(file: ImageFile, image: np.ndarray, masks: list[dict[str, Any]]) -> dict[str, Any]:
    row = {"image_id": file.image_id, "path": str(file.path), "error": None, "masks": masks}
    return row | {"height": image.shape[0], "width": image.shape[1]}


def _shard_mb(image: np.ndarray, masks: list[dict[str, Any]], recipe: RegionRecipe) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks-0.parquet"
        write_shard(path, [_row(ImageFile("0", path), image, masks)], recipe.as_dict())
        return path.stat().st_size / _MB


class _Enough(Exception):
    """Ends a training that was measured."""


class _TimedRun:
    """A run that keeps nothing but the time of its steps and the size of its state."""

    def __init__(self, device: str):
        import torch

        self.rank, self.world, self.device = 0, 1, torch.device(device)
        self.seconds = self.state_mb = 0.0
        self._mark = time.perf_counter()

    def resume_state(self) -> dict[str, Any] | None:
        """Called when the networks are built: the clock starts."""
        self._mark = time.perf_counter()
        return None

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Called after each step."""
        self.seconds = time.perf_counter() - self._mark
        self.state_mb = self.state_mb or _tensor_mb(state())
        if self.seconds > SLOW_STEP_S:
            raise _Enough
        self._mark = time.perf_counter()

    def log(self, record: dict[str, Any]) -> None:
        """Not kept."""


def _tensor_mb(state: Any) -> float:
    import torch

    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size() / _MB
    if isinstance(state, dict):
        return sum(_tensor_mb(value) for value in state.values())
    return sum(map(_tensor_mb, state)) if isinstance(state, (list, tuple)) else 0.0


def measure_training(
    source: Source,
    file: ImageFile,
    masks: list[dict[str, Any]],
    config: Config,
    device: str,
) -> Measured:
    """Up to three steps of one worker at the real crop and its part of the batch, contrast included."""
    from sfss_ray.train.adaptation import AdaptationTask, adapt_student

    part = max(1, config.train.batch_size // config.compute.num_workers)
    short = override(
        config,
        {
            "train.num_steps": _STEPS,
            "train.evaluate_every": 1,
            "train.statistics_steps": 0,
            "train.batch_size": part,
            "train.loss.ramp": [0.0, 0.0],
            "compute.loader_processes": 0,
        },
    )
    run = _TimedRun(device)
    with (
        tempfile.TemporaryDirectory() as name,
        _Peak(device) as peak,
        contextlib.suppress(_Enough),
    ):
        folder = Path(name)
        row = _row(file, file.read(), masks)
        write_shard(folder / "masks-0.parquet", [row], {})
        placed = source.placed(folder)
        task = AdaptationTask(placed.path, (file,), folder, short, placed.carried)
        adapt_student(task, run)
    height, width = config.train.augment.crop_size
    note = f"{part} crops of {height}x{width}"
    return Measured(run.seconds, peak.mb, run.state_mb, note)


def measure_evaluation(
    source: Source, file: ImageFile | LabelledImage, config: Config, device: str
) -> Measured:
    """One image through the network at the size of evaluation."""
    from sfss_ray.evaluation.examination import predict_probabilities

    image = file.read()
    with _Peak(device) as peak:
        network = source.load(device).network
        seconds, _ = _timed(lambda: predict_probabilities(network, image, config.evaluation))
        if seconds < SLOW_STEP_S / 5:  # the first pass pays for what later ones find ready
            seconds, _ = _timed(lambda: predict_probabilities(network, image, config.evaluation))
    return Measured(seconds, peak.mb, 0.0, f"{image.shape[1]}x{image.shape[0]} image")
