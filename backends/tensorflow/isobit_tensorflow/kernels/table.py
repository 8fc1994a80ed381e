"""One TensorFlow kernel for each op of the neutral graph: from a node and its operands to its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from isobit.errors import ModelError
from isobit.graph import Node
from isobit_tensorflow.kernels.elementwise import ELEMENTWISE
from isobit_tensorflow.kernels.native import NATIVE, run_native
from isobit_tensorflow.kernels.normalization import NORMALIZATION
from isobit_tensorflow.kernels.operands import Operand
from isobit_tensorflow.kernels.products import PRODUCTS
from isobit_tensorflow.kernels.recurrent import RECURRENT
from isobit_tensorflow.kernels.shapes import SHAPES
from isobit_tensorflow.kernels.windows import WINDOWS

Kernel = Callable[..., Any]

KERNELS: Mapping[str, Kernel] = {**ELEMENTWISE, **NORMALIZATION, **PRODUCTS, **RECURRENT, **SHAPES, **WINDOWS}


def compute(node: Node, operands: Sequence[Operand | None]) -> tuple[Operand, ...]:
    """The results of a node. Raises ModelError for an op without a kernel, or where TensorFlow refuses the operands."""
    kernel = KERNELS.get(node.op)
    if kernel is None and node.op.startswith(NATIVE):
        kernel = run_native
    if kernel is None:
        raise ModelError(f"the TensorFlow backend has no kernel for {node.op} (node {node.name!r})")
    try:
        results = kernel(node, *operands)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError) as error:
        raise ModelError(f"node {node.name!r} ({node.op}) failed: {str(error).splitlines()[0]}") from error
    return tuple(results) if isinstance(results, list | tuple) else (results,)
