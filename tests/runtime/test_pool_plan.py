"""Numbers of a pool: actors, CPUs and threads of its processes, and memory of what is on its way."""

from __future__ import annotations

import pytest

from sfss_ray.config.ranges import CountRange
from sfss_ray.runtime.pool_plan import (
    DECODERS_PER_ACTOR,
    ITEM_BYTES,
    PoolPlan,
    make_plan,
    pool_size,
)
from sfss_ray.runtime.resources import Resources


@pytest.mark.parametrize(
    ("requested", "resources", "gpus", "size"),
    [
        (0, Resources(8.0, 2), 0.0, 8),
        (0, Resources(8.0, 2), 1.0, 2),
        (3, Resources(8.0, 2), 1.0, 3),
        (0, Resources(0.5, 0), 0.0, 1),
        (0, Resources(8.0, 2), 0.5, 4),
        (0, Resources(8.0, 3, ((4.0, 1.0), (4.0, 2.0))), 0.3, 9),
        (0, Resources(8.0, 1, ((8.0, 1.0),), limit=(64.0, 8.0)), 1.0, 8),
        (0, Resources(8.0, 1, ((8.0, 1.0),), limit=(9e18, 9e18)), 1.0, 1),
    ],
)
def test_a_pool_fills_the_cluster_unless_a_size_is_requested(requested, resources, gpus, size):
    assert pool_size(requested, resources, gpus) == CountRange(size, size)


def test_a_range_is_taken_as_it_is():
    assert pool_size("2-16", Resources(4.0, 2), 1.0) == CountRange(2, 16)


def plan_of(requested: int | str, resources: Resources, gpus: float) -> PoolPlan:
    return make_plan(requested, resources, gpus)


@pytest.mark.parametrize(("cpus", "pool", "threads"), [(8.0, 3, 2), (2.0, 4, 1), (16.0, 1, 16)])
def test_actors_share_the_cpus(cpus, pool, threads):
    assert plan_of(pool, Resources(cpus, 0), 0.0).threads == threads


@pytest.mark.parametrize(
    ("requested", "cpus", "threads", "share"),
    [("1-4", 8.0, 2, 1.0), ("1-8", 2.0, 1, 0.9), ("4-8", 2.0, 1, 0.45)],
)
def test_actors_of_a_range_share_the_cpus_as_far_as_they_go_now(requested, cpus, threads, share):
    """Shares by the largest number would fit on the present nodes, and no node would be added."""
    plan = plan_of(requested, Resources(cpus, 0), 0.0)
    assert (plan.threads, plan.actor_cpus) == (threads, pytest.approx(share))


def test_a_node_of_many_gpus_and_few_cpus_holds_an_actor_per_gpu_and_two_tasks():
    plan = plan_of(8, Resources(1.0, 8, ((1.0, 8.0),)), 1.0)
    assert plan.actor_cpus == pytest.approx(0.5 / 8)
    assert 2 * plan.task_cpus + 8 * plan.actor_cpus <= 1.0
    beside = plan_of(8, Resources(5.0, 8, ((4.0, 0.0), (1.0, 8.0))), 1.0)
    assert beside.task_cpus == 1.0, "the node without GPUs has room"


def test_actors_that_run_a_gpu_leave_the_cpus_to_tasks():
    """Ray Data adds no actor of a range for which its share of the CPUs has no room."""
    plan = plan_of("1-8", Resources(16.0, 8), 1.0)
    assert 8 * plan.actor_cpus < 0.5 * 16.0 / 3
    assert plan.task_cpus == 1.0


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        (Resources(1.0, 1), 1.0),
        (Resources(16.0, 8), 1.0),
        (Resources(6.0, 2, ((3.0, 1.0), (3.0, 1.0))), 0.5),
        (Resources(2.0, 1, ((1.0, 0.0), (1.0, 1.0))), 1.0),
    ],
)
def test_a_task_of_each_stage_fits_beside_the_actors(resources, gpus):
    """Ray Data waits without a message for a task that never fits."""
    plan = plan_of(0, resources, gpus)
    nodes = resources.nodes or ((resources.cpus, resources.gpus),)
    free = [cpus - plan.actor_cpus * int(node_gpus / gpus) for cpus, node_gpus in nodes]
    assert min(free) >= 0
    assert max(free) >= 2 * plan.task_cpus > 0


@pytest.mark.parametrize(("gpus", "staged"), [(0.0, False), (0.5, True), (1.0, True)])
def test_a_network_on_a_gpu_has_stages_of_its_own_beside_it(gpus, staged):
    assert plan_of(1, Resources(4.0, 1), gpus).staged is staged


def test_memory_of_items_is_limited_by_the_number_of_actors():
    plan = plan_of("1-2", Resources(4.0, 1), 1.0)
    assert plan.decoders == 2 * DECODERS_PER_ACTOR
    assert plan.object_store_bytes == 2 * 8 * ITEM_BYTES
