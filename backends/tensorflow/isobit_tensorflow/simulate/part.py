"""A part of the graph as a traced pass of its own."""

from __future__ import annotations

import tensorflow as tf

from isobit.graph import Graph, Tensor
from isobit.graph_backend import Tap
from isobit_tensorflow.kernels.operands import Operand
from isobit_tensorflow.simulate.simulator import Simulator
from isobit_tensorflow.simulate.traced_pass import Feeds, Pass, Switches, TracedPass, trace


def trace_part(simulator: Simulator, switches: Switches, part: Graph) -> TracedPass:
    """From the inputs of a part to its outputs, in front of their quantizers."""
    taps: dict[Tap, str] = {(Tensor(name), "before"): name for name in part.outputs}

    def compute(feeds: Feeds, run: Pass) -> dict[str, tf.Tensor]:
        made: dict[str, tf.Tensor] = {}

        def tap(place: Tap, value: Operand) -> None:
            if place in taps:
                made[taps[place]] = value.canonical()

        run(feeds, tap=tap, only=taps, part=part)
        return made

    return trace(simulator, switches, ("part", tuple(part.outputs)), compute, part)
