"""What nodes of a graph cost: counts by hand, and units."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.budget import Cost, layer_costs
from isobit.errors import FormatError
from isobit.graph.graph import Graph, Node, TensorInfo, WeightInfo
from isobit.targets.costs import Costs


def graph() -> Graph:
    """A grouped convolution, a transposed one, an activation, a flattened linear layer that shares nothing."""
    weights = {
        "w": np.zeros((8, 2, 3, 3), np.float32),  # 4 channels in 2 groups
        "b": np.zeros(8, np.float32),
        "t": np.zeros((5, 8, 2, 2), np.float32),
        "l": np.zeros((7, 5), np.float32),
    }
    return Graph(
        (
            Node("conv", "Conv", ("x", "w", "b"), ("c",), {"group": 2}),
            Node("relu", "Relu", ("c",), ("r",)),
            Node("up", "ConvTranspose", ("r", "t"), ("u",), {"strides": (2, 2)}),
            Node("last", "Linear", ("u2", "l"), ("y",)),
        ),
        ("x", "u2"),
        {"y": "y"},
        {
            "x": TensorInfo(("N", 4, 8, 8), channel_axis=1),
            "c": TensorInfo(("N", 8, 6, 6), channel_axis=1),
            "r": TensorInfo(("N", 8, 6, 6), channel_axis=1),
            "u": TensorInfo(("N", 5, 12, 12), channel_axis=1),
            "u2": TensorInfo(("N", 3, 5), channel_axis=2),
            "y": TensorInfo(("N", 3, 7), channel_axis=2),
        },
        {name: WeightInfo.of(value, name) for name, value in weights.items()},
    )


def test_counts_are_those_of_the_formulas() -> None:
    costs = layer_costs(graph())
    assert costs["conv"] == Cost(8 * 2 * 9 * 36, 8 * 18 + 8, 4 * (8 * 18 + 8), 8 * 36)
    assert costs["relu"] == Cost(0, 0, 0, 8 * 36)
    assert costs["up"].macs == 5 * 8 * 4 * 36  # every weight at every position of the input
    assert costs["last"].macs == 3 * 35


def test_milliseconds_follow_the_table() -> None:
    table = Costs("a processor", 0.1, 0.1, {"Relu": 0.5}, {}, {"Conv": 2.0})
    costs = layer_costs(graph(), table)
    assert costs["relu"].milliseconds == pytest.approx(0.5e-6 * 8 * 36)
    assert costs["conv"].milliseconds == pytest.approx(2e-6 * costs["conv"].macs)
    assert costs["last"].milliseconds == 0


def test_layers_take_time_for_what_they_read_and_write() -> None:
    table = Costs("a processor", 0.1, 0.1, {}, {}, {"Conv": 2.0, "Linear": 3.0}, layer_element=0.5)
    costs = layer_costs(graph(), table)
    assert costs["conv"].milliseconds == pytest.approx(1e-6 * (2 * costs["conv"].macs + 0.5 * (4 * 64 + 8 * 36)))
    assert costs["last"].milliseconds == pytest.approx(1e-6 * (3 * 105 + 0.5 * (15 + 21)))
    assert costs["up"].milliseconds == 0  # the table does not know it


def test_an_unknown_unit_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(FormatError, match="no cost is called 'mac', did you mean 'macs'|known are macs"):
        Cost().of("mac")


@pytest.mark.parametrize("batch", ["N", 8])
def test_recurrent_layers_are_counted_at_every_step_and_a_fixed_batch_once(batch: str | int) -> None:
    """The first axis of a recurrent layer is time, that of the others the batch."""
    weights = {
        "w": np.zeros((16, 3), np.float32),
        "r": np.zeros((16, 4), np.float32),
        "l": np.zeros((7, 4), np.float32),
    }
    recurrent = Graph(
        (Node("lstm", "LSTM", ("x", "w", "r"), ("h",), {"hidden_size": 4}), Node("last", "Linear", ("z", "l"), ("y",))),
        ("x", "z"),
        {"h": "h", "y": "y"},
        {
            "x": TensorInfo((9, "M", 3), channel_axis=2),
            "h": TensorInfo((9, 1, "M", 4), channel_axis=3),
            "z": TensorInfo((batch, 4), channel_axis=1),
            "y": TensorInfo((batch, 7), channel_axis=1),
        },
        {name: WeightInfo.of(value, name) for name, value in weights.items()},
    )
    costs = layer_costs(recurrent)
    assert costs["lstm"].macs == 9 * (16 * 3 + 16 * 4)
    assert costs["last"].macs == 7 * 4
