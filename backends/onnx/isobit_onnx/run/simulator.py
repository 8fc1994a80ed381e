"""The simulator that sessions run: written once, and given other grids of the same form without being written anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.encodings import Encoding
from isobit.graph import Site
from isobit.graph.free_name import take_name
from isobit_onnx.qdq.inserted import Grid, Quantized
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.run.observe import ObservingSessions
from isobit_onnx.run.session import Session, to_proto

#: Zero points that NumPy has a type for can be fed.
_FED = frozenset({ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16})

#: Scales in one input. onnxruntime looks through the inputs for each of its constants, several times, and through the
#: outputs of a node for each of them: with many of either the time to make a session grows with their square.
_MOST_PARTS = 64


class _Place(NamedTuple):
    """Where the numbers of one scale or zero point lie: in an input, from its `start`th element on."""

    fed: str
    start: int


class Simulator:
    """A QDQ model, and the session of it, in which the grids of activations are inputs.

    An input holds many scales, or zero points of one type, which a Split cuts apart: few inputs are fed in less time.

    Schemes of calibration that are compared differ in these alone: all of them run in one session. Grids of constants
    stay constants, which onnxruntime computes with once; another one takes a session of its own, of the same protobuf.
    """

    def __init__(
        self,
        model: ir.Model,
        encodings: Mapping[Site, Encoding],
        grids: Mapping[Site, Grid | None],
        quantized: Mapping[str, Quantized],
        providers: Sequence[str] = (),
    ) -> None:
        """`model` has these quantizers, of all readers `quantized`.

        `grids` are the constants that hold them, None for what cannot be exchanged.
        """
        self.model, self.quantized, self._providers = model, quantized, providers
        self._encodings, self._grids = dict(encodings), grids
        self.feeds, self._places = _made_inputs(model, [grid for grid in grids.values() if grid is not None])
        self.proto = to_proto(model)
        self._held: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self._session: Session | None = None
        self.observing: ObservingSessions | None = None  # the last that looked into it, with `feeds`

    def session(self) -> Session:
        """The session, which takes `feeds` beside each batch."""
        if self._session is None:
            self._session = Session(self.model, self._providers, proto=self.proto)
        return self._session

    def take(self, encodings: Mapping[Site, Encoding]) -> bool:
        """Put other grids in the place of those that are there; False, and nothing changed, where these do not fit."""
        if list(encodings) != list(self._encodings):
            return False
        changed = {site: e for site, e in encodings.items() if e is not self._encodings[site]}
        exchanged: list[ir.Tensor[Any]] = []
        for site, encoding in changed.items():
            grid = self._grids[site]
            if encoding == self._encodings[site]:
                continue
            if grid is None or not _is_alike(encoding, self._encodings[site]):
                return False
            exchanged += grid.tensors(encoding)
        fed = {tensor.name: tensor.numpy() for tensor in exchanged if tensor.name in self._places}
        if fed:  # who runs a session of the grids before has the arrays of those
            self.feeds = {name: array.copy() for name, array in self.feeds.items()}
        for name, array in fed.items():
            place = self._places[name or ""]
            self.feeds[place.fed][place.start : place.start + array.size] = array.reshape(-1)
        for tensor in exchanged:
            name = tensor.name or ""
            if name not in self._held:  # it is fed, or nothing reads what it is for
                continue
            self.model.graph.initializers[name].const_value = tensor
            held = self._held[name]
            if held.data_location != onnx.TensorProto.EXTERNAL:  # else sessions get the array itself
                held.raw_data = tensor.tobytes()
            self._session, self.observing = None, None
        self._encodings.update(changed)
        return True


def _made_inputs(model: ir.Model, grids: Sequence[Grid]) -> tuple[dict[str, NDArray[Any]], dict[str, _Place]]:
    """Take the scales and zero points of activations from inputs, one of each type: these, and what lies where."""
    constants = model.graph.initializers
    by_type: dict[ir.DataType, list[tuple[ir.Value, NDArray[Any]]]] = {}
    for grid in grids:
        names = [name for name in (grid.scale, grid.zero_point) if name is not None]
        if grid.levels is not None or len(names) < 2 or any(name not in constants for name in names):
            continue
        tensors = {name: tensor for name in names if (tensor := constants[name].const_value) is not None}
        if len(tensors) < len(names) or tensors[names[1]].dtype not in _FED:
            continue
        if any(len(tensor.shape) > 1 for tensor in tensors.values()):  # of blocks: a part has one axis
            continue
        for name, tensor in tensors.items():
            by_type.setdefault(tensor.dtype, []).append((constants[name], tensor.numpy().reshape(-1)))
    feeds: dict[str, NDArray[Any]] = {}
    places: dict[str, _Place] = {}
    taken = set(_names(model.graph))
    parts = [
        (kind, held[start : start + _MOST_PARTS])
        for kind, held in by_type.items()
        for start in range(0, len(held), _MOST_PARTS)
    ]
    for kind, held in parts:
        fed = take_name(f"grids_{kind.name.lower()}", taken)
        feeds[fed] = np.concatenate([array for _, array in held])
        sizes = [array.size for _, array in held]
        for (value, array), end in zip(held, np.cumsum(sizes), strict=True):
            places[value.name or ""] = _Place(fed, int(end) - array.size)
        _cut_apart(model.graph, fed, kind, [value for value, _ in held], sizes, taken)
    return feeds, places


def _cut_apart(
    graph: ir.Graph, fed: str, kind: ir.DataType, values: Sequence[ir.Value], sizes: Sequence[int], taken: set[str]
) -> None:
    """Put parts of a new input, of so many elements each, in the place of constants.

    One element has an axis of its own then, which for a scale of onnxruntime is the same as none.
    """
    whole = ir.Value(name=fed, shape=ir.Shape([sum(sizes)]), type=ir.TensorType(kind))
    graph.inputs.append(whole)
    lengths = add_initializer(graph, ir.Tensor(np.array(sizes, np.int64), name=take_name(f"{fed}_sizes", taken)))
    split = ir.Node("", "Split", [whole, lengths], num_outputs=len(values), name=take_name(f"{fed}_split", taken))
    for value, part, size in zip(values, split.outputs, sizes, strict=True):
        part.shape, part.type = ir.Shape([size]), ir.TensorType(kind)
        for use in tuple(value.uses()):
            use.node.replace_input_with(use.idx, part)
        part.name = value.name
        del graph.initializers[value.name or ""]
    graph.insert_before(graph[0], [split])


def _names(graph: ir.Graph) -> list[str]:
    """Of all values and nodes."""
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in nodes for output in node.outputs)]
    names = [*(node.name for node in nodes), *(value.name for value in values)]
    return [name for name in names if name is not None]


def _is_alike(one: Encoding, other: Encoding) -> bool:
    """Whether two encodings are written with the same nodes and shapes."""
    return one.spec == other.spec and one.axis == other.axis and one.scale.shape == other.scale.shape
