"""Observation inside a tf.function: only minimum, maximum and a strided sample of each tensor leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from isobit.backend import Request
from isobit.errors import EncodingError
from isobit.sampling import sampling_of
from isobit.sites import Input, Site, Tensor
from isobit.statistics import Histogram, MinMax
from isobit_tensorflow.operands import Operand
from isobit_tensorflow.simulator import Simulator

Key = tuple[Site, str]


@dataclass(frozen=True)
class Watched:
    """One request: where its tensor is met, and the axis of its channels."""

    request: Request
    key: Key
    channel_axis: int | None


class Observation:
    """Runs batches through a simulator and feeds the observers of `requests`."""

    def __init__(self, simulator: Simulator, requests: Sequence[Request]) -> None:
        self._simulator = simulator
        self._watched = [_watched(simulator, request) for request in requests]
        self._by_key: dict[Key, list[Watched]] = {}
        for item in self._watched:
            self._by_key.setdefault(item.key, []).append(item)
        self._reduced = tf.function(lambda feeds: self._run(feeds, whole=False), reduce_retracing=True, autograph=False)
        self._whole = tf.function(lambda feeds: self._run(feeds, whole=True), reduce_retracing=True, autograph=False)

    def feed(self, feeds: Mapping[str, tf.Tensor]) -> None:
        """Run one batch and feed every observer."""
        found = {name: np.asarray(value.numpy()) for name, value in self._reduced(feeds).items()}
        if not all(np.all(np.isfinite(value)) for name, value in found.items() if name.endswith("/bounds")):
            # NaN or infinity hides the finite bounds: look at the whole tensors of this batch
            whole = {name: np.asarray(value.numpy()) for name, value in self._whole(feeds).items()}
            for index, item in enumerate(self._watched):
                _update(item, whole[f"{index}/whole"])
            return
        for index, item in enumerate(self._watched):
            observer = item.request.observer
            if f"{index}/whole" in found:
                _update(item, found[f"{index}/whole"])
            elif isinstance(observer, Histogram):
                low, high = found[f"{index}/bounds"]
                observer.absorb(float(low), float(high), found[f"{index}/sample"], int(found[f"{index}/elements"]))
            else:
                observer.update(found[f"{index}/bounds"].astype(np.float32))

    def _run(self, feeds: Mapping[str, tf.Tensor], *, whole: bool) -> dict[str, tf.Tensor]:
        """The reductions by name; what a tensor's observers share is computed once."""
        found: dict[str, tf.Tensor] = {}
        places = {id(item): index for index, item in enumerate(self._watched)}

        def tap(site: Site, stage: str, value: Operand) -> None:
            bounds: tf.Tensor | None = None
            for item in self._by_key.get((site, stage), ()):
                name = places[id(item)]
                observer = item.request.observer
                if whole or not isinstance(observer, Histogram | MinMax) or not value.tensor.dtype.is_floating:
                    found[f"{name}/whole"] = tf.cast(value.canonical(), tf.float32)
                    continue
                tensor = tf.cast(value.tensor, tf.float32)
                if bounds is None:
                    bounds = tf.stack([tf.reduce_min(tensor), tf.reduce_max(tensor)])
                found[f"{name}/bounds"] = bounds
                if isinstance(observer, Histogram):
                    found[f"{name}/sample"] = sample(value.like(tensor), item.channel_axis, observer.limit)
                    found[f"{name}/elements"] = tf.size(tensor, tf.int64)

        self._simulator.run_named(feeds, tap=tap)
        return found


def sample(value: Operand, channel_axis: int | None, limit: int | None) -> tf.Tensor:
    """`isobit.sampling.sample` where the tensor is: the same elements, in any order."""
    tensor = value.canonical() if not value.last else value.tensor
    static = tuple(tensor.shape[1:])
    if None in static or value.rank < 2:
        return value.canonical()
    shape = (1, *static) if not value.last else (1, static[-1], *static[:-1])
    chosen = sampling_of(shape, channel_axis, limit)
    if chosen.step == 1:
        return tensor
    if chosen.spatial and value.last:
        return tf.reshape(tensor, (-1, int(np.prod(static[:-1])), static[-1]))[:, :: chosen.step]
    if chosen.spatial:
        return tf.reshape(tensor, (-1, static[0], int(np.prod(static[1:]))))[:, :, :: chosen.step]
    flat = value.canonical()
    return tf.reshape(flat, (-1, int(np.prod(static))))[:, :: chosen.step]


def _watched(simulator: Simulator, request: Request) -> Watched:
    graph, site = simulator.graph, request.site
    name = graph.node(site.node).input(site.index) if isinstance(site, Input) else site.name
    if name is None or name not in graph.tensors:
        raise EncodingError(f"{str(site)!r} is no tensor of the graph: only tensors have statistics")
    quantizers = simulator.quantizers
    key: Key = (Tensor(name), "before")
    if request.stage == "after":
        own = site if site in quantizers else Tensor(name)
        key = (own, "after" if own in quantizers else "before")
    return Watched(request, key, graph.tensors[name].channel_axis)


def _update(item: Watched, values: Any) -> None:
    item.request.observer.update(np.asarray(values, np.float32), item.channel_axis)
