"""What is JAX's own: how models are given and read, what is refused, and the simulator as a JAX function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import isobit
from isobit.errors import ModelError
from isobit.statistics import Histogram, observe_tensor
from isobit.testing.networks.convolutional import conv_net
from isobit.testing.networks.fully_connected import two_inputs
from isobit_jax import JaxModel
from isobit_jax.backend import JaxBackend
from isobit_jax.engine import JaxEngine
from isobit_jax.recurrent import lstm
from networks import build_jax


def ops_of(function, params, *arrays):
    """The ops of a function of arrays, in order."""
    return [node.op for node in JaxBackend().open(JaxModel(function, params), arrays).graph.nodes]


def test_the_whole_way(tmp_path):
    """Found by its type, folded, calibrated, exported; the simulator is a function of its parameters."""
    network = conv_net()
    data = [network.batch(4, seed=seed) for seed in range(4)]
    sim = isobit.quantize(build_jax(network), data, method="percentile=99.9")
    assert "BatchNormalization" not in {node.op for node in sim.graph.nodes}
    paths = sim.export(tmp_path)
    assert paths["model"].is_file()
    outputs = jax.jit(sim.model.function)(sim.model.params, **data[0])
    np.testing.assert_allclose(outputs["logits"], sim.run(data[0])["logits"], rtol=0, atol=1e-5)

    def loss(weights):
        params = {**sim.model.params, "weights": weights}
        return jnp.sum(sim.model.function(params, **data[0])["logits"] ** 2)

    gradients = jax.grad(loss)(sim.model.params["weights"])
    assert all(np.any(np.asarray(gradient)) for name, gradient in gradients.items() if name.endswith("weight"))


def test_outputs_and_inputs_of_any_structure():
    """Inputs by position are named by the function's arguments; outputs without names are numbered."""
    params = {"w": jnp.ones((3, 2)), "layers": [jnp.ones(2), jnp.ones(2)]}
    function = lambda p, left, right: (left @ p["w"] + p["layers"][0], right * p["layers"][1])  # noqa: E731
    model = JaxBackend().open(JaxModel(function, params), (np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)))
    assert model.graph.inputs == ("left", "right")
    assert list(model.graph.outputs) == ["output_0", "output_1"]
    assert set(model.graph.weights) == {"w", "layers.0", "layers.1"}
    outputs = model.run({"left": np.ones((5, 3)), "right": np.full((5, 2), 2.0)})
    np.testing.assert_array_equal(outputs["output_0"], np.full((5, 2), 4.0))


X4 = np.random.default_rng(0).standard_normal((2, 6, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("axis", [1, 3])
def test_a_norm_over_another_axis_is_none(axis):
    """Vectors of one length on channels or on the last axis: only those of the channels are batch norm's."""
    shape = [1, 1, 1, 1]
    shape[axis] = 6

    def norm(p, x):
        scale, shift, mean, variance = (p[name].reshape(shape) for name in ("scale", "shift", "mean", "var"))
        return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + shift

    params = {
        name: jnp.asarray(np.linspace(0.5, 1.5, 6, dtype=np.float32)) for name in ("scale", "shift", "mean", "var")
    }
    ops = ops_of(norm, params, X4)
    assert (ops == ["BatchNormalization"]) == (axis == 1)
    model = JaxBackend().open(JaxModel(norm, params), X4)
    np.testing.assert_allclose(model.run({"x": X4})["output"], norm(params, X4), rtol=1e-5, atol=1e-5)


def test_norms_as_flax_writes_them():
    def layer_norm(p, x):
        mean, square = jnp.mean(x, -1, keepdims=True), jnp.mean(x * x, -1, keepdims=True)
        variance = jnp.maximum(0.0, square - mean * mean)
        return (x - mean) * (lax.rsqrt(variance + 1e-6) * p["scale"]) + p["bias"]

    assert ops_of(layer_norm, {"scale": jnp.ones(6), "bias": jnp.zeros(6)}, X4) == ["LayerNormalization"]


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda p, x: jax.nn.softmax(x, 1), "Softmax"),
        (lambda p, x: jax.nn.hard_swish(x), "HardSwish"),
        (lambda p, x: jax.nn.gelu(x, approximate=True), "Gelu"),
        (lambda p, x: jnp.clip(x, -0.5, 0.5), "Clip"),
        (lambda p, x: x.mean((1, 2), keepdims=True), "ReduceMean"),
        (lambda p, x: x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * p, "RMSNormalization"),
    ],
)
def test_what_jax_writes_in_steps_is_one_node(function, op):
    scale = jnp.linspace(0.5, 1.5, 6)
    model = JaxBackend().open(JaxModel(function, scale), X4)
    assert [node.op for node in model.graph.nodes] == [op]
    np.testing.assert_allclose(model.run({"x": X4})["output"], function(scale, X4), rtol=1e-5, atol=1e-6)


def test_nodes_have_the_names_of_their_scopes():
    def function(p, x):
        with jax.named_scope("block"):
            with jax.named_scope("conv"):
                y = lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME") + p["bias"][:, None, None]
            y = jax.nn.relu(y)
        return y + x

    params = {"kernel": jnp.ones((6, 6, 3, 3)), "bias": jnp.ones(6)}
    graph = JaxBackend().open(JaxModel(function, params), X4).graph
    assert [node.name for node in graph.nodes] == ["block/conv", "block", "add"]
    assert graph.nodes[0].inputs == ("x", "kernel", "bias")


def test_what_no_output_needs_is_not_read():
    def function(p, x):
        jnp.sort(x) + jnp.flip(x, 1)
        return x * 2

    assert ops_of(function, {}, X4) == ["Mul"]


def test_channels_last_convolutions_get_transpositions():
    dimensions = ("NHWC", "HWIO", "NHWC")
    conv = lambda p, x: lax.conv_general_dilated(x, p, (1, 1), "SAME", dimension_numbers=dimensions)  # noqa: E731
    kernel = jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 6, 4)), jnp.float32)
    model = JaxBackend().open(JaxModel(conv, kernel), X4)
    assert [node.op for node in model.graph.nodes] == ["Transpose", "Conv", "Transpose"]
    np.testing.assert_allclose(model.run({"x": X4})["output"], conv(kernel, X4), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, x: jnp.sort(x), "does not read 'sort'"),
        (lambda p, x: x * 2 if x.shape[0] > 3 else x, "cannot be traced for any batch size"),
        (lambda p, x: x @ p["double"], "'double' is float16"),
        (lambda p, x: x + jnp.ones((x.shape[0], 6)), "is repeated to"),
        (lambda p, x: jnp.flip(x, 1), "a reversed array"),
        (lambda p, x: jnp.cumsum(x, 1) + 1, "does not read 'cumsum'"),
        (lambda p, x: lax.scan(lambda s, row: (s + row, s), jnp.zeros(x.shape[1]), x)[1], "a layer of isobit_jax"),
    ],
)
def test_what_is_refused_says_what_it_is(function, message):
    params = {"double": np.ones((6, 2), np.float16)}
    with pytest.raises(ModelError, match=message):
        JaxBackend().open(JaxModel(function, params), np.ones((2, 6), np.float32))


def test_a_recurrent_layer_that_does_not_start_from_zeros_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"w": jnp.ones((8, 6)), "r": jnp.ones((8, 2))}
    model = JaxModel(lambda p, x: lstm(x.transpose(1, 0, 2), p["w"], p["r"]), params)
    x = np.ones((3, 5, 6), np.float32)
    assert "LSTM" in [node.op for node in JaxBackend().open(model, x).graph.nodes]
    monkeypatch.setattr(jnp, "zeros", jnp.ones)
    with pytest.raises(ModelError, match=r"a layer of isobit_jax\.recurrent"):
        JaxBackend().open(model, x)


def test_an_example_is_needed():
    with pytest.raises(ModelError, match="pass example_inputs"):
        isobit.QuantSim(build_jax(two_inputs()))
    with pytest.raises(ModelError, match=r"takes 1 inputs \(x\); the example has 2"):
        JaxBackend().open(JaxModel(lambda p, x: x, {}), (X4, X4))


def test_of_an_observed_tensor_only_bounds_and_counted_elements_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics are those of the whole tensor, and of NaN too."""
    values = np.random.default_rng(0).standard_normal((2, 6, 70, 70)).astype(np.float32)
    fetched = []
    absorb = Histogram.absorb

    def counted(self: Histogram, low: float, high: float, sampled: np.ndarray, elements: int) -> None:
        fetched.append(sampled.size)
        absorb(self, low, high, sampled, elements)

    monkeypatch.setattr(Histogram, "absorb", counted)
    for axis in (1, None):
        observed, expected = Histogram(), Histogram()
        observe_tensor(observed, jnp.asarray(values), axis, JaxEngine().bounds)
        expected.update(values, axis)
        assert observed == expected
    assert all(size < values.size / 5 for size in fetched)
    assert len(fetched) == 2
    values[1, 0, 0, 0] = np.nan
    observed = Histogram()
    observe_tensor(observed, jnp.asarray(values), 1, JaxEngine().bounds)
    assert observed.non_finite == 1
