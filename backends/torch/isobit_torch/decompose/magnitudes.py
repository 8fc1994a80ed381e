"""Magnitudes and logarithms of spectra in real arithmetic, as the neutral vocabulary has it.

What is squared, added up and put under a root or a logarithm needs more than 8 bits on the way: the core sees that in
these steps, and not in `hypot`, in a complex `abs`, or in a logarithm to another base.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from isobit_torch.decompose.expander import Expander, Rule
from isobit_torch.program.fx_nodes import DTYPE, aten, op_name


def _magnitude(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """``abs`` of complex numbers: the norm of their parts, whose gradient at 0 is 0 too."""
    number = a["self"]
    if not str(number.meta.get(DTYPE)).startswith("complex"):
        return None
    pair: Any
    if op_name(number) == "complex":
        return _hypotenuse(e, *number.args[:2])  # of other shapes each: the rest is a pair (`complex_numbers`)
    if op_name(number) == "view_as_complex":
        pair = number.args[0]
    else:
        pair = e.call(aten.view_as_real.default, number, part="parts")
    return e.call(aten.linalg_vector_norm.default, pair, 2, [-1])


def _hypot(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    return _hypotenuse(e, a["self"], a["other"])


def _hypotenuse(e: Expander, real: Any, imaginary: Any) -> fx.Node:
    squares = [
        e.call(aten.mul.Tensor, x, x, part=part) for x, part in ((real, "real_square"), (imaginary, "imaginary_square"))
    ]
    return e.call(aten.sqrt.default, e.call(aten.add.Tensor, *squares, part="power"))


def _logarithm(base: float) -> Rule:
    def rule(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
        factor = e.constant(1 / math.log(base), "factor")
        return e.call(aten.mul.Tensor, e.call(aten.log.default, a["self"], part="natural"), factor)

    return rule


def _logarithm_of_more_than_one(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    """``log1p`` as torch.onnx.export writes it."""
    return e.call(aten.log.default, e.call(aten.add.Tensor, a["self"], e.constant(1.0, "one"), part="plus_one"))


MAGNITUDES: dict[str, Rule] = {
    "abs": _magnitude,
    "hypot": _hypot,
    "log10": _logarithm(10),
    "log2": _logarithm(2),
    "log1p": _logarithm_of_more_than_one,
}
