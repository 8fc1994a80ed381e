"""Operations that choose between values: where two are equal but for the last bits, a file may choose the other.

What follows from the other choice is as far from the simulator as two inputs of the network are from each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import OnnxName
from isobit.backend.optional import ShowsRounding
from isobit.data import Batch
from isobit.graph.graph import Node
from isobit.graph.layout import to_canonical
from isobit.graph.sites import Site, Tensor
from isobit.placement.size_tensors import COMPARISONS
from isobit.quantsim.checks.quality import ROUNDING, is_rounding
from isobit.quantsim.checks.whole_tensor import WholeTensor
from isobit.statistics.observer import Request

#: Operations that give the place of what they pick, by which of their results that is.
_PLACES = {"TopK": 1, "ArgMax": 0, "ArgMin": 0}
CHOICES = COMPARISONS | frozenset(_PLACES)
#: Bytes of tensors that are held at most of the simulator, and as many of the file.
_MOST_BYTES = 2**25


def first_chosen_apart(
    model: CheckedModel,
    names: Collection[str],
    file: Path,
    batch: Batch,
    onnx: Mapping[Site, OnnxName],
    backend: ShowsRounding,
) -> str:
    """The first of these nodes that chooses otherwise in the file, where all it does so between are ties.

    Empty where none chooses otherwise, or where one does whose values are not equal.
    """
    nodes = [node for node in model.graph.nodes if node.op in CHOICES and node.name in names]
    nodes = [node for node in nodes if len(node.outputs) > _PLACES.get(node.op, 0)]
    sites = _shown(model, nodes, onnx, max((values.shape[0] for values in batch.values() if values.ndim), default=1))
    kept = {site: WholeTensor() for site in sites}
    if not kept:
        return ""
    model.observe([batch], [Request(site, whole, "before") for site, whole in kept.items()])
    written = backend.computed(file, batch, [onnx[site].name for site in kept])
    ours, theirs = dict[str, NDArray[Any]](), dict[str, NDArray[Any]]()
    for site, whole in kept.items():
        values = written.get(onnx[site].name)
        if whole.values is not None and values is not None:
            values = to_canonical(values, onnx[site].layout)
            if values.shape == whole.values.shape:
                ours[site.name], theirs[site.name] = whole.values, values
    for node in nodes:
        result = node.outputs[_PLACES.get(node.op, 0)]
        if result not in ours:
            continue
        apart = ours[result] != theirs[result]
        if not np.any(apart):
            continue
        if not _chooses_between_ties(node, ours, theirs, result, apart):
            return ""
        count = f"{np.count_nonzero(apart):,} of {apart.size:,} results of {node.op} {node.name!r}"
        return (
            f"it begins with {count}, which chooses there between values that are equal but for the last bits of floats"
        )
    return ""


def _shown(
    model: CheckedModel, nodes: Collection[Node], onnx: Mapping[Site, OnnxName], samples: int
) -> dict[Tensor, None]:
    """What the nodes choose between and what they give, as much as is held at a time."""
    found: dict[Tensor, None] = {}
    held = 0
    for node in nodes:
        sites = [Tensor(name) for name in (*node.inputs, *node.outputs) if name is not None]
        sites = [site for site in sites if site in onnx and site.name in model.graph.tensors]
        shapes = [model.graph.tensors[site.name].shape or () for site in sites]
        held += 4 * sum(prod(size if isinstance(size, int) else samples for size in shape) for shape in shapes)
        if held > _MOST_BYTES:
            break
        found |= dict.fromkeys(sites)
    return found


def _chooses_between_ties(
    node: Node,
    ours: Mapping[str, NDArray[Any]],
    theirs: Mapping[str, NDArray[Any]],
    result: str,
    apart: NDArray[np.bool_],
) -> bool:
    """Whether what the node reads is the same in both, and what it chose otherwise are ties."""
    values = [ours.get(name) if name is not None else None for name in node.inputs]
    for name, array in zip(node.inputs, values, strict=True):
        if array is not None and not np.all((array == theirs[name or ""]) | is_rounding(array, theirs[name or ""])):
            return False
    if node.op in COMPARISONS:
        compared = [array for array in values if array is not None]
        if len(compared) == 2:
            left, right = np.broadcast_arrays(*compared)
            return bool(np.all(_is_tie(left[apart], right[apart], compared)))
        return False  # what it is compared with is not shown
    source = values[0]
    if source is None:
        return False
    axis = int(node.attributes.get("axis", -1 if node.op == "TopK" else 0))
    places = [side[result].astype(np.int64) for side in (ours, theirs)]
    if places[0].ndim < source.ndim:  # the axis is not kept
        places = [np.expand_dims(place, axis) for place in places]
    if places[0].ndim != source.ndim:
        return False
    picked = [np.take_along_axis(source, place, axis) for place in places]
    return bool(np.all(_is_tie(picked[0], picked[1], [source])))


def _is_tie(left: NDArray[Any], right: NDArray[Any], among: Collection[NDArray[Any]]) -> NDArray[np.bool_]:
    """Where two values are equal but for what sums in another order may differ by, of the largest `among` them."""
    largest = max(float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in among)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return np.asarray((left == right) | (np.abs(left.astype(np.float64) - right) <= ROUNDING * largest))
