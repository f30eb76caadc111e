"""The check of a cluster: its device and resources, and what is refused before anything starts."""

from __future__ import annotations

import pytest

from sfss_ray.config import Config, override
from sfss_ray.errors import ClusterError, ConfigError
from sfss_ray.inputs.cluster_check import check_cluster
from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import Resources


def config_of(**compute: object) -> Config:
    return override(Config(), {f"compute.{name}": value for name, value in compute.items()})


def test_a_cluster_that_holds_a_training_passes():
    device, resources = check_cluster(config_of(device="cpu", num_workers=2))
    assert (device, resources.cpus) == ("cpu", 2.0)


def test_the_gpus_of_the_cluster_decide_the_device(monkeypatch):
    monkeypatch.setattr(cluster, "capacity", lambda compute: Resources(8.0, 1))
    assert check_cluster(config_of(device="auto"))[0] == "cuda"
    assert check_cluster(config_of(device="cpu"))[0] == "cpu"


def test_a_search_needs_room_beside_its_workers():
    config = config_of(device="cpu", num_workers=2)
    with pytest.raises(ClusterError, match=r"2 training workers of 1 CPU each .* holds 1"):
        check_cluster(config, is_search=True)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"num_workers": 3}, "3 training workers"),
        ({"cpus_per_worker": 4.0}, "holds 0"),
        ({"address": "somewhere"}, "allowed is auto, local or HOST:PORT"),
        ({"address": "127.0.0.1:1"}, "cannot be reached"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused(compute, message):
    with pytest.raises(ClusterError, match=message):
        check_cluster(config_of(device="cpu", **compute))


@pytest.mark.parametrize(("cpus", "fits"), [(1.0, True), (2.0, False)])
def test_a_range_of_workers_needs_room_for_the_smallest_number(cpus, fits):
    config = config_of(device="cpu", num_workers="2-8", cpus_per_worker=cpus)
    if fits:
        assert check_cluster(config)[0] == "cpu"
        return
    with pytest.raises(ClusterError, match=r"2 training workers of 2 CPUs each .* holds 1"):
        check_cluster(config)


@pytest.mark.parametrize(
    ("compute", "is_search", "message"),
    [
        ({}, True, r"num_workers is 1-4, but each trial of a search needs a fixed number"),
        (
            {"label_selector": "a=b"},
            False,
            r"num_workers is 1-4 and label_selector is 'a=b', but Ray",
        ),
        ({"cpus_per_worker": 0.3}, False, r"cpus_per_worker is 0\.3, but rounding .* choose"),
    ],
)
def test_ranges_of_workers_that_ray_would_count_wrongly_are_refused(compute, is_search, message):
    config = config_of(device="cpu", num_workers="1-4", **compute)
    with pytest.raises(ConfigError, match=message) as refused:
        check_cluster(config, is_search=is_search)
    assert "\n" not in str(refused.value)


def test_more_trials_than_fit_are_refused_for_a_search_only():
    config = config_of(device="cpu", concurrent_trials=3)
    check_cluster(config)
    with pytest.raises(ClusterError, match=r"3 training workers of 3 trials at the same time"):
        check_cluster(config, is_search=True)


@pytest.mark.parametrize(
    ("workers", "share", "refused"),
    [(2, 0.5, True), ("1-2", 0.5, True), (1, 0.5, False), (2, 1.0, False), ("1-2", 1.0, False)],
)
def test_workers_of_one_training_do_not_share_a_gpu(workers, share, refused, monkeypatch):
    monkeypatch.setattr(cluster, "capacity", lambda compute: Resources(8.0, 4))
    config = config_of(num_workers=workers, gpus_per_worker=share)
    if refused:
        with pytest.raises(ConfigError, match=rf"gpus_per_worker is 0\.5 with {workers} workers"):
            check_cluster(config)
        assert check_cluster(config_of(num_workers=2, gpus_per_worker=0.5, device="cpu"))
    else:
        assert check_cluster(config)[0] == "cuda"
