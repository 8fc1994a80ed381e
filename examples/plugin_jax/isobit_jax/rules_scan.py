"""A scan of the layers in `isobit_jax.recurrent`, known by its jaxpr: LSTM or GRU."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from isobit.errors import ModelError
from isobit_jax.recurrent import gru, lstm
from isobit_jax.values import Value

if TYPE_CHECKING:
    from isobit_jax.reading import Reader


def scan(reader: Reader, eqn: Any, *operands: Value) -> list[Value]:
    """ONNX has an axis for the direction behind the sequence's; the graph's second bias is input 8."""
    count, x = eqn.params["num_consts"], operands[-1]
    parameters = sorted(operands[:count], key=lambda value: -len(value.shape))  # weights in front of biases
    for op, layer, setting in (("LSTM", lstm, {}), ("GRU", gru, {"linear_before_reset": 1})):
        order = _order(partial(layer, reverse=eqn.params["reverse"]), eqn, [x, *parameters])
        if order is None or not all(value.literal == 0 for value in operands[count:-1]):
            continue
        w, r, *biases = (operands[order.index(place)] for place in range(1, count + 1))
        length, batch, hidden = eqn.outvars[-1].aval.shape
        padded = [*biases[:1], *[None] * 4, *biases[1:]] if biases else []
        y = reader.node(
            op, [x, w, r, *padded], Value((length, 1, batch, hidden), x.dtype), hidden_size=hidden,
            direction="reverse" if eqn.params["reverse"] else "forward", **setting,
        )  # fmt: skip
        y = reader.moved(y, (0, 2, 1, 3))
        state = Value((), x.dtype, problem="the last state of a recurrent layer is not read")
        return [
            *[state] * (len(eqn.outvars) - 1),
            reader.node("Reshape", [y], eqn.outvars[-1].aval, shape=(length, -1, hidden)),
        ]
    raise ModelError("a jax.lax.scan is read where it is a layer of isobit_jax.recurrent")


def _order(layer: Any, eqn: Any, arguments: list[Value]) -> list[int] | None:
    """Which argument of `layer` each constant of the scan is; None where the scan is not the layer's."""
    shapes = (jax.ShapeDtypeStruct(value.shape, value.dtype) for value in arguments)
    try:
        traced = jax.make_jaxpr(layer)(*shapes).jaxpr
    except (TypeError, ValueError):  # of other shapes than the layer's
        return None
    own_scan = next(step for step in traced.eqns if step.primitive.name == "scan")
    if str(own_scan.params["jaxpr"]) != str(eqn.params["jaxpr"]):
        return None
    return [traced.invars.index(variable) for variable in own_scan.invars[: own_scan.params["num_consts"]]]
