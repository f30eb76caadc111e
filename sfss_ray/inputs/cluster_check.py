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
        ConfigError: workers of one training would share a GPU.
        ClusterError: the address is wrong or does not answer, a device is missing, or the cluster
            cannot hold the workers.
    """
    compute = config.compute
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
    if device == "cuda" and compute.num_workers > 1 and compute.gpus_per_worker < 1:
        raise ConfigError(
            f"gpus_per_worker is {compute.gpus_per_worker:g} with {compute.num_workers} workers, but"
            " NCCL cannot join workers that share a GPU: choose gpus_per_worker 1, or num_workers 1"
            " (trials of a search can share a GPU)"
        )
