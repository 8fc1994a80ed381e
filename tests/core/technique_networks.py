"""What the tests of techniques share: opening a reference network on the NumPy backend, and a simulator of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy_backend import checked

from isobit.backend import CheckedModel
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.testing.networks import Network, NetworkBuilder


def opened(network: Network) -> CheckedModel:
    """The network on the NumPy backend."""
    return checked(network.graph, network.weights)


def simulator(network: Network, target: str = "default", **config) -> QuantSim:
    """A simulator of the network on the NumPy backend."""
    return QuantSim.of_backend_model(opened(network), registry().target(target), QuantConfig(**config))


def assert_same_function(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Equal to float rounding, and not all zero."""
    for name, value in expected.items():
        size = np.abs(value).max()
        assert size > 1e-6
        np.testing.assert_allclose(outputs[name], value, rtol=0, atol=2e-5 * size)


def chain(
    seed: int = 0, *, middle: str = "Relu", group: int = 1, spread: float = 1.5, bias: bool = True, size: int = 6
) -> Network:
    """Pointwise, 3x3 (of `group` groups) and pointwise convolution, pooling and a linear layer; channels uneven.

    `spread` is the standard deviation of the channels' powers of ten, which the next layer takes back.
    """
    rng = np.random.default_rng(seed)
    b = NetworkBuilder("chain", seed)
    x = b.input("x", 4, size, size)
    for index, (kernel, groups) in enumerate(((1, 1), (3, group), (1, 1))):
        x = b.conv(f"conv{index}", x, 8, kernel, group=groups, bias=bias)
        if middle == "PRelu":
            x = b.op("PRelu", f"act{index}", x, b.weight(f"slope{index}", rng.uniform(0.05, 0.5, 8)))
        elif middle == "Clip":
            x = b.relu6(f"act{index}", x)
        elif middle == "LeakyRelu":
            x = b.op("LeakyRelu", f"act{index}", x, alpha=0.1)
        elif middle:
            x = b.op(middle, f"act{index}", x)
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 5))
    network = b.build()
    return _unbalanced(network, rng, spread, group) if spread else network


def _unbalanced(network: Network, rng: np.random.Generator, spread: float, group: int) -> Network:
    weights = {name: np.array(value) for name, value in network.weights.items()}
    layers = ("conv0", "conv1", "conv2", "fc")
    for first, second in pairwise(layers):
        factor = 10 ** (spread * rng.standard_normal(8)).astype(np.float32)
        weights[f"{first}.weight"] *= factor.reshape(-1, 1, 1, 1)
        if f"{first}.bias" in weights:
            weights[f"{first}.bias"] *= factor
        reader = weights[f"{second}.weight"]
        groups = group if second == "conv1" else 1
        per = 8 // groups
        for out in range(reader.shape[0]):
            start = out // (reader.shape[0] // groups) * per
            group_factors = factor[start : start + per]
            reader[out] /= group_factors.reshape(-1, *(1,) * (reader.ndim - 2))
    return Network(network.name, network.graph, weights)
