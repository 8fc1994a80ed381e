"""Operations of several tensors that broadcast, and joining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from isobit.graph import Layout, Permute, View, to_canonical
from isobit_tensorflow.axes import first_axes
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Size, Value, in_float32
from isobit_tensorflow.read.parameters import Computed, is_parameter


def broadcast(
    call: Call, op: str, operands: Sequence[Any], name: str = "", dtype: str | None = None, constants: str = ""
) -> Value:
    """A broadcasting node; operands are values, variables, arrays or numbers (of type `constants`, if said)."""
    e, name = call.emitter, name or call.name
    values = [operand for operand in operands if isinstance(operand, Value)]
    rank = max(value.rank for value in values)
    last = any(value.last and value.rank == rank for value in values)
    last = last and all(value.rank == rank for value in values)
    kind = constants or next((v.dtype for v in values if v.is_float), values[0].dtype)
    like = Value("", (None,) * rank, kind, last)
    inputs: list[Value | str] = []
    for index, operand in enumerate(operands):
        if isinstance(operand, Value):
            inputs.append(e.first(operand) if last else e.plain(operand))
        else:
            inputs.append(constant_operand(call, operand, like, index, name))
    shape = _broadcast_shape([v.shape for v in values] + [np.shape(o) for o in operands if not isinstance(o, Value)])
    return e.emit(op, name, inputs, shape, dtype or like.dtype, last)


def constant_operand(call: Call, operand: Any, like: Value, index: int, name: str = "") -> str:
    """A variable or number beside tensors like `like`, with its axes in the graph's order."""
    e, shape = call.emitter, tuple(np.shape(operand))
    layout: Layout = ()
    if like.last and shape:
        padded = (1,) * (like.rank - len(shape)) + shape
        turned = tuple(padded[axis] for axis in first_axes(like.rank))
        layout = (View(padded, shape), Permute(first_axes(like.rank)))
        short = turned[1:] if turned[0] == 1 and len(shape) < like.rank else turned
        if short != turned:
            layout = (*layout, View(short, turned))
    if is_parameter(operand) and not (isinstance(operand, Computed) and not operand.variables):
        return e.weight(operand, layout, f"{name or call.name}/constant{index}")
    if isinstance(operand, Computed):
        operand = operand.array
    kind: Any = like.dtype if like.dtype != "bool" else "float32"
    array = np.asarray(operand)
    if array.dtype == bool:
        kind = "bool"
    elif not like.is_float and array.dtype.kind == "f":
        kind = "float32"
    return e.constant(f"{name or call.name}/constant{index}", to_canonical(array, layout), kind)


def _broadcast_shape(shapes: Sequence[Sequence[Size]]) -> tuple[Size, ...]:
    rank = max(len(shape) for shape in shapes)
    result: list[Size] = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in shapes if -axis <= len(shape)]
        wide = [size for size in sizes if size != 1]
        result.append(1 if not wide else next((size for size in wide if size is not None), None))
    return tuple(result)


def _chain(op: str) -> Rule:
    """A merging layer: a list of tensors, two at a time."""

    def rule(call: Call) -> Value:
        values = list(call.args[0])
        result: Value = values[0]
        for position, value in enumerate(values[1:], 1):
            name = call.name if position == len(values) - 1 else f"{call.name}/{position}"
            result = broadcast(call, op, [result, value], name)
        return result

    return rule


def _average(call: Call) -> Value:
    values = list(call.args[0])
    total = values[0]
    for position, value in enumerate(values[1:], 1):
        total = broadcast(call, "Add", [total, value], f"{call.name}/sum{position}")
    return broadcast(call, "Mul", [total, 1 / len(values)])


def _two(op: str, dtype: str | None = None) -> Rule:
    def rule(call: Call) -> Value | None:
        operands = [_as_operand(call.argument(index)) for index in (0, 1)]
        if any(operand is None for operand in operands):
            return None
        operands = _of_one_type(call, op, operands)
        truths = all(isinstance(operand, Value) and operand.dtype == "bool" for operand in operands)
        return broadcast(call, _OF_TRUTHS.get(op, op) if truths else op, operands, dtype=dtype)

    return rule


def _of_one_type(call: Call, op: str, operands: Sequence[Any]) -> list[Any]:
    """Tensors of several types in the one that Keras computes in."""
    kinds = {operand.dtype for operand in operands if isinstance(operand, Value)}
    constants = [_dtype_of(operand) for operand in operands if not isinstance(operand, Value)]
    beside = []
    if op == "Div" or any(dtype.startswith(("float", "bfloat")) for dtype in constants):
        beside = ["float32"]  # a quotient of whole numbers is real
    elif kinds == {"bool"} and any("int" in dtype for dtype in constants):
        beside = ["int32"]
    kind = "bool" if op in _LOGICAL else call.emitter.in_float32(keras.backend.result_type(*sorted(kinds), *beside))
    return [
        cast_to(call, operand, kind, f"{call.name}/{kind}{index}") if isinstance(operand, Value) else operand
        for index, operand in enumerate(operands)
    ]


def _dtype_of(constant: Any) -> str:
    """The type of a parameter, an array or a number."""
    if is_parameter(constant):
        return str(keras.backend.standardize_dtype(constant.dtype))
    return np.result_type(constant).name


def cast_to(call: Call, value: Value, kind: str, name: str) -> Value:
    """A tensor in a type, itself where it has that."""
    if value.dtype == kind:
        return value
    return call.emitter.emit("Cast", name, [value], value.shape, kind, value.last, to=kind)


def _as_operand(argument: Any) -> Any:
    """A value, a parameter or an array; None for anything else."""
    if is_parameter(argument) or isinstance(argument, Value | np.ndarray | np.generic | int | float):
        return argument
    return None


def of_one_type(call: Call, values: Sequence[Value]) -> list[Value]:
    """Tensors in the type that Keras joins them in."""
    kind = call.emitter.in_float32(keras.backend.result_type(*sorted({value.dtype for value in values})))
    return [cast_to(call, value, kind, f"{call.name}/{kind}{index}") for index, value in enumerate(values)]


def concatenate(call: Call, values: Sequence[Value], axis: int) -> Value:
    """Joined along an axis of Keras."""
    values = of_one_type(call, values)
    e, rank = call.emitter, values[0].rank
    axis %= rank
    total = [value.shape[axis] for value in values]
    shape = list(values[0].shape)
    shape[axis] = None if None in total else sum(n for n in total if n is not None)
    last = any(value.last for value in values)
    turned = [e.first(value) if last else e.plain(value) for value in values]
    place = first_axes(rank).index(axis) if last else axis
    return e.emit("Concat", call.name, turned, shape, values[0].dtype, last, axis=place)


def _not_equal(call: Call) -> Value | None:
    equal = _two("Equal", "bool")(replace(call, name=f"{call.name}/equal"))
    return None if equal is None else call.emitter.emit("Not", call.name, [equal], equal.shape, "bool", equal.last)


def _where(call: Call) -> Value:
    condition, a, b = (call.argument(index) for index in range(3))
    if isinstance(condition, Value):
        condition = cast_to(call, condition, "bool", f"{call.name}/condition")
    if isinstance(a, Value) or isinstance(b, Value):
        a, b = _of_one_type(call, "Where", (a, b))
    dtype = next((v.dtype for v in (a, b) if isinstance(v, Value)), "") or _type_of_constants(a, b)
    if isinstance(a, Value) or isinstance(b, Value) or dtype != "float32":
        a, b = (v if isinstance(v, Value) or is_parameter(v) else np.asarray(v).astype(dtype) for v in (a, b))
    return broadcast(call, "Where", [condition, a, b], dtype=dtype, constants=dtype)


def _type_of_constants(*operands: Any) -> str:
    """What Keras makes of two constants, variables or numbers: truths, whole numbers or float32."""
    kinds = [getattr(operand, "dtype", type(operand)) for operand in operands]
    kind = str(keras.backend.result_type(*(k if isinstance(k, type) else str(k) for k in kinds)))
    return "float32" if "float" in kind else kind


def _square(call: Call) -> Value:
    return broadcast(call, "Mul", [call.x, call.x])


def _rsqrt(call: Call) -> Value:
    x = call.x
    root = call.emitter.emit("Sqrt", f"{call.name}/sqrt", [x], x.shape, x.dtype, x.last)
    return call.emitter.emit("Reciprocal", call.name, [root], x.shape, x.dtype, x.last)


def _cast(call: Call) -> Value:
    dtype = call.emitter.in_float32(keras.backend.standardize_dtype(call.setting("dtype")))
    return cast_to(call, call.x, dtype, call.name)


def _convert(call: Call) -> Value | None:
    """Of a tensor: itself, unless its type is to change."""
    dtype = call.setting("dtype")
    return call.x if dtype is None or in_float32(keras.backend.standardize_dtype(dtype)) == call.x.dtype else None


LAYERS: Mapping[type, Rule] = {
    keras.layers.Add: _chain("Add"),
    keras.layers.Subtract: _chain("Sub"),
    keras.layers.Multiply: _chain("Mul"),
    keras.layers.Maximum: _chain("Max"),
    keras.layers.Minimum: _chain("Min"),
    keras.layers.Average: _average,
    keras.layers.Concatenate: lambda call: concatenate(call, call.args[0], call.operation.axis),
}

_LOGICAL = ("And", "Or")

#: What arithmetic of truth values is.
_OF_TRUTHS = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}

OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    "Add": _two("Add"),
    "Subtract": _two("Sub"),
    "Multiply": _two("Mul"),
    "Divide": _two("Div"),
    "TrueDivide": _two("Div"),
    "Maximum": _two("Max"),
    "Minimum": _two("Min"),
    "Power": _two("Pow"),
    "Equal": _two("Equal", "bool"),
    "NotEqual": _not_equal,
    "Greater": _two("Greater", "bool"),
    "GreaterEqual": _two("GreaterOrEqual", "bool"),
    "Less": _two("Less", "bool"),
    "LessEqual": _two("LessOrEqual", "bool"),
    "LogicalAnd": _two("And", "bool"),
    "LogicalOr": _two("Or", "bool"),
    "Where": _where,
    "Square": _square,
    "Rsqrt": _rsqrt,
    "Cast": _cast,
    "ConvertToTensor": _convert,
    "Concatenate": lambda call: concatenate(call, call.args[0], call.operation.axis),
}
