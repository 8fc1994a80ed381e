"""What onnx's checker refuses and onnxruntime runs is opened; what neither takes is refused with what both say."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import model, node, opened_alike, ops, value

import isobit
from isobit.errors import ModelError
from isobit_onnx.read.read_model import read_model

RNG = np.random.default_rng(4)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def perceptron(opset=17, middle=None):
    nodes = [node("MatMul", "x w", "h"), middle or node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    constants = {"w": normal(8, 16), "v": normal(16, 4), "s": normal(16), "t": normal(16)}
    return model(nodes, [value("x", ["n", 8])], [value("y", ["n", 4])], constants, opset)


def unsorted():
    proto = perceptron()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[::-1])
    return proto


def output_without_shape():
    proto = perceptron()
    proto.graph.output[0].CopyFrom(value("y", None))
    return proto


def output_without_type():
    proto = perceptron()
    proto.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    return proto


def graph_without_name():
    proto = perceptron()
    proto.graph.name = ""
    return proto


def named_domain():
    proto = perceptron()
    proto.opset_import[0].domain = "ai.onnx"
    for each in proto.graph.node:
        each.domain = "ai.onnx"
    return proto


def layer_norm(opset):
    return perceptron(opset, node("LayerNormalization", "h s t", "r", axis=-1, epsilon=1e-3))


PECULIAR = {
    "unsorted": unsorted,
    "output without shape": output_without_shape,
    "output without type": output_without_type,
    "graph without name": graph_without_name,
    "named domain": named_domain,
    "layer norm at 11": lambda: layer_norm(11),
    "layer norm at 15": lambda: layer_norm(15),
}


@pytest.mark.parametrize("kind", PECULIAR)
@pytest.mark.parametrize("as_file", [False, True])
def test_what_onnxruntime_runs_is_opened_and_quantized(kind, as_file, tmp_path):
    proto = PECULIAR[kind]()
    opened = opened_alike(proto, {"x": normal(5, 8)})
    assert ops(opened)[::2] == ["Linear", "Linear"]
    source = proto
    if as_file:
        source = tmp_path / "model.onnx"
        onnx.save(proto, source)
    assert isobit.quantize(source, normal(32, 8), target="onnxruntime-cpu").report.counts["weight"] == 2


def test_norms_of_old_opsets_are_norms():
    assert ops(opened_alike(layer_norm(12), {"x": normal(5, 8)})) == ["Linear", "LayerNormalization", "Linear"]


def missing_input():
    return perceptron(middle=node("Add", "h nothing", "r"))


def unknown_op():
    return perceptron(middle=node("Reluu", "h", "r"))


def wrong_attribute():
    return perceptron(middle=node("Relu", "h", "r", slope="high"))


@pytest.mark.parametrize("build", [missing_input, unknown_op, wrong_attribute])
def test_what_neither_takes_is_refused_with_both_reasons(build):
    proto = build()
    with pytest.raises(ModelError) as error:
        read_model(proto)
    text = str(error.value)
    assert all(part in text for part in ("not a valid ONNX model", "onnxruntime says", "Export it again"))
    with pytest.raises(onnx.checker.ValidationError) as said:
        onnx.checker.check_model(proto)
    assert " ".join(str(said.value).split())[:200] in text, "the whole message"
