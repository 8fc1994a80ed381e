"""Tables of integers whose rows are picked before they become floats: how a file has them, and which are such."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit_onnx.qdq.grids import integer_tensor

#: What four bits stand for, by type.
NIBBLES = {
    ir.DataType.INT4: np.concatenate([np.arange(8), np.arange(-8, 0)]).astype(np.int8),
    ir.DataType.UINT4: np.arange(16).astype(np.uint8),
}

#: A property of a DequantizeLinear, and what it says where each row has one scale: the file has it as one block.
GRANULARITY, BY_ROW = "isobit.granularity", "per-channel"


class Lookup(NamedTuple):
    """A table of constants, in integers, and the Gather that picks its rows."""

    table: ir.Value
    gather: ir.Node


def pairs(kind: ir.DataType) -> NDArray[np.int8 | np.uint8]:
    """The two integers of four bits that a byte holds, (256, 2), the low half first as ONNX packs them."""
    byte = np.arange(256)
    return np.stack([NIBBLES[kind][byte & 15], NIBBLES[kind][byte >> 4]], axis=1)


def packed(levels: NDArray[np.int8] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of an even number of such integers as bytes."""
    half = levels.astype(np.uint8) & np.uint8(15)
    found: NDArray[np.uint8] = half[..., 0::2] | (half[..., 1::2] << np.uint8(4))
    return found


def lookup_of(dequantizer: ir.Node) -> Lookup | None:
    """Where the integers of a DequantizeLinear are picked from; None where they are no rows of a table of constants."""
    source = dequantizer.inputs[0] if dequantizer.inputs else None
    gather = _gather(source)
    if gather is not None:
        table = gather.inputs[0]
        return None if table is None or behind_reshapes(table).const_value is None else Lookup(table, gather)
    return _packed_lookup(source)


def behind_reshapes(value: ir.Value) -> ir.Value:
    """What a value is a view of in other sizes."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Reshape" and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _packed_lookup(source: ir.Value | None) -> Lookup | None:
    """A table of four bits: its bytes are picked, and what each holds is picked from `pairs`."""
    unpacked = _gather(None if source is None else behind_reshapes(source))
    if unpacked is None or unpacked.inputs[0] is None or unpacked.inputs[1] is None:
        return None
    halves, cast = unpacked.inputs[0].const_value, unpacked.inputs[1].producer()
    gather = _gather(cast.inputs[0]) if cast is not None and cast.op_type == "Cast" else None
    table = gather.inputs[0] if gather is not None else None
    if halves is None or gather is None or table is None or table.const_value is None:
        return None
    kind = next((kind for kind in NIBBLES if np.array_equal(pairs(kind), halves.numpy())), None)
    stored = table.const_value.numpy()
    if kind is None or stored.dtype != np.uint8 or stored.ndim != 2:
        return None
    levels = pairs(kind)[stored].reshape(stored.shape[0], -1).astype(np.int32)
    return Lookup(ir.Value(name=table.name, const_value=integer_tensor(levels, kind, table.name or "")), gather)


def _gather(value: ir.Value | None) -> ir.Node | None:
    """The Gather of rows that a value comes from."""
    node = value.producer() if value is not None else None
    is_gather = node is not None and node.op_type == "Gather" and not node.domain and len(node.inputs) == 2
    return node if is_gather and node is not None and not node.attributes.get_int("axis", 0) else None
