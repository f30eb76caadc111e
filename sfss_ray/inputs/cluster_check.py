"""The check that a cluster can be reached and can hold a run, before anything starts."""

from __future__ import annotations

from sfss_ray.config import Config
from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import Resources, training_demand, trials_demand


def check_cluster(config: Config, is_search: bool = False) -> tuple[str, Resources]:
    """Check that the cluster of a config can hold a training.

    Args:
        config: `compute` is used.
        is_search: Whether it must also hold the trials of a search.

    Returns:
        The device of the workers, 'cpu' or 'cuda', and the resources of the cluster.

    Raises:
        ClusterError: the address is wrong or does not answer, a device is missing, or the cluster
            cannot hold the workers.
    """
    compute = config.compute
    cluster.check_address(compute)
    cluster.local_device(compute)
    resources = cluster.capacity(compute)
    device = cluster.choose_device(compute, resources)
    training_demand(compute, device).require(resources)
    if is_search:
        trials_demand(compute, device, compute.concurrent_trials).require(resources)
    return device, resources
