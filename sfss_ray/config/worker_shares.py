"""How the crops of a training step are shared out to workers."""

from __future__ import annotations

from sfss_ray.config.train import PretrainConfig, TrainConfig


def share_sizes(crops: int, workers: int, unit: int = 1) -> list[int]:
    """Return how many crops each worker takes, in the order of ranks.

    Shares are as equal as units of `unit` crops allow, and the first workers have the larger ones.
    """
    units, rest = divmod(crops // unit, workers)
    return [unit * (units + (rank < rest)) for rank in range(workers)]


def share_unit(stage: TrainConfig | PretrainConfig) -> int:
    """Return the crops that stay together on a worker: two where neighbours are mixed, else one."""
    return 2 if stage.augment.class_mix > 0 else 1
