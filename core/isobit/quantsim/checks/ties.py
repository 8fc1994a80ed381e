"""Where a written file begins to differ from the simulator, and whether by ties alone.

Two frameworks add the products of a layer in another order, so that a value in the middle of two levels falls either
way. Every layer behind it makes more such values, and after some ten layers few values are equal, though each layer of
the file does what the simulated one does. What tells ties from a fault is the first tensor in order that differs;
of those behind it nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import OnnxName
from isobit.backend.optional import ShowsRounding
from isobit.data import Batch
from isobit.encodings.encoding import Encodings
from isobit.errors import IsobitError
from isobit.graph.graph import Graph
from isobit.graph.layout import to_canonical
from isobit.graph.sites import Input, Site, Tensor
from isobit.placement.size_tensors import COMPARISONS
from isobit.quantsim.checks.whole_tensor import WholeTensor
from isobit.statistics.observer import Request

#: Bytes of the simulator's tensors that are held at a time, beside twice as many of the file's.
_TOGETHER = 2**25
#: Operations that make much of little, as a quantizer does, and hand on floats or what they pick.
_JUMPS = frozenset({"Floor", "Ceil", "Round", "Sign", "Mod", "Cast", "ArgMax", "ArgMin", "TopK", *COMPARISONS})
#: How far from the middle of two levels sums in another order may leave a value, in steps and in parts of all levels.
_NEAR, _NEAR_OF_LEVELS = 0.01, 2.0**-18


def first_apart(model: CheckedModel, file: Path, batch: Batch, backend: ShowsRounding) -> str:
    """The first tensor whose levels in the written file, run in float mode, are not the simulator's; empty for none.

    It says how many values differ, and whether all of them lie in the middle of two levels. Where quantizers may have
    differed before that are not looked at (those of single readers or of single channels), or where an operation jumps,
    it does not call it a fault.
    """
    try:
        onnx = model.to_onnx()[1]
    except IsobitError:  # a model that has names of its own alone
        return ""
    encodings = model.encodings()  # not those that the runtime alone needs, which the simulator has rounded before
    computed = [Tensor(name) for node in model.graph.nodes for name in node.outputs if name in model.graph.tensors]
    sites = [site for site in computed if site in onnx and _is_one_grid(site, encodings)]
    samples = max((values.shape[0] for values in batch.values() if values.ndim), default=1)
    is_hidden = any(_is_hidden(site, model.graph, encodings) for site in encodings)
    is_hidden |= any(site in encodings and site not in onnx for site in computed)
    is_hidden |= any(node.op in _JUMPS for node in model.graph.nodes)
    while sites:
        together, held = 0, 0
        while together < len(sites) and (not together or held < _TOGETHER):
            shape = model.graph.tensors[sites[together].name].shape or ()
            held += 4 * prod(size if isinstance(size, int) else samples for size in shape)
            together += 1
        found, is_shown = _first_of(sites[:together], model, file, batch, backend, onnx, is_hidden=is_hidden)
        if found:
            return found
        is_hidden = is_hidden or not is_shown
        sites = sites[together:]
    return ""


def _is_one_grid(site: Tensor, encodings: Encodings) -> bool:
    encoding = encodings.get(site)
    return encoding is not None and encoding.spec.is_integer and encoding.scale.size == 1


def _is_hidden(site: Site, graph: Graph, encodings: Encodings) -> bool:
    """Whether a quantizer of an activation is not looked at: that of a single reader, or one with several grids."""
    if isinstance(site, Input):
        return graph.node(site.node).input(site.index) in graph.tensors
    return isinstance(site, Tensor) and not _is_one_grid(site, encodings)


def _first_of(
    sites: Sequence[Tensor],
    model: CheckedModel,
    file: Path,
    batch: Batch,
    backend: ShowsRounding,
    onnx: Mapping[Site, OnnxName],
    *,
    is_hidden: bool,
) -> tuple[str, bool]:
    """What is to be said of these tensors, empty where they are equal, and whether the file shows them all."""
    encodings = model.encodings()
    kept = {site: WholeTensor() for site in sites}
    model.observe([batch], [Request(site, whole, "after") for site, whole in kept.items()])
    written = backend.rounded(file, batch, [onnx[site].name for site in sites])
    for site, whole in kept.items():
        found = written.get(onnx[site].name)
        if found is None or whole.values is None:
            is_hidden = True
            continue
        before, after = (to_canonical(values, onnx[site].layout) for values in found)
        if before.shape != whole.values.shape:
            is_hidden = True
            continue
        scale, bits = float(encodings[site].scale.ravel()[0]), encodings[site].spec.bits
        apart = ~(np.abs(whole.values - after) <= scale / 2)  # NaN too
        count = int(np.count_nonzero(apart))
        if not count:
            continue
        share = f"{count:,} of {apart.size:,} values of {site.name!r}"
        # Half a step where a value is a tie.
        from_level = np.abs(before[apart].astype(np.float64) - whole.values[apart]) / scale
        if not np.all(np.abs(from_level - 0.5) <= max(_NEAR, 2.0**bits * _NEAR_OF_LEVELS)):
            if is_hidden:
                return f"it begins no later than with {share}", True
            return f"it begins with {share}, {from_level.max():.3g} steps apart before they are rounded: no ties", True
        return f"it begins with {share}, all in the middle of two levels, where another order of sums decides", True
    return "", not is_hidden
