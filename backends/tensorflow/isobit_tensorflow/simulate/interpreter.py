"""One pass of TensorFlow's kernels over the neutral graph, quantizers where they sit; eager or traced."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import methodcaller

import keras
import tensorflow as tf

from isobit.graph import Graph, Site, Weight
from isobit.graph_backend import Tap, run_graph
from isobit_tensorflow.kernels.operands import Constant, Operand, Rounding
from isobit_tensorflow.kernels.table import compute
from isobit_tensorflow.simulate.training_pass import TrainingPass


def run(
    graph: Graph,
    variables: Mapping[str, keras.Variable],
    rounding: Mapping[Site, Rounding],
    feeds: Mapping[str, tf.Tensor],
    training: TrainingPass | None = None,
    tap: Callable[[Tap, Operand], None] | None = None,
    only: Collection[Tap] | None = None,
) -> dict[str, tf.Tensor]:
    """The outputs by name, in canonical layout; `rounding`, `tap`, `only` are `isobit.graph_backend.run_graph`'s."""
    # a constant comes with its quantizer: it is rounded once for all readers, with its axes as a kernel asks for them
    constants = {
        name: Constant(variables[info.source or name], info.layout, rounding.get(Weight(name)))
        for name, info in graph.weights.items()
    }
    rounders: dict[Site, Callable[[Operand], Operand]] = {
        site: methodcaller("rounded", quantizer) for site, quantizer in rounding.items() if not isinstance(site, Weight)
    }
    operands = {name: Operand(value) for name, value in feeds.items()}
    compute_node = compute if training is None else training.compute
    outputs: dict[str, Operand] = run_graph(graph, compute_node, constants, rounders, operands, tap, only)
    if training is not None:
        outputs = {name: training.drop(("", name), value) for name, value in outputs.items()}
    return {name: value.canonical() for name, value in outputs.items()}
