"""What an optimiser has fused is read into plain operations that compute the same in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from small_models import MICROSOFT, model, node, opened_alike, ops, value

import isobit
from isobit_onnx.backend import OnnxBackend

RNG = np.random.default_rng(9)


def normal(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def fused(op, inputs, outputs, **attributes):
    return node(op, inputs, outputs, MICROSOFT, **attributes)


def is_plain(opened):
    return not any("::" in op for op in ops(opened)) and not any(MICROSOFT in note for note in opened.graph.notes)


ACTIVATIONS = [
    ("Relu", {}),
    ("Tanh", {}),
    ("Sigmoid", {}),
    ("LeakyRelu", {"activation_params": [0.2]}),
    ("Clip", {"activation_params": [-0.5, 0.7]}),
    ("HardSigmoid", {"activation_params": [0.3, 0.4]}),
]


@pytest.mark.parametrize(("activation", "settings"), ACTIVATIONS)
@pytest.mark.parametrize("has_sum", [False, True])
def test_convolution_with_its_activation(activation, settings, has_sum):
    nodes = [
        fused("FusedConv", "x w b z" if has_sum else "x w b", "y", activation=activation, pads=[1] * 4, **settings)
    ]
    inputs = [value("x", ["n", 3, 6, 6])] + ([value("z", ["n", 4, 6, 6])] if has_sum else [])
    proto = model(nodes, inputs, [value("y", ["n", 4, 6, 6])], {"w": normal(4, 3, 3, 3), "b": normal(4)})
    feeds = {"x": normal(2, 3, 6, 6), **({"z": normal(2, 4, 6, 6)} if has_sum else {})}
    opened = opened_alike(proto, feeds)
    assert ops(opened) == ["Conv", *(["Add"] if has_sum else []), activation]


@pytest.mark.parametrize(("activation", "settings"), [("Relu", {}), ("LeakyRelu", {"activation_alpha": 0.2})])
def test_gemm_with_its_activation(activation, settings):
    nodes = [fused("FusedGemm", "x w b", "y", activation=activation, transB=1, alpha=0.5, **settings)]
    proto = model(nodes, [value("x", ["n", 6])], [value("y", ["n", 5])], {"w": normal(5, 6), "b": normal(5)})
    assert ops(opened_alike(proto, {"x": normal(3, 6)})) == ["Linear", activation]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("batch", [0, 1])
def test_matmul_with_factor_and_transposition(trans_a, trans_b, batch):
    def order(rows, columns, swapped):
        rows, columns = (columns, rows) if swapped else (rows, columns)
        return [rows, 2, columns] if batch else [2, rows, columns]

    left, right = order(3, 6, trans_a), order(6, 5, trans_b)
    settings = {"transA": trans_a, "transB": trans_b, "transBatchA": batch, "transBatchB": batch, "alpha": 0.25}
    nodes = [fused("FusedMatMul", "x z", "y", **settings)]
    proto = model(nodes, [value("x", left), value("z", right)], [value("y", [None] * 3)], {})
    opened = opened_alike(proto, {"x": normal(*left), "z": normal(*right)})
    assert is_plain(opened)
    assert ops(opened).count("MatMul") == 1


def test_matmul_of_a_weight_is_a_layer():
    nodes = [fused("FusedMatMul", "x w", "y", transB=1)]
    proto = model(nodes, [value("x", ["n", 3, 6])], [value("y", ["n", 3, 5])], {"w": normal(5, 6)})
    assert ops(opened_alike(proto, {"x": normal(2, 3, 6)})) == ["Linear"]


GELUS = {
    "Gelu": ("x", {}),
    "BiasGelu": ("x b", {}),
    "FastGelu": ("x", {}),
    "FastGelu with bias": ("x b", {}),
    "QuickGelu": ("x", {"alpha": 1.702}),
    "QuickGelu of Swish": ("x", {"alpha": 1.0}),
}


@pytest.mark.parametrize("form", GELUS)
def test_gelus(form):
    inputs, settings = GELUS[form]
    nodes = [fused(form.split()[0], inputs, "y", **settings)]
    proto = model(
        nodes, [value("x", ["n", 3, 8])], [value("y", ["n", 3, 8])], {"b": normal(8)} if "b" in inputs else {}
    )
    assert is_plain(opened_alike(proto, {"x": normal(2, 3, 8)}))


@pytest.mark.parametrize("inputs", ["x s g", "x s g h", "x s g h b", "x s g - b"])
@pytest.mark.parametrize("outputs", [1, 4])
def test_layer_norm_of_a_sum(inputs, outputs):
    if outputs == 4:
        nodes = [fused("SkipLayerNormalization", inputs, "y m d t", epsilon=1e-3)]
        nodes[0].output[1] = nodes[0].output[2] = ""
    else:
        nodes = [fused("SkipLayerNormalization", inputs, "y", epsilon=1e-3)]
    constants = {name: normal(8) for name in "ghb" if name in inputs.split()}
    shape = ["n", 3, 8]
    results = [value("y", shape), *([value("t", shape)] if outputs == 4 else [])]
    proto = model(nodes, [value("x", shape), value("s", shape)], results, constants)
    opened = opened_alike(proto, {"x": normal(2, 3, 8), "s": normal(2, 3, 8)})
    assert ops(opened)[-1] == "LayerNormalization"


@pytest.mark.parametrize("inputs", ["x s g", "x s g b"])
def test_root_mean_square_norm_of_a_sum(inputs):
    nodes = [fused("SkipSimplifiedLayerNormalization", inputs, "y", epsilon=1e-3)]
    constants = {name: normal(8) for name in "gb" if name in inputs.split()}
    shape = ["n", 3, 8]
    proto = model(nodes, [value("x", shape), value("s", shape)], [value("y", shape)], constants)
    assert ops(opened_alike(proto, {"x": normal(2, 3, 8), "s": normal(2, 3, 8)}))[-1] == "RMSNormalization"


@pytest.mark.parametrize("axis", [-1, 2])
def test_root_mean_square_norm_in_the_domain_of_onnx(axis):
    nodes = [node("SimplifiedLayerNormalization", "x g", "y", axis=axis, epsilon=1e-3)]
    proto = model(nodes, [value("x", ["n", 3, 8])], [value("y", ["n", 3, 8])], {"g": normal(8)})
    assert ops(opened_alike(proto, {"x": normal(2, 3, 8)})) == ["RMSNormalization"]


def test_bias_in_front_of_a_softmax():
    """onnxruntime has no kernel for the CPU: the reference is written out."""
    nodes = [fused("BiasSoftmax", "x b", "y", axis=-1, is_inner_broadcast=1)]
    proto = model(nodes, [value("x", ["n", 3, 8])], [value("y", ["n", 3, 8])], {"b": normal(8)})
    opened = OnnxBackend().open(proto)
    x = normal(2, 3, 8)
    raised = np.exp(x + opened.weight("b"))
    np.testing.assert_allclose(opened.run({"x": x})["y"], raised / raised.sum(-1, keepdims=True), rtol=1e-5)


MASKS = {
    "none": (None, None),
    "lengths": (["n"], [5, 3]),
    "of keys": (["n", 5], [[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]]),
    "of pairs": (["n", 5, 5], np.tril(np.ones((2, 5, 5))).tolist()),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("settings", [{}, {"unidirectional": 1}, {"scale": 0.3}, {"qkv_hidden_sizes": [16, 16, 24]}])
def test_attention(mask, settings):
    shape, numbers = MASKS[mask]
    wide = 56 if "qkv_hidden_sizes" in settings else 48
    nodes = [fused("Attention", "x w b" + (" m" if shape else ""), "y", num_heads=4, **settings)]
    inputs = [value("x", ["n", 5, 12]), *([value("m", shape, TensorProto.INT32)] if shape else [])]
    constants = {"w": normal(12, wide, scale=0.3), "b": normal(wide)}
    proto = model(nodes, inputs, [value("y", ["n", 5, wide - 32])], constants)
    feeds = {"x": normal(2, 5, 12), **({"m": np.array(numbers, np.int32)} if shape else {})}
    opened = opened_alike(proto, feeds)
    assert is_plain(opened)
    assert ops(opened).count("Linear") == 3
    assert ops(opened).count("MatMul") == 2
    assert {"w.q", "w.k", "w.v", "b.q"} <= set(opened.graph.weights)


def test_attention_with_a_summand():
    nodes = [fused("Attention", "x w b - - r", "y", num_heads=4)]
    inputs = [value("x", ["n", 5, 12]), value("r", ["n", 4, 5, 5])]
    proto = model(nodes, inputs, [value("y", ["n", 5, 16])], {"w": normal(12, 48, scale=0.3), "b": normal(48)})
    assert is_plain(opened_alike(proto, {"x": normal(2, 5, 12), "r": normal(2, 4, 5, 5)}))


def test_attention_with_a_cache():
    nodes = [fused("Attention", "x w b - past", "y present", num_heads=4, unidirectional=1)]
    inputs = [value("x", ["n", 5, 12]), value("past", [2, "n", 4, "p", 4])]
    outputs = [value("y", ["n", 5, 16]), value("present", [2, "n", 4, "t", 4])]
    proto = model(nodes, inputs, outputs, {"w": normal(12, 48, scale=0.3), "b": normal(48)})
    feeds = {"x": normal(2, 5, 12), "past": normal(2, 2, 4, 3, 4)}
    assert is_plain(opened_alike(proto, feeds))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("mask", ["none", "of keys"])
def test_attention_of_three_inputs(has_bias, mask):
    inputs = f"q k v {'b' if has_bias else '-'}" + (" m" if mask != "none" else "")
    nodes = [fused("MultiHeadAttention", inputs, "y", num_heads=4)]
    entries = [value("q", ["n", 3, 16]), value("k", ["n", 5, 16]), value("v", ["n", 5, 24])]
    feeds = {"q": normal(2, 3, 16), "k": normal(2, 5, 16), "v": normal(2, 5, 24)}
    if mask != "none":
        entries.append(value("m", ["n", 5], TensorProto.INT32))
        feeds["m"] = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    proto = model(nodes, entries, [value("y", ["n", 3, 24])], {"b": normal(56)} if has_bias else {})
    assert is_plain(opened_alike(proto, feeds))


def test_embeddings_with_their_norm():
    nodes = [fused("EmbedLayerNormalization", "i s w p k g h m", "y lengths", epsilon=1e-3)]
    entries = [value(name, ["n", 5], TensorProto.INT32) for name in "ism"]
    outputs = [value("y", ["n", 5, 8]), value("lengths", ["n"], TensorProto.INT32)]
    constants = {"w": normal(20, 8), "p": normal(9, 8), "k": normal(2, 8), "g": normal(8), "h": normal(8)}
    proto = model(nodes, entries, outputs, constants)
    feeds = {name: RNG.integers(0, high, (2, 5)).astype(np.int32) for name, high in (("i", 20), ("s", 2))}
    feeds["m"] = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.int32)
    opened = opened_alike(proto, feeds)
    assert is_plain(opened)
    assert "LayerNormalization" in ops(opened)


@pytest.mark.parametrize("has_segments", [True, False])
def test_embeddings_without_a_mask_have_texts_of_no_length(has_segments):
    nodes = [fused("EmbedLayerNormalization", "i s w p k g h" if has_segments else "i - w p - g h", "y lengths")]
    entries = [value(name, ["n", 5], TensorProto.INT32) for name in ("is" if has_segments else "i")]
    outputs = [value("y", ["n", 5, 8]), value("lengths", ["n"], TensorProto.INT32)]
    constants = {"w": normal(20, 8), "p": normal(9, 8), "k": normal(2, 8), "g": normal(8), "h": normal(8)}
    feeds = {e.name: RNG.integers(0, 2, (2, 5)).astype(np.int32) for e in entries}
    opened = opened_alike(model(nodes, entries, outputs, constants), feeds)
    assert is_plain(opened)


def test_what_has_no_rule_is_said():
    nodes = [fused("Inverse", "x", "h"), node("MatMul", "h w", "y")]
    proto = model(nodes, [value("x", ["n", 4, 4])], [value("y", ["n", 4, 3])], {"w": normal(4, 3)})
    x = normal(2, 4, 4) + 5 * np.eye(4, dtype=np.float32)
    opened = opened_alike(proto, {"x": x}, atol=1e-3)
    (note,) = opened.graph.notes
    assert "com.microsoft::Inverse" in note
    assert "without graph optimisation" in note


# --- files that onnxruntime itself has optimised --------------------------------------------------------------------


def plain_network():
    """Convolutions with activations, and a product with its factor."""
    nodes = [
        node("Conv", "x w b", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        node("Conv", "r v", "d", pads=[1] * 4),
        node("Add", "d c", "e"),
        node("LeakyRelu", "e", "l", alpha=0.1),
        node("GlobalAveragePool", "l", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f u t", "g", transB=1),
        node("Tanh", "g", "y"),
    ]
    constants = {"w": normal(8, 3, 3, 3), "b": normal(8), "v": normal(8, 8, 3, 3, scale=0.2), "u": normal(5, 8)}
    constants["t"] = normal(5)
    return model(nodes, [value("x", ["n", 3, 8, 8])], [value("y", ["n", 5])], constants), normal(2, 3, 8, 8)


def plain_transformer():
    nodes = [
        node("MatMul", "x q", "a"),
        node("MatMul", "x k", "b"),
        node("Transpose", "b", "bt", perm=[0, 2, 1]),
        node("MatMul", "a bt", "s"),
        node("Mul", "s scale", "ss"),
        node("Softmax", "ss", "p", axis=-1),
        node("MatMul", "p x", "o"),
        node("Add", "o x", "n"),
        node("LayerNormalization", "n g h", "m", axis=-1),
        node("MatMul", "m u", "f"),
        node("Add", "f t", "ft"),
        node("Div", "ft two", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "e1"),
        node("Mul", "ft e1", "fe"),
        node("Mul", "fe half", "y"),
    ]
    constants = {"q": normal(16, 16), "k": normal(16, 16), "g": normal(16), "h": normal(16), "u": normal(16, 16)}
    constants |= {"t": normal(16), "scale": np.float32(0.25), "two": np.float32(2**0.5), "one": np.float32(1)}
    constants["half"] = np.float32(0.5)
    return model(nodes, [value("x", ["n", 6, 16])], [value("y", ["n", 6, 16])], constants), normal(2, 6, 16)


@pytest.mark.parametrize("build", [plain_network, plain_transformer])
def test_a_file_that_was_saved_at_the_extended_level(build, tmp_path):
    proto, x = build()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "fused.onnx")
    assert any(n.domain == MICROSOFT for n in optimised.graph.node)
    opened = opened_alike(optimised, {"x": x}, atol=1e-4)
    assert is_plain(opened)
    weights = isobit.quantize(proto, x, target="onnxruntime-cpu-transformer").report.counts["weight"]
    assert isobit.quantize(optimised, x, target="onnxruntime-cpu-transformer").report.counts["weight"] == weights
