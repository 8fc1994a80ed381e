"""The noise of every tensor, by channel: what came in, what its own grid adds, and what of that was cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph
from isobit.graph.sites import Input, Site, Tensor
from isobit.statistics.observer import Request
from isobit.statistics.sampling import SAMPLE_LIMIT, strided

Floats = NDArray[np.float64]

#: Elements that are kept of all tensors of one model together, about; each has 64 of a sample at least.
_KEPT = 1 << 25
_FEWEST = 64


class Kept:
    """Keeps chosen positions of a tensor as (samples, channels, positions), the same ones in every model."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._parts: list[NDArray[np.float32]] = []

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the tensor of one batch; one that holds nothing says nothing."""
        array = np.asarray(batch, np.float32)
        if not array.size:
            return
        if array.ndim < 2:
            array = array.reshape(-1, 1)
        if channel_axis is not None and 0 < channel_axis < array.ndim:
            array = np.moveaxis(array, channel_axis, 1)
            array = array.reshape(*array.shape[:2], -1)
        else:
            array = array.reshape(array.shape[0], 1, -1)
        self._parts.append(np.array(strided(array, 1, self.limit)))

    @property
    def values(self) -> NDArray[np.float32] | None:
        """All of it; None where nothing came, or where batches have other channels or lengths than the first."""
        shapes = {part.shape[1:] for part in self._parts}
        if len(shapes) == 1:
            return np.concatenate(self._parts)
        if len({shape[0] for shape in shapes}) != 1:
            return None
        # Lengths differ from batch to batch: positions and samples count alike, so they are laid out in one row.
        rows = [np.moveaxis(part, 1, 0).reshape(1, part.shape[1], -1) for part in self._parts]
        return np.concatenate(rows, axis=2)


@dataclass(frozen=True, eq=False)
class TensorNoise:
    """Mean squares by channel, over the samples and the chosen positions, at one place of the simulated model.

    `before` and `after` are the distance from the float model before and behind the quantizer, `own` is what the
    quantizer moves, `clipped` that of it which moves values from outside the grid, and `shift` the mean that it adds.
    `values` are what the quantizer is given, (samples, channels, positions); None where there is none.
    """

    signal: Floats
    before: Floats
    after: Floats
    own: Floats
    clipped: Floats
    shift: Floats
    low: Floats
    high: Floats
    outside: float = 0.0
    values: NDArray[np.float32] | None = None
    counts: Floats | None = None  # how much each sample of `values` counts
    errors: Floats | None = None  # (samples, channels): the mean distance before the quantizer, with its sign

    def moved_by(self, encoding: Encoding) -> Floats:
        """What another quantizer would move here, mean square by channel."""
        if self.values is None or self.counts is None:
            return self.own
        values = np.where(np.isfinite(self.values), self.values, 0)
        grid = encoding if encoding.axis is None else Encoding(encoding.spec, encoding.scale, encoding.zero_point, 1)
        return _mean(np.square(grid.fake_quantize(values).astype(np.float64) - values), self.counts)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.signal.size

    @property
    def kept(self) -> Floats:
        """How much of the noise before and of the quantizer's own is left behind it, by channel.

        1 where the two do not know of each other, less where values that err are cut off.
        """
        return _ratio(self.after, self.before + self.own)


@dataclass(frozen=True, eq=False)
class MeasuredNoise:
    """The noise of tensors by name, and of single inputs that have a quantizer of their own."""

    tensors: Mapping[str, TensorNoise]
    inputs: Mapping[Input, TensorNoise]
    left: Mapping[str, str] = field(default_factory=dict)

    def at(self, site: Site) -> TensorNoise | None:
        """The noise at a site of an activation."""
        if isinstance(site, Input):
            return self.inputs.get(site)
        return self.tensors.get(str(site))

    def read_by(self, node: str, index: int, tensor: str) -> TensorNoise | None:
        """What input `index` of a node reads."""
        return self.inputs.get(Input(node, index)) or self.tensors.get(tensor)


def measure_noise(
    exact: CheckedModel, simulated: CheckedModel, batches: Sequence[Batch], by_sample: Floats
) -> MeasuredNoise:
    """Run the float model and the simulated one over a few batches, one pass each, and compare all float tensors.

    `by_sample` says how much the noise of each sample counts.
    """
    graph = simulated.graph
    names = [name for name in graph.tensors if graph.is_float(name) and (graph.uses(name) or _leaves(graph, name))]
    limit = int(np.clip(_KEPT // max(1, len(names) * by_sample.size), _FEWEST, SAMPLE_LIMIT))
    encodings = {site: e for site, e in simulated.encodings().items() if _tensor_at(graph, site) is not None}
    sites: list[Tensor | Input] = [site for site in encodings if isinstance(site, Tensor | Input)]
    of_float = _keep(exact, batches, [(Tensor(name), "before") for name in names], limit)
    single: list[tuple[Tensor | Input, Literal["before", "after"]]] = [
        (s, "before") for s in sites if isinstance(s, Input)
    ]
    asked: list[tuple[Tensor | Input, Literal["before", "after"]]] = [(Tensor(name), "before") for name in names]
    of_simulated = _keep(simulated, batches, [*asked, *single, *((site, "after") for site in sites)], limit)
    tensors, inputs, left = {}, {}, {}
    for name in names:
        noise = _compare(
            of_float.get((Tensor(name), "before")),
            of_simulated.get((Tensor(name), "before")),
            of_simulated.get((Tensor(name), "after")),
            encodings.get(Tensor(name)),
            by_sample,
        )
        if noise is None:
            left[name] = "its size depends on its values, or it holds nothing finite"
        else:
            tensors[name] = noise
    for site in sites:
        if isinstance(site, Input):
            name = graph.node(site.node).input(site.index) or ""
            before, after = of_simulated.get((site, "before")), of_simulated.get((site, "after"))
            noise = _compare(of_float.get((Tensor(name), "before")), before, after, encodings[site], by_sample)
            if noise is not None:
                inputs[site] = noise
    return MeasuredNoise(tensors, inputs, left)


def _tensor_at(graph: Graph, site: Site) -> str | None:
    """The tensor that is quantized at a site; None for a constant, also for one input that reads it (a shared bias)."""
    name = graph.node(site.node).input(site.index) if isinstance(site, Input) else site.name
    return name if name in graph.tensors else None


def _leaves(graph: Graph, name: str) -> bool:
    return name in graph.output_tensors


Place = tuple[Tensor | Input, Literal["before", "after"]]


def _keep(
    model: CheckedModel, batches: Sequence[Batch], asked: Sequence[Place], limit: int
) -> dict[Place, NDArray[np.float32]]:
    observers = {place: Kept(limit) for place in asked}
    model.observe(iter(batches), [Request(site, observers[site, stage], stage) for site, stage in asked])
    values = {place: observer.values for place, observer in observers.items()}
    return {place: array for place, array in values.items() if array is not None}


def _compare(
    exact: NDArray[np.float32] | None,
    before: NDArray[np.float32] | None,
    after: NDArray[np.float32] | None,
    encoding: Encoding | None,
    by_sample: Floats,
) -> TensorNoise | None:
    if exact is None or before is None or exact.shape != before.shape or not exact.size:
        return None
    behind = before if after is None or after.shape != before.shape else after
    finite = np.isfinite(exact) & np.isfinite(before) & np.isfinite(behind)
    if not finite.any():
        return None
    exact64, before64, behind64 = (np.where(finite, a, 0).astype(np.float64) for a in (exact, before, behind))
    step = behind64 - before64
    counts = by_sample if exact.shape[0] == by_sample.size else np.ones(exact.shape[0])
    clipped, outside = np.zeros(exact.shape[1]), 0.0
    if encoding is not None and encoding.spec.is_integer and after is not None:
        low, high, half = (_by_channel(a) for a in (encoding.minimum, encoding.maximum, encoding.scale / 2))
        beyond = (before64 < low - half) | (before64 > high + half)
        clipped, outside = _mean(np.square(step) * beyond, counts), float(beyond.mean())
    return TensorNoise(
        _mean(np.square(exact64), counts),
        _mean(np.square(before64 - exact64), counts),
        _mean(np.square(behind64 - exact64), counts),
        _mean(np.square(step), counts),
        clipped,
        _mean(step, counts),
        exact64.min((0, 2)),
        exact64.max((0, 2)),
        outside,
        before if after is not None else None,
        counts,
        (before64 - exact64).mean(2),
    )


def _by_channel(values: NDArray[Any]) -> NDArray[Any]:
    """Per-tensor values as they are, those of channels along axis 1."""
    return values.reshape(1, -1, 1) if values.ndim else values


def _mean(values: Floats, counts: Floats) -> Floats:
    return np.asarray(counts @ values.mean(2) / counts.sum(), np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
