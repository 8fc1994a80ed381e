"""Vectors: several inputs and outputs, shared weights."""

from __future__ import annotations

from isobit.testing.networks.builder import Network, NetworkBuilder


def two_inputs() -> Network:
    """Two inputs, concatenation, Swish, two outputs."""
    b = NetworkBuilder("two_inputs", 4)
    left, right = b.input("left", 10), b.input("right", 6)
    joined = b.op("Concat", "concat", b.linear("fc_left", left, 8), b.linear("fc_right", right, 8), axis=1)
    hidden = b.op("Relu", "relu", b.linear("fc_joined", joined, 12))
    b.output("score", b.linear("fc_score", hidden, 3))
    b.output("gate", b.op("Swish", "gate", hidden))
    return b.build()


def shared_weights() -> Network:
    """One linear weight with two readers."""
    b = NetworkBuilder("shared_weights", 5)
    x = b.input("x", 8)
    first = b.op("Relu", "relu1", b.linear("fc1", x, 8))
    second = b.op("Relu", "relu2", b.linear("fc2", first, 8, weight="fc1.weight"))
    b.output("y", b.linear("fc3", b.op("Add", "add", first, second), 4))
    return b.build()
