"""The check that a cluster can be reached and can hold a run, before anything starts."""

from __future__ import annotations

from sfss_ray.config import ComputeConfig, Config
from sfss_ray.errors import ConfigError
from sfss_ray.runtime import cluster
from sfss_ray.runtime.devices import choose_device
from sfss_ray.runtime.resources import Resources, training_demand, trials_demand


def check_cluster(config: Config, is_search: bool = False) -> tuple[str, Resources]:
    """Check that the cluster of a config can hold a training.

    Args:
        config: `compute` is used.
        is_search: Whether it must also hold the trials of a search.

    Returns:
        The device of the workers, 'cpu' or 'cuda', and the resources of the cluster.

    Raises:
        ConfigError: workers of one training would share a GPU, or Ray cannot change their number.
        ClusterError: the address is wrong or does not answer, a device is missing, or the cluster
            cannot hold the workers.
    """
    compute = config.compute
    _check_range(compute, is_search)
    cluster.check_address(compute)
    cluster.local_device(compute)
    resources = cluster.capacity(compute)
    device = choose_device(compute, resources)
    _check_shares(compute, device)
    training_demand(compute, device).require(resources)
    if is_search:
        trials_demand(compute, device, compute.concurrent_trials).require(resources)
    return device, resources


def _check_shares(compute: ComputeConfig, device: str) -> None:
    """Refuse workers of one training that may share a GPU: NCCL, which joins them, cannot."""
    if device == "cuda" and compute.workers.largest > 1 and compute.gpus_per_worker < 1:
        raise ConfigError(
            f"gpus_per_worker is {compute.gpus_per_worker:g} with {compute.num_workers} workers, but"
            " NCCL cannot join workers that share a GPU: choose gpus_per_worker 1, or num_workers 1"
            " (trials of a search can share a GPU)"
        )


def _check_range(compute: ComputeConfig, is_search: bool) -> None:
    """Refuse a range of workers where Ray would count wrongly, and wait without a message."""
    text = compute.num_workers
    if compute.workers.is_fixed:
        return
    if is_search:
        raise ConfigError(
            f"num_workers is {text}, but each trial of a search needs a fixed number: choose one,"
            " such as 1; a search uses more nodes by more trials at a time (compute.concurrent_trials)"
        )
    if compute.label_selector:
        raise ConfigError(
            f"num_workers is {text} and label_selector is {compute.label_selector!r}, but Ray ignores"
            " labels when it counts the workers that fit: choose a single number, or no label_selector"
        )
    if not _is_counted_exactly(compute.cpus_per_worker, compute.workers.largest):
        raise ConfigError(
            f"num_workers is {text} and cpus_per_worker is {compute.cpus_per_worker:g}, but rounding"
            " lets Ray count too few workers: choose cpus_per_worker 1, .5 or .25, or a single number"
        )


def _is_counted_exactly(cpus: float, max_workers: int) -> bool:
    """Return whether Ray finds room for n workers on a node where n are reserved.

    It adds up the CPUs of workers, and divides the sum without a tolerance.
    """
    total = 0.0
    for count in range(1, max_workers + 1):
        total += cpus
        if total // cpus != count:
            return False
    return True
