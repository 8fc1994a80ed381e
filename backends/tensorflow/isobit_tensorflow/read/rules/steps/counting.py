"""0, 1, ... along an axis whose length is open."""

from __future__ import annotations

from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value


def places_of(call: Call, x: Value, axis: int, name: str) -> Value:
    """1, 2, ... for each entry along one axis, int32; the other axes are 1 long.

    The truths of one line of the tensor are summed.
    """
    e = call.emitter
    there = e.truths(name, e.line(f"{name}/line", e.plain(x), axis))
    counts = e.emit("Cast", f"{name}/ones", [there], there.shape, "int32", to="int32")
    return e.emit("CumSum", f"{name}/places", [counts], there.shape, "int32", axis=axis)


def counted(call: Call, x: Value, axis: int) -> Value:
    """0, 1, ... for each entry along one axis, (size,) int32."""
    e, size = call.emitter, x.shape[axis]
    places = places_of(call, x, axis, call.name)
    flat = e.emit("Reshape", f"{call.name}/flat", [places], (size,), "int32", shape=(-1,))
    if axis:
        e.unmark_batch(flat.name)
    one = e.constant(f"{call.name}/one", 1, "int32")
    return e.emit("Sub", call.name, [flat, one], (size,), "int32")
