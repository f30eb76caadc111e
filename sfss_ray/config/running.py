"""Knobs of evaluation, of the search (stage 3), and of where it all runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from sfss_ray.config.checks import (
    are_numbers,
    require,
    require_one_of,
    require_range,
    require_zooms,
)
from sfss_ray.errors import ConfigError


@dataclass(frozen=True)
class EvaluationConfig:
    """How a network is scored and where its label-free scores look."""

    batch_size: int = 1
    """Images per forward pass (images of one size only are put together)."""
    max_size: int = 2048
    """Longer images are scaled down to this many pixels on their longest side for the network;
    logits are scaled back, so that labels are always compared at their own size."""
    held_out_share: float = 0.15
    """Share of the target images that training never sees: label-free scores look there."""
    held_out_max: int = 64
    """Most images held out."""
    mode: Literal["whole", "slide"] = "whole"
    """whole: the image at once; slide: windows whose logits are averaged where they overlap."""
    window: tuple[int, int] = (512, 512)
    """slide: (height, width) of a window, pixels."""
    stride: tuple[int, int] = (341, 341)
    """slide: (down, right) steps between windows, pixels; at most the window."""
    flip: bool = False
    """Average the probabilities with those of the mirrored image (test-time augmentation)."""
    scales: tuple[float, ...] = (1.0,)
    """Average the probabilities over these zooms of the image; (1.0,) is no augmentation."""
    pictures: int = 6
    """Images shown in the report."""

    def __post_init__(self):
        require(self, "batch_size", 1)
        require(self, "max_size", 32)
        require(self, "held_out_share", 0, 0.5)
        require(self, "held_out_max", 0)
        require(self, "pictures", 0, 100)
        require_one_of(self, "mode", ("whole", "slide"))
        _require_windows(self)
        require_zooms(self, "scales")


def _require_windows(config: EvaluationConfig) -> None:
    window, stride = config.window, config.stride
    if not are_numbers(window, whole=True) or min(window) < 32:
        raise ConfigError(
            f"window is {window!r}: allowed is (height, width), each 32 or more pixels"
        )
    fits = are_numbers(stride, whole=True) and min(stride) >= 1
    if not fits or stride[0] > window[0] or stride[1] > window[1]:
        raise ConfigError(
            f"stride is {stride!r}: allowed is (down, right), each 1 to the window's {window!r}, so that"
            " no pixel is left out"
        )


@dataclass(frozen=True)
class TuneConfig:
    """Stage 3: the joint search of temperature, contrast_weight and ema_momentum."""

    num_trials: int = 8
    """Trained students; the first uses the config's own values."""
    temperature_range: tuple[float, float] = (0.03, 0.7)
    """Searched log-uniformly."""
    contrast_weight_range: tuple[float, float] = (0.01, 2.0)
    """Searched log-uniformly."""
    ema_gap_range: tuple[float, float] = (1e-4, 1e-2)
    """1 - ema_momentum, searched log-uniformly."""
    early_stopping: bool = True
    """ASHA: of one-worker trials past the ramp, the weaker part is stopped at each look."""
    reduction_factor: int = 3
    """ASHA keeps one of so many trials at each look."""
    score: Literal[
        "auto",
        "mask_information",
        "balanced_mask_information",
        "agreement",
        "entropy",
        "neighbourhood_density",
        "val_miou",
    ] = "auto"
    """auto: val_miou (an oracle: needs target labels) when labels are given, else
    balanced_mask_information, which ranked students best on both pairs of
    experiments/studies/score_quality.py.
    The others need no labels either. A collapsed student is never picked, whatever its score."""

    def __post_init__(self):
        require(self, "num_trials", 1)
        for name in ("temperature_range", "contrast_weight_range"):
            require_range(self, name, 0)
        require_range(self, "ema_gap_range", 0, 1)
        require(self, "reduction_factor", 2)
        require_one_of(self, "score", get_args(get_type_hints(TuneConfig)["score"]))


@dataclass(frozen=True)
class ComputeConfig:
    """Where it runs. Changes speed, never results (but for rounding)."""

    address: str = "auto"
    """Ray address: auto joins the cluster of RAY_ADDRESS or a job, else starts one here; local always
    starts one here; HOST:PORT must be reachable."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when this machine has it."""
    num_workers: int = 1
    """Data-parallel training workers (one GPU each on CUDA)."""
    cpus_per_worker: float = 1.0
    """CPUs reserved per training worker; also its number of compute threads."""
    mask_actors: int = 0
    """Processes that generate masks; 0: one per GPU, or one per CPU."""
    predict_actors: int = 0
    """Processes that predict images on Ray; 0: one per GPU, or one per CPU."""
    predict_on_ray_from: int = 200
    """Images still to predict from which prediction starts or joins a cluster; fewer are done
    in-process. 1: always on Ray."""
    concurrent_trials: int = 0
    """Trials at the same time; 0: as many as fit."""
    loader_processes: int = 0
    """Processes per training worker that read and augment images; 2 to 8 keep a GPU busy."""
    max_failures: int = 2
    """Times a training run is restarted from its last checkpoint after a worker died."""

    def __post_init__(self):
        require_one_of(self, "device", ("auto", "cpu", "cuda"))
        require(self, "num_workers", 1)
        require(self, "cpus_per_worker", 0, above=True)
        require(self, "mask_actors", 0)
        require(self, "predict_actors", 0)
        require(self, "predict_on_ray_from", 1)
        require(self, "concurrent_trials", 0)
        require(self, "loader_processes", 0)
        require(self, "max_failures", -1)
