"""Observation inside a tf.function: only minimum, maximum and a strided sample of each tensor leave it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.graph import Graph, Input, Site, Tensor
from isobit.graph_backend import Tap
from isobit.statistics import Observer, Request, Watched, sampling_of
from isobit_tensorflow.kernels.operands import Operand
from isobit_tensorflow.simulate.simulator import Simulator
from isobit_tensorflow.simulate.traced_pass import Feeds, Pass, Switches, TracedPass, trace


def watched(request: Request, graph: Graph, quantized: Collection[Site]) -> Watched[Tap]:
    """Where a request is answered, and what leaves the function: all of a tensor that is not float32."""
    site = request.site
    name = graph.node(site.node).input(site.index) or "" if isinstance(site, Input) else site.name
    own = site if site in quantized else Tensor(name)
    after = request.stage == "after" and own in quantized
    info = graph.tensors[name]
    place: Tap = (own, "after") if after else (Tensor(name), "before")
    item = Watched.of(request.observer, place, info.channel_axis)
    return item if info.dtype == "float32" else item.whole()


class Observation:
    """A traced pass that reduces the tensors of `watched`; it serves any number of passes over data."""

    def __init__(self, simulator: Simulator, switches: Switches, watched: Sequence[Watched[Tap]]) -> None:
        self.watched = tuple(watched)
        self._simulator, self._switches = simulator, switches
        self._places: dict[Tap, list[int]] = {}
        for index, item in enumerate(watched):
            self._places.setdefault(item.place, []).append(index)

    @cached_property
    def _reduced(self) -> TracedPass:
        return trace(self._simulator, self._switches, ("reduced", self.watched), self._reduce)

    @cached_property
    def _whole(self) -> TracedPass:
        return trace(self._simulator, self._switches, ("whole", self.watched), self._collect)

    def feed(self, feeds: Feeds, observers: Sequence[Observer]) -> None:
        """Run one batch and feed every observer, in the order of `watched`."""
        reduced = self._reduced(feeds)
        bounds, sizes = reduced["bounds"].numpy(), reduced["sizes"].numpy().tolist()
        if not np.all(np.isfinite(bounds)):
            # NaN or infinity hides the finite bounds: look at the whole tensors of this batch
            for observer, item, values in zip(observers, self.watched, self._whole(feeds), strict=True):
                observer.update(_array(values), item.channel_axis)
            return
        samples, wholes = iter(reduced["samples"]), iter(reduced["wholes"])
        for index, (observer, item) in enumerate(zip(observers, self.watched, strict=True)):
            if item.wants == "sample" and observer.wants == "sample":
                low, high = bounds[index].tolist()
                observer.absorb(low, high, _array(next(samples)), sizes[index])
            elif observer.wants == "means":
                values = next(wholes).numpy()
                observer.add_means(values, sizes[index] // values.size)
            elif item.wants == "moments" and observer.wants == "moments":
                values = next(wholes).numpy()
                observer.add_moments(values, sizes[index] // values.shape[1])
            else:
                observer.update(bounds[index] if item.wants == "bounds" else _array(next(wholes)), item.channel_axis)

    def _reduce(self, feeds: Feeds, run: Pass) -> dict[str, Any]:
        """Bounds (tensors, 2), element counts, samples of histograms; what has no reduction here is whole."""
        bounds, sizes, samples, wholes = (dict[int, tf.Tensor]() for _ in range(4))

        def tap(place: Tap, value: Operand) -> None:
            low_high: tf.Tensor | None = None
            for index in self._places.get(place, ()):
                item = self.watched[index]
                sizes[index] = tf.size(value.tensor, tf.int64)
                if item.wants == "means":
                    bounds[index], wholes[index] = tf.zeros(2), means(value, item.channel_axis)
                    continue
                if item.wants == "moments":
                    bounds[index], wholes[index] = tf.zeros(2), moments(value, item.channel_axis or 0)
                    continue
                if item.wants == "tensor":
                    bounds[index], wholes[index] = tf.zeros(2), value.canonical()
                    continue
                tensor = tf.cast(value.tensor, tf.float32)
                if low_high is None:
                    low_high = tf.stack([tf.reduce_min(tensor), tf.reduce_max(tensor)])
                bounds[index] = low_high
                if item.wants == "sample":
                    samples[index] = sample(value.like(tensor), item.channel_axis, item.limit)

        run(feeds, tap=tap, only=self._places)
        indices = range(len(self.watched))
        return {
            "bounds": tf.stack([bounds[index] for index in indices]),
            "sizes": tf.stack([sizes[index] for index in indices]),
            "samples": [samples[index] for index in sorted(samples)],
            "wholes": [wholes[index] for index in sorted(wholes)],
        }

    def _collect(self, feeds: Feeds, run: Pass) -> list[tf.Tensor]:
        """Every watched tensor as it is."""
        tensors: dict[int, tf.Tensor] = {}

        def tap(place: Tap, value: Operand) -> None:
            for index in self._places.get(place, ()):
                tensors[index] = value.canonical()

        run(feeds, tap=tap, only=self._places)
        return [tensors[index] for index in range(len(self.watched))]


def means(value: Operand, channel_axis: int | None) -> tf.Tensor:
    """The mean of each channel, where the tensor is."""
    tensor = value.canonical()
    axes = [axis for axis in range(value.rank) if axis != channel_axis]
    return tf.reshape(tf.reduce_mean(tf.cast(tensor, tf.float64), axes), (-1,))


def moments(value: Operand, channel_axis: int) -> tf.Tensor:
    """Minimum, maximum, mean and mean square of each channel, (4, channels), where the tensor is."""
    tensor = value.canonical()
    axes = [axis for axis in range(value.rank) if axis != channel_axis]
    exact = tf.cast(tensor, tf.float64)
    ends = [tf.cast(reduce(tensor, axes), tf.float64) for reduce in (tf.reduce_min, tf.reduce_max)]
    return tf.stack([*ends, tf.reduce_mean(exact, axes), tf.reduce_mean(tf.square(exact), axes)])


def sample(value: Operand, channel_axis: int | None, limit: int | None) -> tf.Tensor:
    """`isobit.statistics.sample` where the tensor is: the same elements, in any order."""
    tensor = value.canonical() if not value.last else value.tensor
    static = tuple(tensor.shape[1:])
    if None in static or value.rank < 2:
        return value.canonical()
    shape = (1, *static) if not value.last else (1, static[-1], *static[:-1])
    sampling = sampling_of(shape, channel_axis, limit)
    if sampling.step == 1:
        return tensor
    if sampling.spatial and value.last:
        return tf.reshape(tensor, (-1, int(np.prod(static[:-1])), static[-1]))[:, :: sampling.step]
    if sampling.spatial:
        return tf.reshape(tensor, (-1, static[0], int(np.prod(static[1:]))))[:, :, :: sampling.step]
    flat = value.canonical()
    return tf.reshape(flat, (-1, int(np.prod(static))))[:, :: sampling.step]


def _array(values: tf.Tensor) -> NDArray[np.float32]:
    return np.asarray(values.numpy(), np.float32)
