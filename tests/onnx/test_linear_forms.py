"""Every form of Gemm, MatMul and Einsum with a constant operand is one linear layer, and computes what it did."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import model, node, opened_alike, ops, value

import isobit

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


GEMMS = {
    "alpha": ({"alpha": 0.25}, (6, 5), (5,)),
    "beta": ({"beta": -2.0}, (6, 5), (5,)),
    "alpha without bias": ({"alpha": 3.0, "transB": 1}, (5, 6), None),
    "everything": ({"alpha": 0.5, "beta": 2.0, "transB": 1}, (5, 6), (1, 5)),
    "number": ({"transB": 1}, (5, 6), ()),
    "one number": ({"beta": 0.5}, (6, 5), (1,)),
    "one by one": ({}, (6, 5), (1, 1)),
    "beta zero": ({"beta": 0.0}, (6, 5), (5,)),
}


@pytest.mark.parametrize("form", GEMMS)
def test_gemm_with_factors_and_small_biases(form):
    attributes, shape, bias = GEMMS[form]
    constants = {"w": normal(*shape), **({"b": normal(*bias)} if bias is not None else {})}
    nodes = [node("Gemm", "x w b" if bias is not None else "x w", "y", **attributes)]
    proto = model(nodes, [value("x", ["n", 6])], [value("y", ["n", 5])], constants)
    opened = opened_alike(proto, {"x": normal(7, 6)})
    assert ops(opened) == ["Linear"]
    assert opened.graph.node("n_y").inputs[1:] == (("w", "b") if bias is not None else ("w",))
    assert opened.weight("w").shape == (5, 6)


def test_a_transposed_input_is_transposed_before_the_layer():
    proto = model(
        [node("Gemm", "x w b", "y", transA=1)], [value("x", [6, "n"])], [value("y", ["n", 5])],
        {"w": normal(6, 5), "b": normal(5)},
    )  # fmt: skip
    assert ops(opened_alike(proto, {"x": normal(6, 7)})) == ["Transpose", "Linear"]


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("bias", [(5, 1), (), (5, 7), (7,)])
def test_gemm_with_the_constant_on_the_left(trans_a, trans_b, bias):
    shape = (6, 5) if trans_a else (5, 6)
    source = (7, 6) if trans_b else (6, 7)
    nodes = [node("Gemm", "w x b", "y", transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)]
    constants = {"w": normal(*shape), "b": normal(*bias)}
    proto = model(nodes, [value("x", list(source))], [value("y", [5, 7])], constants)
    opened = opened_alike(proto, {"x": normal(*source)})
    assert ops(opened).count("Linear") == 1
    assert not {"Gemm", "MatMul"} & set(ops(opened))


def test_a_computed_summand_is_added_behind_the_layer():
    nodes = [node("Gemm", "x w z", "y", beta=0.5, alpha=2.0)]
    proto = model(nodes, [value("x", ["n", 6]), value("z", ["n", 5])], [value("y", ["n", 5])], {"w": normal(6, 5)})
    assert ops(opened_alike(proto, {"x": normal(4, 6), "z": normal(4, 5)})) == ["Linear", "Mul", "Add"]


def test_gemm_of_two_inputs_is_a_product():
    nodes = [node("Gemm", "x z", "y", transB=1, alpha=0.5)]
    proto = model(nodes, [value("x", ["n", 6]), value("z", [5, 6])], [value("y", ["n", 5])], {})
    assert ops(opened_alike(proto, {"x": normal(4, 6), "z": normal(5, 6)})) == ["Transpose", "MatMul"]


MATMULS = {
    "left": ("w x", (5, 6), (2, 6, 3), (2, 5, 3)),
    "left of a matrix": ("w x", (5, 6), (6, 3), (5, 3)),
    "left with axes in front": ("w x", (1, 5, 6), (2, 6, 3), (2, 5, 3)),
    "right with axes in front": ("x w", (1, 6, 5), (2, 3, 6), (2, 3, 5)),
    "right vector": ("x w", (6,), (2, 3, 6), (2, 3)),
    "left vector": ("w x", (6,), (2, 6, 3), (2, 3)),
}


@pytest.mark.parametrize("form", MATMULS)
def test_matmul_with_the_constant_anywhere(form):
    inputs, shape, source, result = MATMULS[form]
    proto = model([node("MatMul", inputs, "y")], [value("x", source)], [value("y", result)], {"w": normal(*shape)})
    opened = opened_alike(proto, {"x": normal(*source)})
    assert ops(opened).count("Linear") == 1
    assert opened.weight("w").ndim == 2


@pytest.mark.parametrize("bias", [(), (1,), (1, 1, 5), (1, 5)])
@pytest.mark.parametrize("bias_first", [False, True])
def test_the_bias_of_a_matmul_in_every_shape(bias, bias_first):
    nodes = [node("MatMul", "x w", "h"), node("Add", "b h" if bias_first else "h b", "y")]
    constants = {"w": normal(6, 5), "b": normal(*bias)}
    proto = model(nodes, [value("x", ["n", 3, 6])], [value("y", ["n", 3, 5])], constants)
    opened = opened_alike(proto, {"x": normal(2, 3, 6)})
    assert ops(opened) == ["Linear"]
    assert opened.graph.nodes[0].inputs[1:] == ("w", "b")


def test_a_weight_on_both_sides_stays_one_weight():
    nodes = [node("MatMul", "x w", "h"), node("Transpose", "h", "t", perm=[0, 2, 1]), node("MatMul", "w t", "y")]
    proto = model(nodes, [value("x", ["n", 3, 6])], [value("y", ["n", 6, 3])], {"w": normal(6, 6)})
    opened = opened_alike(proto, {"x": normal(2, 3, 6)})
    assert ops(opened).count("Linear") == 2
    assert {info.source for info in opened.graph.weights.values() if len(info.shape) == 2} == {"w"}


EINSUMS = {
    "linear": ("bti,io->bto", (2, 3, 6), (6, 5), "Linear"),
    "out first": ("bti,oi->bto", (2, 3, 6), (5, 6), "Linear"),
    "split heads": ("bti,ihd->bhtd", (2, 3, 6), (6, 2, 4), "Linear"),
    "join heads": ("bthd,hdo->bto", (2, 3, 2, 4), (2, 4, 5), "Linear"),
    "a matrix a head": ("bhtd,hde->bhte", (2, 4, 3, 6), (4, 6, 5), "MatMul"),
    "ellipsis": ("...i,io->...o", (2, 3, 6), (6, 5), "Linear"),
    "one output": ("bti,i->bt", (2, 3, 6), (6,), "Linear"),
    "channels": ("bchw,oc->bohw", (2, 6, 3, 4), (5, 6), "Linear"),
}


@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize("form", EINSUMS)
def test_einsum_with_a_constant(form, constant_first):
    equation, source, shape, op = EINSUMS[form]
    if constant_first:
        terms, result = equation.split("->")
        equation = ",".join(terms.split(",")[::-1]) + "->" + result
    nodes = [node("Einsum", "w x" if constant_first else "x w", "y", equation=equation)]
    proto = model(nodes, [value("x", ["n", *source[1:]])], [value("y", None)], {"w": normal(*shape)})
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    rank = len(equation.split("->")[1].replace("...", "ab"))
    proto.graph.output[0].CopyFrom(value("y", [None] * rank))
    opened = opened_alike(proto, {"x": normal(*source)})
    assert ops(opened).count(op) == 1
    assert "Einsum" not in ops(opened)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [("bhid,bhjd->bhij", (2, 4, 3, 6), (2, 4, 5, 6)), ("bhij,bhjd->bihd", (2, 4, 3, 5), (2, 4, 5, 6))],
)
def test_einsum_of_two_tensors_is_a_product(equation, left, right):
    nodes = [node("Einsum", "x z", "y", equation=equation)]
    proto = model(nodes, [value("x", left), value("z", right)], [value("y", [None] * 4)], {})
    assert ops(opened_alike(proto, {"x": normal(*left), "z": normal(*right)})).count("MatMul") == 1


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bti,io,op->btp", [(6, 5), (5, 4)]),
        ("...i,io,op->...p", [(6, 5), (5, 4)]),
        ("bti,op,io->btp", [(5, 4), (6, 5)]),
        ("bti,ar,ir->bta", [(4, 2), (6, 2)]),
        ("bti,ihd,hde->bthe", [(6, 2, 3), (2, 3, 4)]),
    ],
)
def test_an_einsum_of_several_constants_is_a_layer_for_each(equation, shapes):
    constants = {f"w{index}": normal(*shape) for index, shape in enumerate(shapes)}
    rank = len(equation.split("->")[1].replace("...", "ab"))
    for names in (["x", *constants], [*constants, "x"]):
        terms = dict(zip(["x", *constants], equation.split("->")[0].split(","), strict=True))
        turned = ",".join(terms[name] for name in names) + "->" + equation.split("->")[1]
        nodes = [node("Einsum", " ".join(names), "y", equation=turned)]
        proto = model(nodes, [value("x", ["n", 3, 6])], [value("y", [None] * rank)], constants)
        opened = opened_alike(proto, {"x": normal(2, 3, 6)})
        assert sum(op in ("Linear", "MatMul") for op in ops(opened)) == 2
        assert "Einsum" not in ops(opened)


@pytest.mark.parametrize("equation", ["ij,ij->ij", "ii,ij->j", "bi,bi->b", "ij,jk->i"])
def test_an_einsum_that_is_no_product_stays(equation):
    nodes = [node("Einsum", "x w", "y", equation=equation)]
    rank = len(equation.split("->")[1])
    proto = model(nodes, [value("x", [4, 4])], [value("y", [None] * rank)], {"w": normal(4, 4)})
    assert ops(opened_alike(proto, {"x": normal(4, 4)})) == ["Einsum"]


@pytest.mark.parametrize("form", ["alpha", "number", "left"])
def test_its_weight_is_quantized_on_every_target(form):
    if form == "left":
        nodes = [node("Gemm", "w x", "y", alpha=0.5)]
        proto = model(nodes, [value("x", [16, 8])], [value("y", [12, 8])], {"w": normal(12, 16)})
        data = [{"x": normal(16, 8)} for _ in range(3)]
    else:
        attributes, bias = ({"alpha": 0.5}, (12,)) if form == "alpha" else ({}, ())
        constants = {"w": normal(16, 12), "b": normal(*bias)}
        nodes = [node("Gemm", "x w b", "y", **attributes)]
        proto = model(nodes, [value("x", ["n", 16])], [value("y", ["n", 12])], constants)
        data = [{"x": normal(8, 16)} for _ in range(3)]
    for target in ("default", "onnxruntime-cpu"):
        assert isobit.quantize(proto, data, target=target).report.counts["weight"] == 1
