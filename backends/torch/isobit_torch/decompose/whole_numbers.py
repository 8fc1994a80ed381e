"""Functions that PyTorch takes of whole numbers and truth values too: these become floats by a call of their own."""

from __future__ import annotations

import torch
from torch import fx

from isobit_torch.decompose.expander import Expander
from isobit_torch.program.fx_nodes import DTYPE, aten, is_tensor, op_name

_OF_FLOATS = frozenset(
    "acos acosh asin asinh atan atan2 atanh cos cosh div erf erfc exp exp2 expm1 lgamma log log10 log1p log2 "
    "log_softmax logit reciprocal rsqrt sigmoid sin sinh softmax sqrt tan tanh true_divide".split()
)
_WHOLE = ("int", "uint", "bool")


def make_floats(e: Expander) -> None:
    """Give the node of `e` floats of the type that it gives, if it is such a function of whole numbers alone.

    ONNX has these functions of floats alone. A whole number beside a float is converted where they meet.
    """
    kind = str(e.node.meta.get(DTYPE))
    tensors = {index: x for index, x in enumerate(e.node.args) if isinstance(x, fx.Node) and is_tensor(x)}
    whole = all(str(x.meta.get(DTYPE)).startswith(_WHOLE) for x in tensors.values())
    if op_name(e.node) not in _OF_FLOATS or not whole or not kind.startswith(("float", "bfloat")):
        return
    for index, x in tensors.items():
        floats = e.call(aten._to_copy.default, x, part=f"floats_{index}", dtype=getattr(torch, kind))
        if "val" in x.meta:
            floats.meta["val"] = x.meta["val"].to(getattr(torch, kind))
        e.node.update_arg(index, floats)
