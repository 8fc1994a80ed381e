from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from isobit_onnx.read.inference.shape_inference import run_shape_inference


def chain(layers=3, width=32):
    """Linear layers whose weights are large and biases small, and a reshape by a constant; one constant is an input."""
    made, held, last = [], [numpy_helper.from_array(np.array([0, -1], np.int64), "shape")], "x"
    for index in range(layers):
        weight, bias = np.ones((width, width), np.float32), np.ones(width, np.float32)
        held += [numpy_helper.from_array(weight, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        made.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"]))
        made.append(helper.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"]))
        last = f"a{index}"
    made.append(helper.make_node("Reshape", [last, "shape"], ["y"]))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, width]),
        helper.make_tensor_value_info("b0", TensorProto.FLOAT, [width]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(made, "chain", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_branches():
    """An If whose branches compute with a constant of the graph around them."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["x", "c"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)],
        )
        for op in ("Add", "Mul")
    ]
    node = helper.make_node("If", ["which"], ["y"], then_branch=branch[0], else_branch=branch[1])
    inputs = [
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 512]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    held = [numpy_helper.from_array(np.ones((1, 512), np.float32), "c")]
    graph = helper.make_graph([node], "branches", inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("make", [chain, with_branches])
def test_shapes_are_those_of_onnx_and_the_model_stays(make):
    proto = make()
    model = ir.from_proto(proto)
    constants = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    inputs = [value.name for value in model.graph.inputs]
    run_shape_inference(model)
    expected = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    told = {value.name: value for value in (*expected.graph.value_info, *expected.graph.output)}
    found = ir.convenience.create_value_mapping(model.graph)
    assert told
    for name, value in told.items():
        dims = [dim.dim_value or dim.dim_param or None for dim in value.type.tensor_type.shape.dim]
        assert [n if isinstance(n, int) else n.value for n in found[name].shape] == dims
        assert found[name].dtype == value.type.tensor_type.elem_type
    assert [value.name for value in model.graph.inputs] == inputs
    assert set(model.graph.initializers) == set(constants)
    for name, array in constants.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)


def test_inputs_are_not_looked_through_for_each_constant(monkeypatch):
    # That is a cost that grows with the square: 10,000 nodes with quantizers have 40,000 constants.
    model, looked = ir.from_proto(chain(layers=50, width=4)), []
    inputs = type(model.graph.inputs)

    def counted(self, value):
        looked.append(value)
        return any(one is value for one in self.data)

    monkeypatch.setattr(inputs, "__contains__", counted)
    run_shape_inference(model)
    assert str(model.graph.outputs[0].shape) == "[n,8]"
    assert len(looked) < 10


def test_a_model_that_cannot_be_written_stays_as_it_is():
    model = ir.from_proto(chain())
    next(iter(model.graph)).op_type = 3  # no name of an operation
    run_shape_inference(model)
    assert [value.name for value in model.graph.inputs] == ["x", "b0"]
    assert len(model.graph.initializers) == 7
    assert all(value.const_value is not None for value in model.graph.initializers.values())
