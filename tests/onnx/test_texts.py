"""Texts in front of a network, lookups of ai.onnx.ml, maps behind it, and types of which nobody makes arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import constant, model, node, runtime, value

import isobit
from isobit.errors import DataError, ModelError

RNG = np.random.default_rng(6)
ML = "ai.onnx.ml"
WORDS = np.array(["red", "green", "blue", "grey"])


def head(source: str, width: int) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Two linear layers behind `source`."""
    nodes = [
        node("Gemm", f"{source} w1 b1", "hidden"),
        node("Relu", "hidden", "active"),
        node("Gemm", "active w2 b2", "y"),
    ]
    shapes = {"w1": (width, 12), "b1": (12,), "w2": (12, 3), "b2": (3,)}
    return nodes, {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def network(front: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], source: str, width: int, **constants: Any):
    nodes, weights = head(source, width)
    proto = model([*front, *nodes], inputs, [value("y", None)], {**weights, **constants})
    for entry in proto.opset_import:
        entry.version = 2 if entry.domain == ML else entry.version
    return proto


def encoded(values: str, **attributes: Any) -> onnx.NodeProto:
    return node("LabelEncoder", "s", values, ML, keys_strings=[str(w) for w in WORDS[:3]], **attributes)


def embedding():
    """A vocabulary, then a table of vectors."""
    front = [
        encoded("ids", values_int64s=[0, 1, 2], default_int64=3),
        node("Gather", "table ids", "vectors"),
        node("Flatten", "vectors", "flat"),
    ]
    table = RNG.standard_normal((4, 5)).astype(np.float32)
    return network(front, [value("s", ["n", 2], TensorProto.STRING)], "flat", 10, table=table)


def numbers_of_words():
    """Words as numbers beside measurements, as for tables."""
    front = [
        encoded("code", values_floats=[0.5, 1.0, 1.5], default_float=-1.0),
        node("Scaler", "x", "scaled", ML, offset=[0.5] * 4, scale=[2.0] * 4),
        node("Concat", "scaled code", "both", axis=1),
    ]
    return network(front, [value("x", ["n", 4]), value("s", ["n", 2], TensorProto.STRING)], "both", 6)


def one_hot():
    front = [
        node("OneHotEncoder", "s", "codes", ML, cats_strings=[str(w) for w in WORDS], zeros=1),
        node("Flatten", "codes", "flat"),
    ]
    return network(front, [value("s", ["n", 2], TensorProto.STRING)], "flat", 8)


def counted_words():
    vectorizer = node(
        "TfIdfVectorizer", "s", "counts", mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0,
        ngram_counts=[0], ngram_indexes=[0, 1, 2, 3], pool_strings=[str(w) for w in WORDS],
    )  # fmt: skip
    return network([vectorizer], [value("s", ["n", 2], TensorProto.STRING)], "counts", 4)


NETWORKS = {f.__name__: f for f in (embedding, numbers_of_words, one_hot, counted_words)}
AS_GIVEN = {
    "array": np.asarray,
    "objects": lambda words: words.astype(object),
    "bytes": lambda words: np.char.encode(words, "utf-8"),
    "lists": lambda words: words.tolist(),
}


@pytest.mark.parametrize("given", AS_GIVEN)
@pytest.mark.parametrize("name", NETWORKS)
def test_texts_stay_outside_and_what_follows_is_quantized(name, given, tmp_path):
    proto = NETWORKS[name]()
    words = RNG.choice(WORDS, (8, 2))
    batch = {"x": RNG.standard_normal((8, 4)).astype(np.float32), "s": AS_GIVEN[given](words)}
    names = [entry.name for entry in proto.graph.input]
    batch = {key: batch[key] for key in names}
    sim = isobit.quantize(proto, [batch, batch], method="minmax", progress=False)
    assert sim.report.coverage.weights > 0.95
    assert sim.report.coverage.compute == 1
    expected = runtime(proto, {**batch, "s": words.astype(object)})
    np.testing.assert_allclose(sim.run_float(batch)["y"], expected["y"], rtol=1e-5, atol=1e-5)
    result = sim.export(tmp_path)
    assert [check.equal for check in result.checks if check.session != "default session"] == [1, 1]


def test_a_list_of_texts_is_one_array():
    front = [node("OneHotEncoder", "s", "codes", ML, cats_strings=[str(w) for w in WORDS], zeros=1)]
    proto = network(front, [value("s", ["n"], TensorProto.STRING)], "codes", 4)
    sim = isobit.quantize(proto, [["red", "blue"], ["grey", "green"]], method="minmax", progress=False)
    assert sim.report.coverage.compute == 1


def test_numbers_for_texts_are_refused():
    with pytest.raises(DataError, match="the model takes texts"):
        isobit.quantize(embedding(), [np.zeros((4, 2), np.float32)], progress=False)


def classifier(opset: int) -> onnx.ModelProto:
    """As scikit-learn's converter ends a network: the name of the class, and a map of probabilities."""
    nodes, weights = head("x", 4)
    nodes += [
        node("Softmax", "y", "p", axis=1),
        node("ArgMax", "p", "best", axis=1, keepdims=0),
        node("LabelEncoder", "best", "label", ML, keys_int64s=[0, 1, 2], values_strings=[str(w) for w in WORDS[:3]]),
        node("ZipMap", "p", "probabilities", ML, classlabels_strings=[str(w) for w in WORDS[:3]]),
    ]
    numbers = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, numbers))
    outputs = [
        value("label", ["n"], TensorProto.STRING),
        helper.make_value_info("probabilities", maps),
        value("p", None),
    ]
    proto = model(nodes, [value("x", ["n", 4])], outputs, weights, opset)
    for entry in proto.opset_import:
        entry.version = 2 if entry.domain == ML else entry.version
    return proto


def test_what_only_a_map_reads_is_kept():
    """As scikit-learn's converter writes it, in opset 9: onnx drops what nobody reads as it raises that."""
    nodes, weights = head("x", 4)
    nodes += [
        node("ArgMax", "y", "label", axis=1, keepdims=0),
        node("Normalizer", "y", "probabilities", ML, norm="L1"),
        node("ZipMap", "probabilities", "map", ML, classlabels_int64s=[0, 1, 2]),
    ]
    numbers = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, numbers))
    outputs = [value("label", ["n"], TensorProto.INT64), helper.make_value_info("map", maps)]
    proto = model(nodes, [value("x", ["n", 4])], outputs, weights, 9)
    for entry in proto.opset_import:
        entry.version = 1 if entry.domain == ML else entry.version
    data = RNG.standard_normal((8, 4)).astype(np.float32)
    sim = isobit.quantize(proto, [data], method="minmax", progress=False)
    expected, found = runtime(proto, {"x": data}), sim.run_float(data)
    for one, other in zip(found["map"], expected["map"], strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-4)


@pytest.mark.parametrize("opset", [13, 21])
def test_maps_of_a_classifier_are_handed_on(opset, tmp_path):
    proto = classifier(opset)
    onnx.save(proto, tmp_path / "given.onnx")
    data = RNG.standard_normal((8, 4)).astype(np.float32)
    sim = isobit.quantize(str(tmp_path / "given.onnx"), [data, data], method="minmax", progress=False)
    assert sim.report.coverage.compute == 1
    expected = runtime(proto, {"x": data})
    found = sim.run_float(data)
    assert list(found["label"]) == list(expected["label"])
    for one, other in zip(found["probabilities"], expected["probabilities"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    result = sim.export(tmp_path / "out")
    written = onnx.load(result["model"])
    assert written.graph.output[1].type == proto.graph.output[1].type
    assert runtime(written, {"x": data})["probabilities"][0].keys() == expected["probabilities"][0].keys()


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4])
def test_types_without_arrays_are_refused_with_what_to_do(kind):
    nodes, weights = head("f", 4)
    proto = model([node("Cast", "x", "f", to=TensorProto.FLOAT), *nodes], [value("x", ["n", 4], kind)],
                  [value("y", None)], {n: constant(n, w) for n, w in weights.items()}, opset=21)  # fmt: skip
    with pytest.raises(ModelError, match=r"input 'x' takes \w+, for which there are no arrays.*float32 and a Cast"):
        isobit.quantize(proto, [np.zeros((2, 4), np.float32)], progress=False)
