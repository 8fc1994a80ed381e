"""The simulator that sessions run: written once, and given other grids of the same form without being written anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir

from isobit.encodings import Encoding
from isobit.graph import Site
from isobit_onnx.qdq.writer import Grid
from isobit_onnx.run.session import to_proto


class Simulator:
    """A QDQ model and its protobuf, which holds all but the large weights.

    Schemes of calibration that are compared differ in scales, zero points and the integers of biases alone: those are
    constants, and cost next to nothing to exchange where writing and serializing takes longer than opening a session.
    """

    def __init__(self, model: ir.Model, encodings: Mapping[Site, Encoding], grids: Mapping[Site, Grid | None]) -> None:
        """`model` has these quantizers; `grids` are the constants that hold them, None for what cannot be exchanged."""
        self.model, self.proto = model, to_proto(model)
        self._encodings, self._grids = dict(encodings), grids
        self._held: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.proto.graph.initializer}

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
        for tensor in exchanged:
            name = tensor.name or ""
            if name not in self._held:  # nothing reads what it is for
                continue
            self.model.graph.initializers[name].const_value = tensor
            held = self._held[name]
            if held.data_location != onnx.TensorProto.EXTERNAL:  # else sessions get the array itself
                held.raw_data = tensor.tobytes()
        self._encodings.update(changed)
        return True


def _is_alike(one: Encoding, other: Encoding) -> bool:
    """Whether two encodings are written with the same nodes and shapes."""
    return one.spec == other.spec and one.axis == other.axis and one.scale.shape == other.scale.shape
