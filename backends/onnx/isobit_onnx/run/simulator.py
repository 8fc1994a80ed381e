"""The simulator that sessions run: written once, and given other grids of the same form without being written anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.encodings import Encoding
from isobit.graph import Site
from isobit_onnx.qdq.inserted import Grid, Quantized
from isobit_onnx.run.observe import ObservingSessions
from isobit_onnx.run.session import Session, to_proto

#: Zero points that NumPy has a type for can be fed.
_FED = frozenset({ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16})


class Simulator:
    """A QDQ model, and the session of it, in which the grids of activations are inputs.

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
        self.feeds = _made_inputs(model, [grid for grid in grids.values() if grid is not None])
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
        fed = {tensor.name: tensor.numpy() for tensor in exchanged if tensor.name in self.feeds}
        self.feeds = {**self.feeds, **{name or "": array for name, array in fed.items()}}
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


def _made_inputs(model: ir.Model, grids: Sequence[Grid]) -> dict[str, NDArray[Any]]:
    """Make inputs of the scales and zero points of activations; returns what they are."""
    feeds: dict[str, NDArray[Any]] = {}
    constants = model.graph.initializers
    for grid in grids:
        names = [name for name in (grid.scale, grid.zero_point) if name is not None]
        if grid.levels is not None or len(names) < 2 or any(name not in constants for name in names):
            continue
        tensors = {name: constants[name].const_value for name in names}
        held = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if len(held) < len(names) or held[names[1]].dtype not in _FED:
            continue
        for name, tensor in held.items():
            value = constants.pop(name)
            feeds[name] = np.asarray(tensor.numpy())
            value.const_value, value.shape = None, ir.Shape(tensor.shape.numpy())
            value.type = ir.TensorType(tensor.dtype)
            model.graph.inputs.append(value)
    return feeds


def _is_alike(one: Encoding, other: Encoding) -> bool:
    """Whether two encodings are written with the same nodes and shapes."""
    return one.spec == other.spec and one.axis == other.axis and one.scale.shape == other.scale.shape
