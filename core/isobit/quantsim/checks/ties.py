"""Where a written file begins to differ from the simulator, and whether by ties alone.

Two frameworks add the products of a layer in another order, so that a value in the middle of two levels falls either
way. Every layer behind it makes more such values, and after some ten layers few values are equal, though each layer of
the file does what the simulated one does. What tells ties from a fault is the first tensor in order that differs;
of those behind it nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import OnnxName
from isobit.backend.optional import SaysPrecision, ShowsRounding
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.encodings.encoding import Encodings
from isobit.errors import IsobitError
from isobit.graph.graph import Graph
from isobit.graph.layout import to_canonical
from isobit.graph.sites import Input, Site, Tensor
from isobit.quantsim.checks.choices import CHOICES, first_chosen_apart
from isobit.quantsim.checks.whole_tensor import WholeTensor
from isobit.statistics.observer import Request

Array = NDArray[Any]
#: Tensors of a file by name, before and behind their quantizers.
Written = Mapping[str, tuple[Array, Array]]

#: Bytes of the simulator's tensors that are held at a time, beside twice as many of the file's.
_TOGETHER = 2**25
#: How often the simulator and the file are run at most, each time for other tensors, and for how many samples.
_MOST_ROUNDS, _SAMPLES = 8, 2
#: Operations that make much of little, as a quantizer does, and hand on floats or what they pick.
_JUMPS = frozenset({"Floor", "Ceil", "Round", "Sign", "Mod", "Cast", *CHOICES})
#: How far from the middle of two levels sums in another order may leave a value, in steps and in parts of all levels.
_NEAR, _NEAR_OF_LEVELS = 0.01, 2.0**-18


def first_apart(
    model: CheckedModel, file: Path, batch: Batch, backend: ShowsRounding, outputs: Sequence[Mapping[str, Array]] = ()
) -> str:
    """The first tensor whose levels in the written file, run in float mode, are not the simulator's; empty for none.

    It says how many values differ, and whether all of them lie in the middle of two levels, or behind an operation that
    chooses between equal values. Where quantizers may have differed before that are not looked at (those of single
    readers or of single channels), or where an operation before it jumps, it does not call it a fault.

    Two samples of the batch are run, those whose `outputs` (the simulator's and the file's) are farthest apart, where
    the model has an open one; kernels may add two samples in another order than many, so where these do not differ all
    are run. Each time at most 256 MB of the simulator's tensors are looked at: where that does not find it, it says so.
    """
    inner = model.inner
    if isinstance(inner, SaysPrecision) and inner.precision != "float32":
        return f"the simulator computes in {inner.precision}, as the model does, and the file in float32"
    try:
        onnx = model.to_onnx()[1]
    except IsobitError:  # a model that has names of its own alone
        return ""
    few, part = _few(model, batch, outputs)
    found = _first_in(model, file, few, part, onnx, backend)
    return found if found or not part else _first_in(model, file, batch, "", onnx, backend)


def _first_in(
    model: CheckedModel, file: Path, batch: Batch, part: str, onnx: Mapping[Site, OnnxName], backend: ShowsRounding
) -> str:
    """What `first_apart` says of these samples, which are `part` of all in words."""
    encodings = model.encodings()  # not those that the runtime alone needs, which the simulator has rounded before
    computed = [Tensor(name) for node in model.graph.nodes for name in node.outputs if name in model.graph.tensors]
    sites = [site for site in computed if site in onnx and _is_one_grid(site, encodings)]
    is_hidden = any(_is_hidden(site, model.graph, encodings) for site in encodings)
    is_hidden |= any(site in encodings and site not in onnx for site in computed)
    rounds = _rounds(sites, model.graph, max((values.shape[0] for values in batch.values() if values.ndim), default=1))
    shown = backend.rounded(file, batch, [[onnx[site].name for site in some] for some in rounds[:_MOST_ROUNDS]])
    chosen_apart = partial(first_chosen_apart, model, file=file, batch=batch, onnx=onnx, backend=backend)
    seen = 0
    for some, written in zip(rounds, shown, strict=False):
        found, is_shown = _first_of(some, model, written, batch, onnx)
        is_hidden |= not is_shown
        if found is not None:
            before = model.graph.before([found.tensor])
            chosen = "" if found.are_ties else chosen_apart(before)
            is_hidden |= any(model.graph.node(name).op in _JUMPS for name in before)
            return f"{chosen}{part}" if chosen else found.said(part, is_hidden=is_hidden)
        seen += len(some)
    chosen = chosen_apart({node.name for node in model.graph.nodes})
    if chosen:
        return f"{chosen}{part}"
    if not seen or seen == len(sites):
        return ""
    behind = f"it was not looked for behind the first {seen:,} of {len(sites):,} tensors"
    return f"where it begins was not found{part}: {behind}"


@dataclass(frozen=True)
class _Apart:
    """A tensor whose levels differ: in how many values, and how many steps apart they were before they were rounded."""

    tensor: str
    count: int
    size: int
    steps: float
    are_ties: bool

    def said(self, part: str, *, is_hidden: bool) -> str:
        share = f"{self.count:,} of {self.size:,} values of {self.tensor!r}{part}"
        if self.are_ties:
            return f"it begins with {share}, all in the middle of two levels, where another order of sums decides"
        if is_hidden:
            return f"it begins no later than with {share}"
        return f"it begins with {share}, {self.steps:.3g} steps apart before they are rounded: no ties"


def _few(model: CheckedModel, batch: Batch, outputs: Sequence[Mapping[str, Array]]) -> tuple[Batch, str]:
    """The samples of a batch that differ most and how many these are, in words; all of it where it cannot be cut."""
    sizes = SampleAxes.of(model.graph)
    try:
        axes = {} if sizes.fixed is not None else sizes.cut(batch)
        total = min((batch[name].shape[axis] for name, axis in axes.items()), default=0)
        if total <= _SAMPLES:
            return batch, ""
        farthest = np.sort(np.argsort(-_distances(outputs, total), kind="stable")[:_SAMPLES])
        few = {name: np.take(array, farthest, axes[name]) if name in axes else array for name, array in batch.items()}
        model.run(few)
    except IsobitError:  # what is open is no number of samples
        return batch, ""
    return few, f" in {_SAMPLES} of {total} samples"


def _distances(outputs: Sequence[Mapping[str, Array]], samples: int) -> NDArray[np.float64]:
    """How far two runs are apart in each sample, outputs in parts of their largest difference; 0 where none says it."""
    total = np.zeros(samples)
    for name, values in outputs[0].items() if outputs else ():
        other = outputs[1].get(name)
        if other is None or other.shape != values.shape or not values.ndim or len(values) != samples:
            continue
        with np.errstate(invalid="ignore"):
            apart = np.abs(values.astype(np.float64) - other).reshape(samples, -1).max(1, initial=0.0)
        apart = np.nan_to_num(apart)
        total += apart / (apart.max(initial=0.0) or 1.0)
    return total


def _rounds(sites: Sequence[Tensor], graph: Graph, samples: int) -> list[list[Tensor]]:
    """The tensors that are held together, in order."""
    rounds: list[list[Tensor]] = []
    held = _TOGETHER
    for site in sites:
        if held >= _TOGETHER:
            rounds.append([])
            held = 0
        rounds[-1].append(site)
        held += 4 * prod(size if isinstance(size, int) else samples for size in graph.tensors[site.name].shape or ())
    return rounds


def _is_one_grid(site: Tensor, encodings: Encodings) -> bool:
    encoding = encodings.get(site)
    return encoding is not None and encoding.spec.is_integer and encoding.scale.size == 1


def _is_hidden(site: Site, graph: Graph, encodings: Encodings) -> bool:
    """Whether a quantizer of an activation is not looked at: that of a single reader, or one with several grids."""
    if isinstance(site, Input):
        return graph.node(site.node).input(site.index) in graph.tensors
    return isinstance(site, Tensor) and not _is_one_grid(site, encodings)


def _first_of(
    sites: Sequence[Tensor], model: CheckedModel, written: Written, batch: Batch, onnx: Mapping[Site, OnnxName]
) -> tuple[_Apart | None, bool]:
    """The first of these tensors that differs, and whether the file shows all those up to it."""
    encodings, is_shown = model.encodings(), True
    kept = {site: WholeTensor() for site in sites}
    model.observe([batch], [Request(site, whole, "after") for site, whole in kept.items()])
    for site, whole in kept.items():
        found = written.get(onnx[site].name)
        if found is None or whole.values is None:
            is_shown = False
            continue
        before, after = (to_canonical(values, onnx[site].layout) for values in found)
        if before.shape != whole.values.shape:
            is_shown = False
            continue
        scale, bits = float(encodings[site].scale.ravel()[0]), encodings[site].spec.bits
        apart = ~(np.abs(whole.values - after) <= scale / 2)  # NaN too
        count = int(np.count_nonzero(apart))
        if not count:
            continue
        # Half a step where a value is a tie.
        from_level = np.abs(before[apart].astype(np.float64) - whole.values[apart]) / scale
        are_ties = bool(np.all(np.abs(from_level - 0.5) <= max(_NEAR, 2.0**bits * _NEAR_OF_LEVELS)))
        return _Apart(site.name, count, apart.size, float(from_level.max()), are_ties), is_shown
    return None, is_shown
