"""How long the float model takes for one sample on this machine: it is run on a made-up one, or the table is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.budget.cost_model import elements, open_inputs
from isobit.data import Batch
from isobit.data.arrays import numpy_type
from isobit.errors import IsobitError
from isobit.graph.graph import Graph

#: Bytes of weights up to which the model is run to see how long it takes; a session of more takes too long to make.
_RUNS_BELOW = 256e6

#: At least one run behind the one that makes the session; no more than so many, or so many seconds.
_RUNS, _SECONDS = 5, 2.0


@dataclass(frozen=True)
class FloatPass:
    """Milliseconds of one sample through the float model, None where nobody can say; and where that is from, or why."""

    milliseconds: float | None
    source: str

    def __str__(self) -> str:
        if self.milliseconds is None:
            return f"time and memory are not told: {self.source}"
        return f"a sample takes {self.milliseconds:.3g} ms in float, {self.source}"


def float_pass(
    model: CheckedModel, weights: float, in_table: float | None, processor: str, sample: Batch | None = None
) -> FloatPass:
    """The time of one sample: measured, or, where `weights` bytes are too many or it does not run, that `in_table`.

    `in_table` are milliseconds by a table of costs of `processor`, None where there is no table. Without a `sample` a
    made-up one runs.
    """
    names = open_inputs(model.graph)
    if names and sample is None:
        return FloatPass(None, f"the model leaves sizes of {', '.join(names)} open beside the batch")
    passes = sorted({node.name for node in model.graph.nodes if node.op == "Loop"})
    if passes and sample is None:  # made-up counts and conditions are not those of data
        why = f"nobody can say how often {', '.join(passes)} runs"
    elif weights <= _RUNS_BELOW:
        try:
            made_up = {name: _made_up(model.graph, name) for name in model.graph.inputs} if sample is None else sample
            kind = "made-up" if sample is None else "given"
            return FloatPass(1e3 * _measured(model, made_up), f"measured here, a {kind} sample at a time")
        except Exception as error:  # made-up values may be no index, no mask, no text: whatever it raises
            text = str(error) if isinstance(error, IsobitError) else type(error).__name__
            why = f"the model does not run on made-up values ({text.splitlines()[0] if text else 'no reason given'})"
    else:
        why = f"{weights / 1e6:.0f} MB of weights are not run for an estimate"
    if in_table is None:
        return FloatPass(None, why)
    return FloatPass(in_table, f"of the table of {processor}, since {why}")


def _measured(model: CheckedModel, batch: Batch) -> float:
    """Seconds of one sample: the least of some runs."""
    model.run(batch)
    seconds: list[float] = []
    while len(seconds) < _RUNS and sum(seconds) < _SECONDS:
        start = time.perf_counter()
        model.run(batch)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _made_up(graph: Graph, name: str) -> NDArray[Any]:
    """One sample of an input: normal where it is of floats, else zeros, which are an index, a mask and a token."""
    info = graph.tensors[name]
    shape = tuple(size if isinstance(size, int) else 1 for size in info.shape or ())
    kind = numpy_type(info.dtype) or np.dtype(np.float32)
    if kind.kind != "f":
        return np.zeros(shape, kind)
    return np.asarray(np.random.default_rng(0).standard_normal(shape), kind)


def activation_bytes(graph: Graph) -> tuple[float, float]:
    """Of one sample, as float32: the largest tensor, and all that is computed. Open sizes count as 1."""
    sizes = [4 * elements(graph, name) for node in graph.nodes for name in node.outputs if graph.is_float(name)]
    return max(sizes, default=0.0), sum(sizes)
