"""0, 1, ... along an axis whose length is open."""

from __future__ import annotations

from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value


def places_of(call: Call, x: Value, axis: int, name: str) -> Value:
    """1, 2, ... for each entry along one axis, int32; the other axes are 1 long.

    The neutral graph computes no shapes: one line of the tensor is compared with itself, NaN
    too, and the truths are summed.
    """
    e = call.emitter
    x = e.plain(x)
    others = tuple(other for other in range(x.rank) if other != axis)
    zeros, ones = (0,) * len(others), (1,) * len(others)
    shape = tuple(n if place == axis else 1 for place, n in enumerate(x.shape))
    cut = {"starts": zeros, "ends": ones, "axes": others, "steps": ones}
    line = e.emit("Slice", f"{name}/line", [x], shape, x.dtype, **cut) if others else x
    same = e.emit("Equal", f"{name}/equal", [line, line], shape, "bool")
    other = e.emit("Not", f"{name}/differs", [same], shape, "bool")  # NaN, of itself
    there = e.emit("Or", f"{name}/there", [same, other], shape, "bool")
    counts = e.emit("Cast", f"{name}/ones", [there], shape, "int32", to="int32")
    return e.emit("CumSum", f"{name}/places", [counts], shape, "int32", axis=axis)


def counted(call: Call, x: Value, axis: int) -> Value:
    """0, 1, ... for each entry along one axis, (size,) int32."""
    e, size = call.emitter, x.shape[axis]
    places = places_of(call, x, axis, call.name)
    flat = e.emit("Reshape", f"{call.name}/flat", [places], (size,), "int32", shape=(-1,))
    if axis:
        e.unmark_batch(flat.name)
    one = e.constant(f"{call.name}/one", 1, "int32")
    return e.emit("Sub", call.name, [flat, one], (size,), "int32")
