"""Reference networks, described once without a framework: a neutral graph and NumPy weights.

A backend's tests build each of them natively and compare what comes back; benchmarks time larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isobit.testing.networks.builder import Network, NetworkBuilder
from isobit.testing.networks.convolutional import conv_net, inverted_residual, pre_activation, residual, upsampler
from isobit.testing.networks.fully_connected import shared_weights, two_inputs
from isobit.testing.networks.sequences import attention, multi_head, recurrent

#: The reference networks by name.
NETWORKS: Mapping[str, Callable[[], Network]] = {
    make.__name__: make
    for make in (
        conv_net,
        inverted_residual,
        residual,
        pre_activation,
        upsampler,
        two_inputs,
        shared_weights,
        attention,
        multi_head,
        recurrent,
    )
}

__all__ = ["NETWORKS", "Network", "NetworkBuilder"]
