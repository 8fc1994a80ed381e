"""Names of a model as files know them: where each is in the neutral graph, and in which layout its constants are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from isobit.backend.contract import BackendModel, OnnxName
from isobit.backend.optional import HasInnerValues
from isobit.encodings.encoding import Encoding, Encodings
from isobit.errors import EncodingError, IsobitError
from isobit.graph.graph import Graph
from isobit.graph.layout import Layout, output_shape, to_native
from isobit.graph.ops import operand
from isobit.graph.sites import Input, Site, Tensor, Weight


@dataclass(frozen=True)
class Place:
    """A tensor or constant under its name in files.

    A constant has its canonical shape, the native one and the layout between them, and the canonical axes of its
    channels and blocks. `inner` marks a value inside a node of the graph, whose encoding is that of the node's output.
    """

    name: str
    site: Tensor | Weight
    canonical: tuple[int, ...] = ()
    native: tuple[int, ...] = ()
    layout: Layout = ()
    channel_axis: int = 0
    block_axis: int | None = None
    inner: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether it is a weight, a bias or another constant."""
        return isinstance(self.site, Weight)


@dataclass(frozen=True, eq=False)
class Names:
    """The names of one model. A name may stand for several views of one constant; those of ONNX come first."""

    graph: Graph
    by_name: Mapping[str, tuple[Place, ...]]
    by_site: Mapping[Site, Place]
    model: BackendModel | None = None
    notes: tuple[str, ...] = ()
    inputs: Mapping[tuple[str, int], Input] = field(default_factory=dict)  # by node and input of the ONNX model

    @classmethod
    def of(cls, model: Any, *, onnx: bool = True) -> Names:
        """The names of a simulator, an opened model or a graph; with `onnx` those of its ONNX export too."""
        opened = getattr(model, "backend_model", model)
        opened = getattr(opened, "inner", opened)
        if isinstance(opened, Graph):
            return _collect(opened, _graph_places(opened))
        if not isinstance(getattr(opened, "graph", None), Graph):
            raise EncodingError(f"names come from a QuantSim, an opened model or a Graph, not {type(model).__name__}")
        names = _collect(opened.graph, _graph_places(opened.graph), model=opened)
        if not onnx or not hasattr(opened, "to_onnx"):
            return names
        try:
            proto, onnx_names = opened.to_onnx()
        except IsobitError as error:  # files that use names of modules and weights can still be read
            return replace(names, notes=(f"names of its ONNX export are not known: {error}",))
        shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        places = _onnx_places(opened.graph, onnx_names, shapes, names)
        if isinstance(opened, HasInnerValues):
            places += [Place(name, Tensor(tensor), inner=True) for name, tensor in opened.inner_values().items()]
        all_names = _collect(opened.graph, places, names, opened)
        return replace(all_names, inputs=_inputs(onnx_names))

    def find(self, name: str) -> tuple[Place, ...]:
        """What a name of a file stands for; nothing where the model has no such name."""
        return self.by_name.get(name, ())

    def inner(self, site: Site) -> list[Place]:
        """Values inside a node that share the encoding of its output `site`."""
        return [place for places in self.by_name.values() for place in places if place.inner and place.site == site]

    def constants_at(self, node: str, index: int) -> tuple[Place, ...]:
        """The constant that an input of a node of the ONNX model reads."""
        site = self.inputs.get((node, index))
        name = None if site is None else self.graph.node(site.node).input(site.index)
        place = self.by_site.get(Weight(name or ""))
        return () if place is None else (place,)

    def of_site(self, site: Tensor | Weight) -> Place:
        """How files call a site. Raises EncodingError when the model does not have it."""
        if site not in self.by_site:
            raise EncodingError(f"the model has no {'weight' if isinstance(site, Weight) else 'tensor'} {str(site)!r}")
        return self.by_site[site]


def without_single_inputs(encodings: Encodings, names: Names | None, format_name: str) -> tuple[Encodings, list[str]]:
    """The same encodings by tensors and constants alone, for formats that know no single readers; and notes.

    Raises EncodingError where readers of one tensor have different encodings.
    """
    joined: dict[Site, Encoding] = {s: e for s, e in encodings.items() if not isinstance(s, Input)}
    first_reader: dict[Site, Input] = {}
    for site, encoding in encodings.items():
        if not isinstance(site, Input):
            continue
        whole_site = _whole_site(site, names, format_name)
        if joined.setdefault(whole_site, encoding) != encoding:
            readers = f"at {str(first_reader[whole_site])!r}" if whole_site in first_reader else "for its other readers"
            raise EncodingError(
                f"{format_name} has one encoding for a tensor, but {str(whole_site)!r} has another at {str(site)!r} "
                f"than {readers}"
            )
        first_reader.setdefault(whole_site, site)
    single = [str(site) for site in encodings if isinstance(site, Input)]
    notes = (
        [f"{format_name} does not know single readers: {', '.join(single)} will be rounded for all readers"]
        if single
        else []
    )
    return Encodings(joined), notes


def _whole_site(site: Input, names: Names | None, format_name: str) -> Tensor | Weight:
    if names is None:
        raise EncodingError(f"{format_name} does not know single readers such as {str(site)!r}: the model is needed")
    if not names.graph.has_site(site):
        raise EncodingError(f"the model has no {str(site)!r}")
    name = names.graph.node(site.node).input(site.index) or ""
    return Weight(name) if name in names.graph.weights else Tensor(name)


def _graph_places(graph: Graph) -> list[Place]:
    """Places by the graph's own names; constants by those of their native arrays, where a layout can be undone."""
    places = [Place(name, Tensor(name)) for name in graph.tensors]
    for name, info in graph.weights.items():
        channel, block = _axes(graph, name)
        try:
            native = to_native(np.broadcast_to(np.int8(0), info.shape), info.layout).shape
        except ValueError:  # the constant is a part of an array, and its layout cannot be undone
            places.append(Place(name, Weight(name), info.shape, info.shape, (), channel, block))
            continue
        places.append(Place(info.source or name, Weight(name), info.shape, native, info.layout, channel, block))
    return places


def _onnx_places(
    graph: Graph, onnx_names: Mapping[Site, OnnxName], shapes: Mapping[str, tuple[int, ...]], names: Names
) -> list[Place]:
    places = []
    for site, entry in onnx_names.items():
        if isinstance(site, Tensor) and entry.input is None and site.name in graph.tensors:
            places.append(Place(entry.name, site))
        elif isinstance(site, Weight) and entry.input is None and entry.name in shapes and site in names.by_site:
            native, constant = shapes[entry.name], names.by_site[site]
            if output_shape(native, entry.layout) == constant.canonical:
                places.append(replace(constant, name=entry.name, native=native, layout=entry.layout))
    return places


def _inputs(onnx_names: Mapping[Site, OnnxName]) -> dict[tuple[str, int], Input]:
    return {
        (entry.name, entry.input): site
        for site, entry in onnx_names.items()
        if isinstance(site, Input) and entry.input is not None
    }


def _collect(graph: Graph, places: list[Place], below: Names | None = None, model: Any = None) -> Names:
    by_name: dict[str, tuple[Place, ...]] = {}
    for place in places:
        by_name[place.name] = (*by_name.get(place.name, ()), place)
    by_site: dict[Site, Place] = {place.site: place for place in places if not place.inner}
    if below is not None:
        by_name = {**below.by_name, **by_name}
        by_site = {**below.by_site, **by_site}
    return Names(graph, by_name, by_site, model)


def _axes(graph: Graph, weight: str) -> tuple[int, int | None]:
    """Channel and block axis of a constant, by what its readers take it for."""
    rank = len(graph.weights[weight].shape)
    for use in graph.uses(weight):
        role = operand(use.node.op, use.index)
        if role is not None and rank:
            channel = (role.channel_axis or 0) % rank
            return channel, None if role.block_axis is None or rank < 2 else role.block_axis % rank
    return 0, None
