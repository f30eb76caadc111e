"""Resources and demands: how many processes fit, and the error where too few do."""

from __future__ import annotations

import pytest

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.resources import (
    TRIAL_DRIVER_CPUS,
    Resources,
    actor_demand,
    training_demand,
    trials_demand,
)


@pytest.mark.parametrize(
    ("nodes", "process", "count"),
    [
        (((4.0, 0.0),), (1.0, 0.0), 4),
        (((1.0, 0.0), (1.0, 0.0)), (2.0, 0.0), 0),
        (((0.3, 0.0),), (0.1, 0.0), 3),
        (((8.0, 2.0), (1.0, 4.0)), (2.0, 1.0), 2),
        (((8.0, 4.0),), (0.0, 0.5), 8),
        ((), (1.0, 0.0), 6),
    ],
)
def test_no_process_is_split_over_nodes(nodes, process, count):
    assert Resources(6.0, 0, nodes).holds(*process) == count


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (Resources(1.0, 0), "1 CPU and 0 GPUs"),
        (Resources(8.0, 2, ((4.0, 1.0), (4.0, 1.0))), "8 CPUs and 2 GPUs on 2 nodes"),
        (Resources(2.0, 1, limit=(64.0, 8.0)), "2 CPUs and 1 GPU, at most 64 and 8"),
    ],
)
def test_resources_are_described_for_people(resources, text):
    assert resources.describe() == text


def test_an_autoscaler_counts_with_what_it_may_add():
    resources = Resources(2.0, 0, ((2.0, 0.0),), limit=(64.0, 8.0))
    assert training_demand(ComputeConfig(num_workers=9), "cpu").fitting(resources) == 64
    training_demand(ComputeConfig(num_workers=8), "cuda").require(resources)
    with pytest.raises(ClusterError, match=r"holds 8 \(2 CPUs and 0 GPUs, at most 64 and 8\)"):
        training_demand(ComputeConfig(num_workers=9), "cuda").require(resources)


def test_several_workers_need_room_for_their_trial():
    compute = ComputeConfig(num_workers=2)
    exact = Resources(2.0, 0, ((2.0, 0.0),))
    training_demand(compute, "cpu").require(exact)
    with pytest.raises(ClusterError, match=r"2 training workers of 1 CPU each .* holds 1"):
        trials_demand(compute, "cpu").require(exact)
    trials_demand(compute, "cpu").require(Resources(2.02, 0, ((2.02, 0.0),)))


def test_trials_at_the_same_time_demand_the_workers_of_all():
    demand = trials_demand(ComputeConfig(num_workers=2, cpus_per_worker=3), "cpu", at_once=4)
    assert (demand.count, demand.cpus) == (8, 3)
    assert demand.driver_cpus == pytest.approx(4 * TRIAL_DRIVER_CPUS)
    with pytest.raises(ClusterError) as refused:
        demand.require(Resources(6.0, 0))
    assert str(refused.value) == (
        "8 training workers of 4 trials at the same time of 3 CPUs each were asked for, but the"
        " cluster holds 1 (6 CPUs and 0 GPUs): lower compute.concurrent_trials, compute.num_workers or"
        " compute.cpus_per_worker, or use a larger cluster"
    )


@pytest.mark.parametrize(
    ("gpus", "process"), [(0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))], ids=["cpu", "cuda"]
)
def test_an_actor_has_a_cpu_or_a_gpu(gpus, process):
    demand = actor_demand("mask", 3, gpus)
    assert (demand.cpus, demand.gpus) == process
    demand.require(Resources(3.0, 3))
    with pytest.raises(ClusterError, match=r"3 mask actors of .* lower compute\.mask_actors"):
        demand.require(Resources(2.0, 2))


def test_as_many_actors_as_fit_is_never_refused():
    actor_demand("predict", 0, 1.0).require(Resources(1.0, 0))
