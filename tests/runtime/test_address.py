"""The address of a cluster; see also tests/runtime/test_cluster.py."""

from __future__ import annotations

import socket

import pytest

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.address import check_address, cluster_address


@pytest.mark.parametrize(
    ("address", "variable", "used"),
    [
        ("auto", None, "local"),
        ("auto", " ", "local"),
        ("auto", "10.0.0.1:6379", "10.0.0.1:6379"),
        ("local", "10.0.0.1:6379", "local"),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
    ],
)
def test_the_config_wins_over_the_variable(address, variable, used, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(ComputeConfig(address=address)) == used


def test_an_address_that_answers_passes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(ComputeConfig(address=f"127.0.0.1:{server.getsockname()[1]}"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("somewhere", "allowed is auto, local or HOST:PORT"),
        ("127.0.0.1:1", "cannot be reached"),
        ("http://127.0.0.1:8265", "takes jobs"),
    ],
)
def test_other_addresses_are_refused_in_one_line(address, message):
    with pytest.raises(ClusterError, match=message) as refused:
        check_address(ComputeConfig(address=address))
    assert "\n" not in str(refused.value)
