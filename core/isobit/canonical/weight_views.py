"""Constants of a graph that is being changed, and views of them, each registered once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace

from isobit.graph.graph import WeightInfo
from isobit.graph.layout import Layout, compose, output_shape, to_canonical


class Weights(MutableMapping[str, WeightInfo]):
    """Constants by name, which know the views of each: a search among all of them for each view would be quadratic."""

    def __init__(self, weights: Mapping[str, WeightInfo] | None = None) -> None:
        self._weights: dict[str, WeightInfo] = {}
        self._views: dict[str, dict[str, None]] = {}  # native constant -> the names that show it, in order
        self.update(weights or {})

    def __getitem__(self, name: str) -> WeightInfo:
        return self._weights[name]

    def __setitem__(self, name: str, info: WeightInfo) -> None:
        if name in self._weights:
            del self._views[self._source(name)][name]
        self._weights[name] = info
        self._views.setdefault(self._source(name), {})[name] = None

    def __delitem__(self, name: str) -> None:
        del self._views[self._source(name)][name]
        del self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def _source(self, name: str) -> str:
        return self._weights[name].source or name

    def view(self, name: str, layout: Layout) -> str:
        """Register the constant `name` seen through `layout`; the old name where no other use needs a new one.

        A constant already turned to this layout by another reader is shared.
        """
        old = self[name]
        source, steps = self._source(name), compose(old.layout, layout)
        for known in self._views[source]:
            if self[known].layout == steps:
                return known
        shape = output_shape(old.shape, layout)
        viewed = replace(old, shape=shape, source=source, layout=steps)
        if old.value is not None:  # a view of a part may have a smaller magnitude than the whole
            value = to_canonical(old.value, layout)
            viewed = replace(viewed, value=value, magnitude=WeightInfo.of(value, name).magnitude)
        alias = f"{name}'"
        while alias in self:
            alias += "'"
        self[alias] = viewed
        return alias
