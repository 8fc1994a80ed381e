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
from isobit.graph.layout import to_canonical
from isobit.graph.sites import Site, Tensor
from isobit.quantsim.checks.whole_tensor import WholeTensor
from isobit.statistics.observer import Request

#: Bytes of the simulator's tensors that are held at a time, beside twice as many of the file's.
_TOGETHER = 2**25
#: How far from the middle of two levels sums in another order may leave a value, in steps and in parts of all levels.
_NEAR, _NEAR_OF_LEVELS = 0.01, 2.0**-18


def first_apart(model: CheckedModel, file: Path, batch: Batch, backend: ShowsRounding) -> str:
    """The first tensor whose levels in the written file, run in float mode, are not the simulator's; empty for none.

    It says how many values differ, and whether all of them lie in the middle of two levels.
    """
    try:
        onnx = model.to_onnx()[1]
    except IsobitError:  # a model that has names of its own alone
        return ""
    encodings = model.encodings()  # not those that the runtime alone needs, which the simulator has rounded before
    computed = [Tensor(name) for node in model.graph.nodes for name in node.outputs if name in model.graph.tensors]
    sites = [site for site in computed if site in onnx and _is_one_grid(site, encodings)]
    samples = max((values.shape[0] for values in batch.values() if values.ndim), default=1)
    while sites:
        together, held = 0, 0
        while together < len(sites) and (not together or held < _TOGETHER):
            shape = model.graph.tensors[sites[together].name].shape or ()
            held += 4 * prod(size if isinstance(size, int) else samples for size in shape)
            together += 1
        found = _first_of(sites[:together], model, file, batch, backend, encodings, onnx)
        if found:
            return found
        sites = sites[together:]
    return ""


def _is_one_grid(site: Tensor, encodings: Encodings) -> bool:
    encoding = encodings.get(site)
    return encoding is not None and encoding.spec.is_integer and encoding.scale.size == 1


def _first_of(
    sites: Sequence[Tensor],
    model: CheckedModel,
    file: Path,
    batch: Batch,
    backend: ShowsRounding,
    encodings: Encodings,
    onnx: Mapping[Site, OnnxName],
) -> str:
    kept = {site: WholeTensor() for site in sites}
    model.observe([batch], [Request(site, whole, "after") for site, whole in kept.items()])
    written = backend.rounded(file, batch, [onnx[site].name for site in sites])
    for site, whole in kept.items():
        found = written.get(onnx[site].name)
        if found is None or whole.values is None:
            continue
        before, after = (to_canonical(values, onnx[site].layout) for values in found)
        if before.shape != whole.values.shape:
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
            return f"it begins with {share}, up to {from_level.max():.3g} steps before they are rounded: no ties"
        return f"it begins with {share}, all in the middle of two levels, where another order of sums decides"
    return ""
