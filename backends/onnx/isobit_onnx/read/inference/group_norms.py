"""Group norms, of which ONNX's shape inference knows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir


@contextmanager
def group_norms_as_instance_norms(model: ir.Model) -> Iterator[None]:
    """Call each GroupNormalization one of the same shape that is known, while shapes are inferred."""
    renamed = [n for g in model.graphs() for n in g if n.op_type == "GroupNormalization" and not n.domain]
    for node in renamed:
        node.op_type = "InstanceNormalization"
    try:
        yield
    finally:
        for node in renamed:
            node.op_type = "GroupNormalization"
