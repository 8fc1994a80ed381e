"""Every spelling of a norm is one node, and that node, written anew, computes what the file does in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from small_models import constant, model, node, ops, runtime, value

from isobit_onnx.backend import OnnxBackend
from isobit_onnx.model import OnnxModel
from isobit_onnx.write.write_onnx import write_onnx

RNG = np.random.default_rng(11)


class Steps:
    """Nodes one after another, each named by its result."""

    def __init__(self, opset: int = 17) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, object] = {}

    def __call__(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(op, " ".join(inputs), name, **attributes))
        return name

    def constant(self, array: object, dtype: object = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = constant(name, array, dtype)
        return name

    def vector(self, *shape: int) -> str:
        return self.constant(RNG.uniform(0.5, 1.5, shape))

    def reduce(self, op: str, x: str, axes: tuple[int, ...], keepdims: int = 1) -> str:
        """Axes as an attribute, or from opset 18 on as an input."""
        if self.opset < 18:
            return self(op, x, axes=list(axes), keepdims=keepdims)
        return self(op, x, self.constant(axes, np.int64), keepdims=keepdims)

    def model(self, result: str, shape: tuple[int, ...]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "y"
        assert result == f"t{len(self.nodes) - 1}"
        sizes = ["n", *shape[1:]]
        return model(self.nodes, [value("x", sizes)], [value("y", sizes)], self.constants, self.opset)


def written_alike(proto: onnx.ModelProto, shape: tuple[int, ...]) -> OnnxModel:
    """The opened model, after its canonical graph was written as another file and run."""
    opened = OnnxBackend().open(proto)
    again, _ = write_onnx(opened.graph, opened.weight)
    x = (RNG.standard_normal(shape) * np.exp(RNG.normal(0, 0.5, (*shape[:2], *(1,) * (len(shape) - 2))))).astype("f4")
    np.testing.assert_allclose(runtime(again, {"x": x})["y"], runtime(proto, {"x": x})["y"], atol=1e-4, rtol=1e-3)
    return opened


def square(s: Steps, x: str, form: str) -> str:
    return s("Mul", x, x) if form == "Mul" else s("Pow", x, s.constant(2.0))


def over_root(s: Steps, x: str, spread: str, form: str) -> str:
    """``x`` over the root of `spread`, in the ways of several exporters."""
    if form == "Pow":
        return s("Mul", x, s("Pow", spread, s.constant(-0.5)))
    if form == "Pow of a half":
        return s("Div", x, s("Pow", spread, s.constant(0.5)))
    if form == "root of the inverse":
        return s("Mul", s("Sqrt", s("Reciprocal", spread)), x)
    root = s("Sqrt", spread)
    if form == "Reciprocal":
        return s("Mul", x, s("Reciprocal", root))
    if form == "one over":
        return s("Mul", x, s("Div", s.constant(1.0), root))
    return s("Div", x, root)


ROOTS = ["Div", "Reciprocal", "one over", "Pow", "Pow of a half", "root of the inverse"]
TOKENS, IMAGE = (3, 5, 8), (3, 6, 4, 5)


def standardised(s: Steps, x: str, axes: tuple[int, ...], squared: str = "Pow", root: str = "Div") -> str:
    centered = s("Sub", x, s.reduce("ReduceMean", x, axes))
    variance = s.reduce("ReduceMean", square(s, centered, squared), axes)
    return over_root(s, centered, s("Add", variance, s.constant(1e-3)), root)


@pytest.mark.parametrize("opset", [11, 17, 18, 21])
@pytest.mark.parametrize("squared", ["Pow", "Mul"])
@pytest.mark.parametrize("root", ROOTS)
def test_layer_norm_without_affine_part(opset, squared, root):
    s = Steps(opset)
    opened = written_alike(s.model(standardised(s, "x", (-1,), squared, root), TOKENS), TOKENS)
    assert ops(opened) == ["LayerNormalization"]
    assert opened.graph.nodes[0].inputs == ("x",)
    assert opened.graph.nodes[0].attributes["epsilon"] == pytest.approx(1e-3)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("shape", [(8,), (1, 1, 8)])
@pytest.mark.parametrize("affine", ["scale", "both"])
def test_layer_norm_with_scale_and_shift(root, shape, affine):
    s = Steps()
    result = s("Mul", standardised(s, "x", (2,), "Mul", root), s.vector(*shape))
    result = s("Add", result, s.vector(*shape)) if affine == "both" else result
    opened = written_alike(s.model(result, TOKENS), TOKENS)
    assert ops(opened) == ["LayerNormalization"]
    assert [opened.weight(name).shape for name in opened.graph.nodes[0].inputs[1:]] == [(8,)] * (1 + (affine == "both"))


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("affine", ["none", "scale", "both"])
def test_layer_norm_over_the_channels_of_an_image(opset, affine):
    s = Steps(opset)
    result = standardised(s, "x", (1,))
    result = s("Mul", result, s.vector(6, 1, 1)) if affine != "none" else result
    result = s("Add", s.vector(1, 6, 1, 1), result) if affine == "both" else result
    opened = written_alike(s.model(result, IMAGE), IMAGE)
    (norm,) = opened.graph.nodes
    assert (norm.op, norm.attributes["axes"]) == ("LayerNormalization", (-3,))
    assert opened.graph.tensors["x"].channel_axis == 1


@pytest.mark.parametrize(("axes", "shape"), [((-2, -1), (4, 5)), ((1, 2, 3), (6, 4, 5))])
def test_layer_norm_over_several_axes(axes, shape):
    s = Steps()
    result = s("Add", s("Mul", standardised(s, "x", axes), s.vector(*shape)), s.vector(*shape))
    opened = written_alike(s.model(result, IMAGE), IMAGE)
    assert ops(opened) == ["LayerNormalization"]
    assert opened.graph.nodes[0].attributes["axis"] == -len(axes)


def test_a_scale_of_other_axes_stays_beside_the_norm():
    s = Steps()
    result = s("Mul", standardised(s, "x", (-2, -1)), s.vector(5))
    assert ops(written_alike(s.model(result, IMAGE), IMAGE)) == ["LayerNormalization", "Mul"]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_tensorflow_moves_the_mean_behind_the_product(scale, shift):
    s = Steps()
    mean = s.reduce("ReduceMean", "x", (-1,))
    variance = s.reduce("ReduceMean", square(s, s("Sub", "x", mean), "Mul"), (-1,))
    inverse = s("Reciprocal", s("Sqrt", s("Add", variance, s.constant(1e-3))))
    inverse = s("Mul", inverse, s.vector(8)) if scale else inverse
    product, moved = s("Mul", "x", inverse), s("Mul", mean, inverse)
    result = s("Add", product, s("Sub", s.vector(8), moved)) if shift else s("Sub", product, moved)
    opened = written_alike(s.model(result, TOKENS), TOKENS)
    assert ops(opened) == ["LayerNormalization"] or (shift and not scale)


@pytest.mark.parametrize("bound", ["none", "Relu", "Max"])
def test_variance_as_a_difference_of_means(bound):
    s = Steps()
    mean = s.reduce("ReduceMean", "x", (-1,))
    of_square = s.reduce("ReduceMean", square(s, "x", "Mul"), (-1,))
    variance = s("Sub", of_square, square(s, mean, "Mul"))
    variance = s("Relu", variance) if bound == "Relu" else variance
    variance = s("Max", variance, s.constant(0.0)) if bound == "Max" else variance
    centered = s("Sub", "x", mean)
    inverse = s("Reciprocal", s("Sqrt", s("Add", variance, s.constant(1e-3))))
    result = s("Add", s("Mul", centered, s("Mul", inverse, s.vector(8))), s.vector(8))
    assert ops(written_alike(s.model(result, TOKENS), TOKENS)) == ["LayerNormalization"]


@pytest.mark.parametrize("mean", ["sum over terms", "sum times inverse", "axes put back"])
def test_means_in_other_words(mean):
    s = Steps(13)

    def average(x: str) -> str:
        if mean == "axes put back":
            return s("Unsqueeze", s.reduce("ReduceMean", x, (-1,), keepdims=0), s.constant([2], np.int64))
        total = s("ReduceSum", x, s.constant([-1], np.int64), keepdims=1)
        return s("Div", total, s.constant(8.0)) if mean == "sum over terms" else s("Mul", total, s.constant(0.125))

    centered = s("Sub", "x", average("x"))
    spread = s("Add", average(square(s, centered, "Mul")), s.constant(1e-3))
    assert ops(written_alike(s.model(over_root(s, centered, spread, "Div"), TOKENS), TOKENS)) == ["LayerNormalization"]


@pytest.mark.parametrize("opset", [14, 18])
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("affine", [True, False])
def test_root_mean_square_norm(opset, root, affine):
    s = Steps(opset)
    power = s.reduce("ReduceMean", square(s, "x", "Pow" if opset == 14 else "Mul"), (-1,))
    result = over_root(s, "x", s("Add", power, s.constant(1e-3)), root)
    result = s("Mul", s.vector(1, 8), result) if affine else result
    opened = written_alike(s.model(result, TOKENS), TOKENS)
    assert ops(opened) == ["RMSNormalization"]
    assert len(opened.graph.nodes[0].inputs) == 1 + affine


def test_root_mean_square_norm_over_channels():
    s = Steps()
    power = s.reduce("ReduceMean", square(s, "x", "Mul"), (1,))
    result = s("Mul", over_root(s, "x", s("Add", power, s.constant(1e-3)), "Div"), s.vector(6, 1, 1))
    opened = written_alike(s.model(result, IMAGE), IMAGE)
    assert ops(opened) == ["RMSNormalization"]
    assert opened.graph.nodes[0].attributes["axes"] == (-3,)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm(pooled, affine):
    s = Steps()

    def average(x: str) -> str:
        return s("GlobalAveragePool", x) if pooled else s.reduce("ReduceMean", x, (2, 3))

    centered = s("Sub", "x", average("x"))
    result = over_root(s, centered, s("Add", average(square(s, centered, "Mul")), s.constant(1e-3)), "Div")
    result = s("Add", s("Mul", result, s.vector(6, 1, 1)), s.vector(6, 1, 1)) if affine else result
    opened = written_alike(s.model(result, IMAGE), IMAGE)
    assert ops(opened) == ["InstanceNormalization" if affine else "LayerNormalization"]


def grouped_by_instance_norm(s: Steps) -> str:
    first = s("Reshape", "x", s.constant([0, 3, -1], np.int64))
    return s("InstanceNormalization", first, s.constant(np.ones(3)), s.constant(np.zeros(3)), epsilon=1e-3)


def grouped_in_steps(s: Steps) -> str:
    return standardised(s, s("Reshape", "x", s.constant([0, 3, 2, 4, 5], np.int64)), (2, 3, 4), "Mul", "Reciprocal")


def grouped_flat(s: Steps) -> str:
    return standardised(s, s("Reshape", "x", s.constant([0, 3, 40], np.int64)), (-1,))


@pytest.mark.parametrize("inner", [grouped_by_instance_norm, grouped_in_steps, grouped_flat])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(inner: Callable[[Steps], str], affine: bool):
    s = Steps()
    result = s("Reshape", inner(s), s.constant([-1, 6, 4, 5], np.int64))
    result = s("Add", s("Mul", result, s.vector(6, 1, 1)), s.vector(1, 6, 1, 1)) if affine else result
    opened = written_alike(s.model(result, IMAGE), IMAGE)
    (norm,) = opened.graph.nodes
    assert (norm.op, norm.attributes["num_groups"]) == ("GroupNormalization", 3)
    assert len(norm.inputs) == (3 if affine else 1)


def test_all_channels_as_one_group():
    s = Steps()
    result = s("Add", s("Mul", standardised(s, "x", (1, 2, 3)), s.vector(6, 1, 1)), s.vector(6, 1, 1))
    opened = written_alike(s.model(result, IMAGE), IMAGE)
    assert ops(opened) == ["GroupNormalization"]
    assert opened.graph.nodes[0].attributes["num_groups"] == 1


def other_functions() -> Iterator[tuple[str, Callable[[Steps], str]]]:
    def axes_differ(s: Steps) -> str:
        centered = s("Sub", "x", s.reduce("ReduceMean", "x", (1,)))
        return over_root(s, "x", s.reduce("ReduceMean", square(s, centered, "Mul"), (2,)), "Div")

    def epsilon_outside(s: Steps) -> str:
        centered = s("Sub", "x", s.reduce("ReduceMean", "x", (2,)))
        root = s("Sqrt", s.reduce("ReduceMean", square(s, centered, "Mul"), (2,)))
        return s("Div", centered, s("Add", root, s.constant(1e-3)))

    def of_another(s: Steps) -> str:
        power = s.reduce("ReduceMean", square(s, s("Relu", "x"), "Mul"), (2,))
        return s("Div", "x", s("Sqrt", s("Add", power, s.constant(1.0))))

    def twice_a_power(s: Steps) -> str:
        power = s.reduce("ReduceMean", s("Pow", s.constant(2.0), "x"), (2,))
        return s("Div", "x", s("Sqrt", s("Add", power, s.constant(1.0))))

    def over_the_batch(s: Steps) -> str:
        return standardised(s, "x", (0,))

    for function in (axes_differ, epsilon_outside, of_another, twice_a_power, over_the_batch):
        yield function.__name__, function


@pytest.mark.parametrize(("name", "build"), list(other_functions()))
def test_what_is_no_norm_stays_in_steps(name, build):
    s = Steps()
    opened = OnnxBackend().open(s.model(build(s), TOKENS))
    assert not {"LayerNormalization", "RMSNormalization", "InstanceNormalization"} & set(ops(opened)), name


def put_back(s: Steps, flat: str, axis: int, form: str) -> str:
    """The axis that a reduction has dropped, of size 1, and repeated to the whole size where JAX does that."""
    if form == "Unsqueeze":
        return s("Unsqueeze", flat, s.constant([axis], np.int64))
    sizes = [-1, *TOKENS[1:]]
    sizes[axis] = 1
    view = s("Reshape", flat, s.constant(sizes, np.int64))
    if form == "Reshape":
        return view
    repeated = [1, *TOKENS[1:]] if form == "Reshape, repeated" else [1, 1, 1]
    return s("Expand", view, s.constant(repeated, np.int64))


@pytest.mark.parametrize("form", ["Unsqueeze", "Reshape", "Reshape, Expand", "Reshape, repeated"])
@pytest.mark.parametrize("mean", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("bound", ["Max", "Max, turned", "Relu", "none"])
def test_statistics_whose_axis_is_dropped_and_put_back(form, mean, axis, bound):
    def mean_of(x: str) -> str:
        if mean == "ReduceMean":
            return s.reduce(mean, x, (axis,), keepdims=0)
        total = s("ReduceSum", x, s.constant([axis], np.int64), keepdims=0)  # an input since opset 13
        return s("Mul", total, s.constant(1 / TOKENS[axis]))

    s = Steps(17)
    average = mean_of("x")
    spread = s("Sub", mean_of(s("Mul", "x", "x")), s("Mul", average, average))
    zero = s.constant(0.0)
    operands = {"Max": (spread, zero), "Max, turned": (zero, spread), "Relu": (spread,)}.get(bound)
    spread = s(bound.partition(",")[0], *operands) if operands is not None else spread
    inverse = s("Reciprocal", s("Sqrt", s("Add", put_back(s, spread, axis, form), s.constant(1e-3))))
    shape = (8,) if axis == 2 else (1, 5, 1)
    scaled = s("Mul", s("Sub", "x", put_back(s, average, axis, form)), s("Mul", inverse, s.vector(*shape)))
    opened = written_alike(s.model(s("Add", scaled, s.vector(*shape)), TOKENS), TOKENS)
    assert ops(opened) == ["LayerNormalization"]


def test_a_mean_that_is_put_back_elsewhere_is_no_norm():
    square_tokens = (3, 5, 5)
    s = Steps(17)
    average = s("Reshape", s.reduce("ReduceMean", "x", (1,), keepdims=0), s.constant([-1, 5, 1], np.int64))
    centered = s("Sub", "x", average)
    variance = s.reduce("ReduceMean", s("Mul", centered, centered), (1,))
    result = over_root(s, centered, s("Add", variance, s.constant(1e-3)), "Div")
    opened = written_alike(s.model(result, square_tokens), square_tokens)
    assert "LayerNormalization" not in ops(opened)
