"""Whether onnxruntime's integer sums saturate on this processor, found by computing one."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime

from isobit_onnx.read.open_session import open_session

_SIZE = 64  # of a sum; any even number saturates where pairs of products are added in 16 bits


@cache
def sums_saturate() -> bool:
    """Whether sums of uint8 x int8 products saturate: so on x86-64 processors with AVX2 that have no VNNI.

    The flags of a processor are another name on each system, and may be hidden from a virtual machine or not used by
    a build of onnxruntime: one product at the ends of the grids says it in some milliseconds.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = open_session(_largest_sum(), options)
    (sums,) = session.run(None, {"x": np.full((4, _SIZE), 255, np.float32)})
    return bool(np.any(sums != 255 * 127 * _SIZE))


def _largest_sum() -> bytes:
    """uint8 x int8 as a QDQ model, whose MatMul onnxruntime computes in integers."""
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "one", "zero_u8"], ["x_q"]),
        make("DequantizeLinear", ["x_q", "one", "zero_u8"], ["x_dq"]),
        make("DequantizeLinear", ["w", "one", "zero_i8"], ["w_dq"]),
        make("MatMul", ["x_dq", "w_dq"], ["product"]),
        make("QuantizeLinear", ["product", "step", "zero_u8"], ["y_q"]),
        make("DequantizeLinear", ["y_q", "step", "zero_u8"], ["y"]),
    ]
    constants = {
        "one": np.float32(1),
        "step": np.float32(127 * _SIZE),
        "zero_u8": np.uint8(0),
        "zero_i8": np.int8(0),
        "w": np.full((_SIZE, _SIZE), 127, np.int8),
    }
    initializers = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", _SIZE]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "largest_sum", ports[:1], ports[1:], initializers)
    opset = onnx.helper.make_opsetid("", 13)
    return bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())
