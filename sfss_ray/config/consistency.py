"""Checks of settings that depend on each other, or on the inputs of a run."""

from __future__ import annotations

from sfss_ray.config.running import ComputeConfig, TuneConfig
from sfss_ray.config.train import LossConfig, PretrainConfig, TrainConfig
from sfss_ray.config.tree import Config
from sfss_ray.config.worker_shares import share_unit
from sfss_ray.errors import ConfigError

SCORES = (
    "mask_information",
    "balanced_mask_information",
    "anchored_information",
    "agreement",
    "entropy",
    "neighbourhood_density",
)
"""Scores of the search that need no labels."""
MASK_SCORES = ("mask_information", "balanced_mask_information", "anchored_information")
"""Those that compare predictions with masks."""


def check_stage(stage: TrainConfig | PretrainConfig, compute: ComputeConfig) -> None:
    """Check a training stage against the number of its workers.

    Raises:
        ConfigError: the batch cannot be split over the workers, crops have no neighbour to mix with, or
            the learning rate rises until the last step.
    """
    _check_warm_up(stage)
    if not compute.workers.is_fixed:
        _check_shares_of_range(stage, compute)
        return
    workers, parts, class_mix = compute.workers.largest, stage.accumulate, stage.augment.class_mix
    # A number that the user chose keeps every worker equally busy.
    if stage.batch_size % workers:
        raise ConfigError(
            f"batch_size is {stage.batch_size} but there are {workers} workers: choose a"
            " multiple of the number of workers"
        )
    if stage.batch_size % (workers * parts):
        raise ConfigError(
            f"batch_size is {stage.batch_size} for {workers} workers and accumulate is {parts}: choose"
            f" a multiple of {workers * parts}, or fewer parts"
        )
    # Class-mix pairs the crops of one forward pass, so their number must be even.
    share = stage.batch_size // (workers * parts)
    if class_mix > 0 and share % 2:
        raise ConfigError(
            f"batch_size is {stage.batch_size}, {share} at a time on each of {workers} workers, and"
            f" augment.class_mix is {class_mix}: neighbours in the batch are mixed, so choose a multiple"
            f" of {2 * workers * parts}, or class_mix 0"
        )


def _check_shares_of_range(stage: TrainConfig | PretrainConfig, compute: ComputeConfig) -> None:
    """Check that every number of workers in a range leaves crops for each worker.

    Shares of a range may be uneven, because Ray chooses the number.
    """
    parts, unit = stage.accumulate, share_unit(stage)
    if stage.batch_size % (parts * unit):
        mixed = f" and augment.class_mix is {stage.augment.class_mix}" if unit > 1 else ""
        raise ConfigError(
            f"batch_size is {stage.batch_size}, accumulate is {parts}{mixed}: choose a multiple of"
            f" {parts * unit}"
        )
    busy = stage.batch_size // (parts * unit)
    if busy < compute.workers.largest:
        at_a_time = f" in {parts} parts" if parts > 1 else ""
        pairs = " pairs of" if unit > 1 else ""
        raise ConfigError(
            f"num_workers is {compute.num_workers} but batch_size {stage.batch_size}{at_a_time} has"
            f"{pairs} crops for {busy} workers only: choose a range up to {busy}, or a batch_size of"
            f" {parts * unit * compute.workers.largest}"
        )


def check_neighbour_space(loss: LossConfig, masks_have_embeddings: bool) -> None:
    """Check that masks have the embeddings by which they are to be compared.

    Raises:
        ConfigError: masks are compared by embeddings that they do not have.
    """
    if loss.compares_embeddings and not masks_have_embeddings:
        raise ConfigError(
            f"neighbour_weight is {loss.neighbour_weight:g} and neighbour_space is 'sam', but the masks"
            " have no embeddings: make masks with SAM and masks.embeddings, or set neighbour_space to"
            " geometry, or neighbour_weight to 0"
        )


def check_neighbour_use(config: Config) -> None:
    """Check that something uses the opinion of a mask's neighbours.

    Not for the points of a search space: of several settings, some may switch the use off.

    Raises:
        ConfigError: neighbours are asked for nothing.
    """
    loss = config.train.loss
    if loss.asks_neighbours and not loss.has_use_for_neighbours:
        raise ConfigError(
            "neighbour_weight is above 0, but no loss uses the opinion of neighbours: set mask_vote to"
            " pooled and vote_weight above 0, or rule_out_weight above 0 with rule_out_by mask, or"
            " neighbour_weight to 0"
        )


def _check_warm_up(stage: TrainConfig | PretrainConfig) -> None:
    """Refuse a learning rate that rises until the last step: such a run learns almost nothing."""
    optim, steps = stage.optim, stage.num_steps
    if optim.warmup_steps >= steps or (not optim.warmup_steps and optim.warmup_share >= 1):
        raise ConfigError(
            f"warmup_steps is {optim.warmup_steps} and warmup_share {optim.warmup_share:g} of num_steps"
            f" {steps}: the learning rate would rise until the last step; lower warmup_steps (0:"
            " warmup_share decides), or train for more steps"
        )


def score_name(config: TuneConfig, labelled: bool) -> str:
    """Return the score that trials are compared by, with auto resolved.

    Raises:
        ConfigError: the score is mIoU and there are no labels.
    """
    if config.score == "val_miou" and not labelled:
        raise ConfigError(
            "score is 'val_miou' but no val_images and val_labels were given: give them, or choose"
            f" one that needs no labels: {', '.join(SCORES)}"
        )
    if config.score == "auto":
        return "val_miou" if labelled else "anchored_information"
    return config.score


def require_held_out(score: str, held_out: int) -> None:
    """Raise ConfigError when a label-free score has no held-out images."""
    if score in SCORES and not held_out:
        raise ConfigError(
            f"score is {score!r} but no target images are held out for it: raise"
            " evaluation.held_out_share above 0, or give more images"
        )


def check_keep(train: TrainConfig, held_out: int) -> None:
    """Raise ConfigError when the best student is to be kept but there are no images to find it on."""
    if train.keep == "best" and not held_out:
        raise ConfigError(
            "train.keep is 'best' but no target images are held out to compare evaluations: raise"
            " evaluation.held_out_share above 0, give more images, or set it to last"
        )
