"""A node that reads a tensor and a view of it has a quantizer of its own at each input."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import constant, model, node, value

from isobit.encodings import Encoding, QuantSpec
from isobit.graph import Input
from isobit_onnx.backend import OnnxBackend

X = np.random.default_rng(8).standard_normal((2, 3, 3)).astype(np.float32)
VIEWS = {
    "Transpose": (node("Transpose", "x", "t", perm=[0, 2, 1]), {}, lambda x: x.transpose(0, 2, 1)),
    "Reshape": (node("Reshape", "x s", "t"), {"s": constant("s", [0, 3, 3], np.int64)}, lambda x: x),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("op", ["MatMul", "Mul", "Concat"])
def test_a_tensor_and_a_view_of_it(view, op):
    """Only the input that the site names is rounded: the view of the tensor is a tensor of its own."""
    made, constants, viewed = VIEWS[view]
    settings = {"axis": 1} if op == "Concat" else {}
    nodes = [made, node(op, "x t", "y", **settings), node("Relu", "t", "z")]
    proto = model(nodes, [value("x", ["n", 3, 3])], [value("y", None), value("z", None)], constants, 21)
    opened = OnnxBackend().open(proto)
    reader = next(n for n in opened.graph.nodes if n.op == op)
    if reader.inputs[0] == reader.inputs[1]:
        pytest.skip("the view changes nothing and is left out")
    encoding = Encoding(QuantSpec.parse("int4"), np.float32(0.4), np.int32(0))
    opened.set_quantizers({Input(reader.name, 0): encoding})
    rounded = encoding.fake_quantize(X)
    compute = {"MatMul": np.matmul, "Mul": np.multiply, "Concat": lambda *parts: np.concatenate(parts, 1)}[op]
    np.testing.assert_allclose(opened.run({"x": X})["y"], compute(rounded, viewed(X)), atol=1e-5)
