"""Knobs of evaluation, of the report, of the search (stage 3), and of the machines that run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sfss_ray.config.node_labels import Selector
from sfss_ray.config.ranges import (
    Common,
    Count,
    CountRange,
    Counts,
    PositiveInt,
    Range,
    Sizes,
    Zooms,
    check_knobs,
    count_range,
    joined_counts,
)
from sfss_ray.config.space import DEFAULT_SPACE, Space, parse_space
from sfss_ray.errors import ConfigError


@dataclass(frozen=True)
class EvaluationConfig:
    """How a network sees an image when it is scored, and which target images are held out."""

    max_size: Annotated[int, Range(32), Common] = 2048
    """Longest image side that the network sees, in pixels. Longer images are scaled down, and logits
    are scaled back, so that labels are always compared at their own size."""
    held_out_share: Annotated[float, Range(0, 0.5)] = 0.15
    """Share of the target images that training never sees. Label-free scores use them."""
    held_out_max: Count = 64
    """Largest number of images held out."""
    mode: Literal["whole", "slide"] = "whole"
    """whole: the whole image at once. slide: windows, whose logits are averaged where they overlap."""
    window: Annotated[tuple[int, int], Sizes("height", "width", at_least=32)] = (512, 512)
    """slide: (height, width) of a window in pixels."""
    stride: Annotated[tuple[int, int], Sizes("down", "right", at_least=1)] = (341, 341)
    """slide: (down, right) steps between windows in pixels, at most the window."""
    flip: bool = False
    """Average the probabilities with those of the mirrored image (test-time augmentation)."""
    scales: Annotated[tuple[float, ...], Zooms(0.1, 4)] = (1.0,)
    """Average the probabilities over these zooms of the image. A single 1.0 is no augmentation."""
    pictures: Annotated[int, Range(0, 100)] = 6
    """Images shown in the report."""

    def __post_init__(self):
        check_knobs(self)
        if self.stride[0] > self.window[0] or self.stride[1] > self.window[1]:
            raise ConfigError(
                f"stride is {self.stride!r}: allowed is (down, right), each 1 to the window's"
                f" {self.window!r}, so that every pixel is covered"
            )


@dataclass(frozen=True)
class ReportConfig:
    """What the report of a run compares the student with, beside its source model."""

    baselines: Annotated[bool, Common] = False
    """Also score plain self-training. It is trained after the student, without masks and contrast,
    with the same seed and steps, so it costs a second training."""

    def __post_init__(self):
        check_knobs(self)


@dataclass(frozen=True)
class TuneConfig:
    """Stage 3: the joint search of settings of the training."""

    num_trials: Annotated[int, Range(1), Common] = 8
    """Students to train, each with other values. The first has the config's own. A space of fewer
    points has fewer trials."""
    space: Annotated[tuple[str, ...], Space()] | None = None
    """Settings to search, each NAME=LOW..HIGH (uniform), NAME=log:LOW..HIGH (log-uniform),
    NAME=gap:LOW..HIGH (log-uniform in 1 - value) or NAME=VALUE,VALUE,... Any train.* setting can be
    searched, such as train.loss.vote_weight=0.2..1 or train.batch_norm=auto,frozen. None: temperature
    and weight of the contrast, EMA momentum (1 - value from a tenth to ten times the config's own), and
    where masks ask their neighbours also the weight of those."""
    early_stopping: bool = True
    """Stop the weaker trials at each evaluation after the ramp (ASHA)."""
    reduction_factor: Annotated[int, Range(2)] = 3
    """ASHA keeps one in this many trials at each evaluation."""
    score: Annotated[
        Literal[
            "auto",
            "mask_information",
            "balanced_mask_information",
            "anchored_information",
            "agreement",
            "entropy",
            "neighbourhood_density",
            "val_miou",
        ],
        Common,
    ] = "auto"
    """Score that trials are compared by. auto: val_miou when labels are given (an oracle, because it
    needs target labels), else anchored_information. That one ranked students well on all pairs of
    experiments/studies/score_quality.py. The others need no labels either. A collapsed student is never
    chosen, whatever its score."""

    def __post_init__(self):
        check_knobs(self)
        parse_space(self.entries)

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of the space, those of every search where it is not set."""
        return DEFAULT_SPACE if self.space is None else self.space


@dataclass(frozen=True)
class ComputeConfig:
    """The machines of a run. These knobs change speed, never results (apart from rounding)."""

    address: Annotated[str, Common] = "auto"
    """Ray cluster: auto, local or HOST:PORT. auto joins the cluster of RAY_ADDRESS or of a job, and
    otherwise starts one on this machine. local always starts one here. HOST:PORT must be reachable."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Common] = "auto"
    """Device of the networks: auto, cpu or cuda. auto: CUDA when the cluster has GPUs, or an autoscaler
    that may add some. cuda also waits for the first GPU of a running cluster that has none."""
    wait_for_nodes_s: Annotated[float, Range(0)] = 600.0
    """Seconds to wait for nodes that an autoscaler adds, or that join by hand. 0: no wait."""
    accelerator_type: str | None = None
    """Use only GPUs of this type, as Ray names it: A100, H100, T4. null: any."""
    label_selector: Annotated[str, Selector()] = ""
    """Use only nodes whose labels meet these conditions: market-type=spot, region=!in(a, b)."""
    num_workers: Annotated[int | str, Counts(1), Common] = 1
    """Data-parallel training workers, or a range such as 1-4. With a range a training runs on as many
    as the cluster holds, goes on with fewer when a node is lost, and grows when one joins."""
    resize_interval_s: Annotated[float, Range(0, above=True)] = 60.0
    """Seconds between two checks whether a training with a range of workers could use more. A change
    restarts the workers from the last checkpoint."""
    gpus_per_worker: Annotated[float, Range(0.01, 1)] = 1.0
    """GPUs reserved per training worker on CUDA. With a fraction, trials of a search share a GPU."""
    cpus_per_worker: Annotated[float, Range(0, above=True)] = 1.0
    """CPUs reserved per training worker. This is also its number of compute threads."""
    mask_actors: Annotated[int | str, Counts(0)] = 0
    """Processes that generate masks. 0: as many as fit, which is one per GPU, or one per CPU. A range
    such as 1-8 starts with the smaller number, and adds processes where the cluster has room or an
    autoscaler makes it."""
    predict_actors: Annotated[int | str, Counts(0)] = 0
    """Processes that predict images on Ray, as a number or a range, as with mask_actors."""
    gpus_per_actor: Annotated[float, Range(0.01, 1)] = 1.0
    """GPUs reserved per process that generates masks or predicts. With .5 two of them share a GPU."""
    predict_on_ray_from: PositiveInt = 200
    """Number of remaining images from which prediction starts or joins a cluster. Fewer images are
    predicted in this process. 1: always on Ray."""
    concurrent_trials: Count = 0
    """Trials that run at the same time. 0: as many as fit."""
    loader_processes: Count = 0
    """Processes per training worker that read and augment images. 2 to 8 keep a GPU busy."""
    cache_gb: Annotated[float, Range(0, above=True)] = 20.0
    """Gigabytes of objects (images, masks, checkpoints) that each node keeps on its disk, in the folder
    SFSS_RAY_CACHE of its environment. The default is below the folder of temporary files."""
    max_failures: Annotated[int, Range(-1)] = 2
    """Restarts of a training from its last checkpoint after a worker died. -1: no limit."""
    ray_logs: bool = False
    """Print what Ray and its workers log."""
    ray_progress: bool = False
    """Show Ray's own progress bars and tables beside the progress lines."""

    def __post_init__(self):
        object.__setattr__(self, "num_workers", joined_counts(self.num_workers))
        check_knobs(self)

    @property
    def workers(self) -> CountRange:
        """The numbers of training workers that a run works with."""
        return count_range(self.num_workers)
