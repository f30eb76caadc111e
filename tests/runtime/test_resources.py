"""Resources and demands: how many processes fit, and the error where too few do."""

from __future__ import annotations

import pytest

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.resources import (
    TRIAL_DRIVER_CPUS,
    Resources,
    actor_demand,
    actor_gpus,
    placement_options,
    process_bundle,
    read_nodes,
    task_demand,
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


def test_of_a_range_of_actors_the_smallest_number_must_fit():
    resources = Resources(4.0, 2)
    actor_demand("mask", "2-16", 1.0).require(resources)
    assert actor_demand("mask", "2-16", 1.0).least == 2
    with pytest.raises(ClusterError, match=r"3 predict actors of 1 GPU each .* holds 2"):
        actor_demand("predict", "3-16", 1.0).require(resources)


def test_as_many_actors_as_fit_is_never_refused():
    actor_demand("predict", 0, 1.0).require(Resources(1.0, 0))


def test_shares_of_gpus_are_demanded():
    compute = ComputeConfig(gpus_per_worker=0.5, gpus_per_actor=0.25, cpus_per_worker=2)
    assert training_demand(compute, "cuda").gpus == 0.5
    assert training_demand(compute, "cpu").gpus == 0.0
    assert (actor_gpus(compute, "cuda"), actor_gpus(compute, "cpu")) == (0.25, 0.0)
    # Half a GPU is left on each node of one and a half.
    nodes = Resources(8.0, 3, ((4.0, 1.5), (4.0, 1.5)))
    assert training_demand(compute, "cuda").fitting(nodes) == 4
    task = task_demand(ComputeConfig(num_workers=4))
    assert (task.count, task.cpus, task.gpus) == (1, 1.0, 1.0)


def test_nodes_count_by_their_labels_and_the_type_of_their_gpus():
    a100 = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0}
    rows = [
        {"Alive": True, "Resources": {"CPU": 4.0}, "Labels": {}},
        {"Alive": True, "Resources": a100, "Labels": {"zone": "a"}},
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}, "Labels": {"zone": "b"}},
        {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}, "Labels": {"zone": "a"}},
    ]
    assert read_nodes(rows, ComputeConfig()).nodes == ((4.0, 0.0), (8.0, 2.0), (16.0, 4.0))
    typed = read_nodes(rows, ComputeConfig(accelerator_type="A100"))
    assert (typed.cpus, typed.gpus) == (28.0, 2)
    assert typed.nodes[2] == (16.0, 0.0), "its CPUs are as good as any"
    zone = read_nodes(rows, ComputeConfig(label_selector="zone=in(a, b)"))
    assert zone.nodes == ((8.0, 2.0), (16.0, 4.0))
    assert read_nodes(rows, ComputeConfig(label_selector="zone=c")) == Resources(0, 0)


def test_gpus_are_awaited_only_where_there_are_none():
    head = {"Alive": True, "Resources": {"CPU": 4.0}}
    gpu = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}
    compute = ComputeConfig(device="cuda", num_workers=2)
    awaiting = read_nodes([head], compute, awaits_gpus=True)
    assert awaiting.may_have_gpus
    training_demand(compute, "cuda").require(awaiting)
    with pytest.raises(ClusterError, match="holds 1"):
        training_demand(compute, "cuda").require(read_nodes([gpu], compute, awaits_gpus=True))
    with pytest.raises(ClusterError, match="holds 4"):
        training_demand(ComputeConfig(num_workers=5), "cpu").require(awaiting)


def test_nodes_that_have_joined_are_told_from_those_that_may():
    resources = Resources(2.0, 1, ((2.0, 1.0),), limit=(64.0, 8.0))
    demand = training_demand(ComputeConfig(num_workers=3), "cuda")
    assert (demand.fitting(resources), demand.fitting_now(resources)) == (8, 1)
    assert demand.least == 3
    assert [actor_demand("mask", 0, gpus).least for gpus in (0.0, 1.0)] == [0, 1]


def test_nodes_are_chosen_in_rays_words():
    compute = ComputeConfig(accelerator_type="A100", label_selector="zone=!a")
    assert placement_options(compute, 0.0) == {"label_selector": {"zone": "!a"}}
    assert placement_options(compute, 0.5) == {
        "label_selector": {"zone": "!a"},
        "accelerator_type": "A100",
    }
    assert placement_options(ComputeConfig(), 1.0) == {}
    bundle = process_bundle(training_demand(compute, "cuda"), compute)
    assert bundle == {"CPU": 1.0, "GPU": 1.0, "accelerator_type:A100": 0.001}
    assert process_bundle(training_demand(compute, "cpu"), compute) == {"CPU": 1.0}


def test_a_range_of_workers_demands_the_smallest_number():
    demand = training_demand(ComputeConfig(num_workers="2-8"), "cpu")
    assert demand.count == 2
    demand.require(Resources(2.0, 0))
    with pytest.raises(ClusterError, match="2 training workers of 1 CPU each were asked for"):
        demand.require(Resources(1.0, 0))
