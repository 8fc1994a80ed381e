"""The opened float model is compared with the user's own on one batch: nothing that follows is worth more than that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.optional import RunsGiven, SaysGivenTypes
from isobit.data import Batch
from isobit.errors import IsobitError, ModelError
from isobit.graph.graph import Graph
from isobit.graph.ops import BODIES, RANDOM
from isobit.graph.sites import Tensor
from isobit.quantsim.checks.bounded_outputs import BOUNDED_ROUNDING, rounding_of
from isobit.quantsim.checks.quality import Outputs, decibels
from isobit.quantsim.checks.whole_tensor import WholeTensor
from isobit.statistics.observer import Request

#: Sums in another order stay far above these; half precision rounds much more.
_LEAST_DECIBELS, _LEAST_OF_HALF = 60.0, 35.0

#: The note on a model that draws random numbers.
DIFFERENT_IN_EVERY_RUN = (
    "the opened model was not compared with the model as given, which is different in every run: figures of its "
    "outputs hold its own noise; where an input scales the noise, 0 there shows what quantization costs"
)

#: Share of whole numbers, classes for example, that may differ: two equal scores come in either order.
_TIES = 0.05


def check_given(model: CheckedModel, batch: Batch, outputs: Outputs) -> str:
    """Compare the outputs of the opened float model with those of the model as it was given.

    Returns a note where they cannot be compared, else an empty text. Raises ModelError where they differ, which names
    the first tensor that does.
    """
    if not isinstance(model.inner, RunsGiven):
        return ""
    try:
        given = model.inner.run_given(batch)
        types = _types(model)
        different = _first_different(model.graph, given, outputs, types)
        if different is None and not any(node.op in RANDOM | BODIES for node in model.graph.nodes):
            return ""
        again = model.inner.run_given(batch)
    except IsobitError as error:
        return f"the opened model was not compared with the model as given: {error}"
    if any(name in again and not np.array_equal(values, again[name]) for name, values in given.items()):
        return DIFFERENT_IN_EVERY_RUN
    if different is None:  # what is drawn has no influence, a noise times zero
        return ""
    where = _where(model, batch)
    name, what = different
    first = f"; the first tensor that differs is {where!r}" if where else ""
    raise ModelError(
        f"the opened model is not the model as given: output {name!r} {what} on a batch of the data{first}. This is a "
        "fault of isobit or of the file: report it with the model, or pass check=False (--no-check) to go on "
        "all the same"
    )


def _types(model: CheckedModel) -> set[str]:
    """The types of all that the opened model computes, and the given one."""
    graph = model.graph
    types = {info.dtype for info in graph.tensors.values()} | {info.dtype for info in graph.weights.values()}
    return types.union(model.inner.given_types if isinstance(model.inner, SaysGivenTypes) else ())


def _first_different(graph: Graph, given: Outputs, opened: Outputs, types: Collection[str]) -> tuple[str, str] | None:
    """The first output that differs, and how; None where all agree."""
    half = not set(types).isdisjoint(("float16", "bfloat16"))
    for name, values in given.items():
        if name in opened:
            rounds_more = half or values.dtype == np.float16
            least = _LEAST_OF_HALF if rounds_more else _LEAST_DECIBELS
            what = _difference(values, opened[name], least, rounding_of(graph, graph.outputs.get(name)))
            if what:
                return name, what
    return None


def _difference(given: NDArray[Any], opened: NDArray[Any], least: float, rounding: float) -> str:
    """How two arrays differ by more than rounding; empty where they do not."""
    if given.shape != opened.shape:
        return f"has shape {opened.shape}, not {given.shape}"
    if given.dtype.kind != "f" or opened.dtype.kind != "f":
        share = float(np.mean(given != opened)) if given.size else 0.0
        return f"differs in {100 * share:.1f} % of its values" if share > _TIES else ""
    if not np.array_equal(np.isfinite(given), np.isfinite(opened)):
        return "holds NaN or infinity at other places"
    finite = np.isfinite(given)
    with np.errstate(over="ignore"):  # a mask that is large on the other side
        differences = np.abs(given[finite] - opened[finite])
    if np.all(differences <= (rounding if np.any(given[finite]) else BOUNDED_ROUNDING)):
        return ""
    ratio = decibels(given, opened)
    return f"is {ratio:.1f} dB from it" if ratio < least else ""


def _where(model: CheckedModel, batch: Batch) -> str:
    """The first tensor in execution order that differs; empty where it is not known."""
    assert isinstance(model.inner, RunsGiven)
    graph = model.graph
    names = [t for node in graph.nodes for t in node.outputs if t in graph.tensors and graph.is_float(t)]
    if model.edit_log:  # folding changes what tensors hold
        return ""
    try:
        given = model.inner.run_given(batch, names)
        kept = {name: WholeTensor() for name in names if name in given}
        model.observe([batch], [Request(Tensor(name), keep) for name, keep in kept.items()])
    except IsobitError:
        return ""
    for name, keep in kept.items():
        values = keep.values
        if values is None or values.size != given[name].size:
            continue
        if _difference(given[name].reshape(values.shape), values, _LEAST_DECIBELS, rounding_of(graph, name)):
            return name
    return ""
