"""Ports, and the check that a cluster can hold a run. No Ray is started here."""

from __future__ import annotations

import re
import socket
from fractions import Fraction

import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.launch.cluster.resources import check_resources
from causalfusion_platform.launch.cluster.session import free_port, port_is_free


def set_cluster(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    assert 1024 <= port < 65536
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
    assert port_is_free(port)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_listened_on(address: str) -> None:
    with socket.create_server((address, 0)) as listening:
        assert not port_is_free(listening.getsockname()[1])


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_number_that_is_no_port(port: int) -> None:
    assert not port_is_free(port)


def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cluster(monkeypatch, CPU=2.0)
    check_resources(2, 0.5, 0, 0.25)
    check_resources(1, 1.75, 0, 0.25)
    set_cluster(monkeypatch, CPU=16.0, GPU=4.0)
    check_resources(4, 1, 1, 0.25)
    check_resources(8, 1, 0.5, 0.25)


def test_too_few_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cluster(monkeypatch, CPU=2.0)
    with pytest.raises(UserError) as caught:
        check_resources(4, 0.5, 0, 0.25)
    message = str(caught.value)
    assert "train.num_workers=4 × train.cpus_per_worker=0.5 plus 0.25 for reading data are 2.25 CPUs" in message
    assert "the cluster has 2\n" in message
    assert "train.num_workers up to 3" in message


def test_a_cluster_without_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cluster(monkeypatch)
    with pytest.raises(UserError, match=r"the cluster has 0\n.*up to 0"):
        check_resources(1, 1, 0, 0.25)


@pytest.mark.parametrize(("have", "text"), [({}, "0 GPUs"), ({"GPU": 2.0}, "2 GPUs")])
def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch, have: dict[str, float], text: str) -> None:
    set_cluster(monkeypatch, CPU=64.0, **have)
    with pytest.raises(UserError) as caught:
        check_resources(4, 1, 1, 0.25)
    message = str(caught.value)
    assert "train.num_workers=4 × train.gpus_per_worker=1" in message
    assert text in message
    assert "train.gpus_per_worker=0" in message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(cpus=st.integers(1, 16), workers=st.integers(1, 40), per_worker=st.integers(1, 20), data=st.integers(1, 20))
def test_the_check_is_exact(
    monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int, per_worker: int, data: int
) -> None:
    """In tenths of a CPU, counted in fractions: nothing that fits is refused, and as many as fit are named."""
    set_cluster(monkeypatch, CPU=float(cpus))
    needed = Fraction(workers * per_worker + data, 10)
    fit = max(Fraction(cpus) - Fraction(data, 10), Fraction(0)) // Fraction(per_worker, 10)
    try:
        check_resources(workers, per_worker / 10, 0, data / 10)
    except UserError as error:
        assert needed > cpus
        found = re.search(r"train.num_workers up to (\d+)", str(error))
        assert found is not None
        assert int(found[1]) == fit
    else:
        assert needed <= cpus
