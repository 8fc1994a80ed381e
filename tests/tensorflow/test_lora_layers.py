"""Layers with `enable_lora`: they are read as layers beside a frozen kernel, train, and have a file of their own."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from isobit.errors import ModelError
from isobit.graph import find_adapters
from isobit.quantsim import QuantSim

X = np.random.default_rng(5).standard_normal((64, 16)).astype(np.float32)
Y = np.random.default_rng(6).standard_normal((64, 8)).astype(np.float32)


def dense(seed: int = 0, rank: int = 4, **settings: object) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(32, activation="gelu", name="up"), keras.layers.Dense(8, name="down")]
    model = keras.Sequential([keras.Input((16,)), *layers])
    for layer in model.layers:
        layer.enable_lora(rank, **settings)
    return model


def images() -> tuple[keras.Model, np.ndarray]:
    first = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first")
    last = keras.layers.Conv2D(8, 3, strides=2, name="last")
    model = keras.Sequential([keras.Input((8, 8, 3)), first, last])
    for layer in (first, last):
        layer.enable_lora(2)
    return model, np.random.default_rng(1).standard_normal((4, 8, 8, 3)).astype(np.float32)


def attention() -> tuple[keras.Model, np.ndarray]:
    """As KerasHub's `enable_lora` treats a backbone: the layers inside an attention, and the table."""
    ids = keras.Input((6,), dtype="int32")
    table, attends = keras.layers.Embedding(30, 16), keras.layers.MultiHeadAttention(4, 4)
    embedded = table(ids)
    model = keras.Model(ids, attends(embedded, embedded))
    for layer in (table, attends._query_dense, attends._value_dense, attends._output_dense):
        layer.enable_lora(2)
    return model, np.random.default_rng(1).integers(0, 30, (8, 6)).astype(np.int32)


@pytest.mark.parametrize(
    ("equation", "shape", "data"),
    [
        ("btx,xy->bty", (None, 6), (4, 5, 8)),
        ("btx,yx->bty", (None, 6), (4, 5, 8)),
        ("...x,xy->...y", (5, 6), (4, 5, 8)),
        ("abc,cde->abde", (None, 3, 6), (4, 5, 8)),
        ("abcd,cde->abe", (None, 6), (4, 5, 2, 8)),
        ("abcd,ecd->abe", (None, 6), (4, 5, 2, 8)),
    ],
)
def test_every_form_of_an_einsum_layer(equation: str, shape: tuple[int | None, ...], data: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    layer = keras.layers.EinsumDense(
        equation, shape, bias_axes=equation[-1] if len(shape) == 2 else "de", activation="relu", name="layer"
    )
    model = keras.Sequential([keras.Input(data[1:]), layer])
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(rng.normal(0, 0.3, layer.lora_kernel_b.shape))
    x = rng.standard_normal(data).astype(np.float32)
    sim = calibrated(model, x)
    assert [adapter.base.name for adapter in find_adapters(sim.graph)] == ["layer/base"]
    np.testing.assert_allclose(output(sim.run_float(x)), np.asarray(model(x)), atol=2e-6)


def test_the_layers_of_an_attention_and_a_table(tmp_path) -> None:
    """The table and the projections are quantized, what is small beside them is not, and the file is the simulator."""
    model, data = attention()
    for variable in model.trainable_variables:
        if variable.path.endswith(("lora_kernel_b", "lora_embeddings_b")):
            variable.assign(np.random.default_rng(2).normal(0, 0.2, variable.shape))
    sim = calibrated(model, data)
    assert len(find_adapters(sim.graph)) == 4
    assert len(sim.plan.of_kind("weight")) == 5
    np.testing.assert_allclose(output(sim.run_float(data)), np.asarray(model(data)), atol=2e-6)
    assert any("adapters beside 4 layers stay in float" in note for note in sim.report.notes)
    checks = sim.export(tmp_path / "out").checks
    assert "every value equal" in str(checks[0])


def calibrated(model: keras.Model, data: np.ndarray = X) -> QuantSim:
    sim = QuantSim(model, weights="int4", activations="int8")
    sim.calibrate(data, "minmax", progress=False)
    return sim


def output(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(outputs.values()))


@pytest.mark.parametrize("kind", ["dense", "convolutions"])
def test_the_kernel_is_quantized_and_the_adapter_is_not(kind: str) -> None:
    """And the graph computes what Keras does."""
    model, data = (dense(), X) if kind == "dense" else images()
    for layer in model.layers:
        layer.lora_kernel_b.assign(np.random.default_rng(2).normal(0, 0.1, layer.lora_kernel_b.shape))
    sim = calibrated(model, data)
    adapters = find_adapters(sim.graph)
    assert [adapter.base.name for adapter in adapters] == [f"{layer.name}/base" for layer in model.layers]
    assert {p.site.name for p in sim.plan.of_kind("weight")} == {adapter.base.inputs[1] for adapter in adapters}
    np.testing.assert_allclose(output(sim.run_float(data)), np.asarray(model(data)), atol=2e-6)


def test_fit_trains_the_adapter_alone_and_it_is_written_alone(tmp_path) -> None:
    sim = calibrated(dense())
    grids = {placement.site: sim.encodings[placement.site] for placement in sim.plan.of_kind("weight")}
    kernels = [v.numpy() for v in sim.model.weights if v.path.endswith("/kernel")]
    simulator = sim.trainable()
    simulator.compile(keras.optimizers.Adam(1e-2), "mse")
    losses = simulator.fit(X, Y, batch_size=64, epochs=40, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    for before, after in zip(kernels, [v for v in sim.model.weights if v.path.endswith("/kernel")], strict=True):
        np.testing.assert_array_equal(before, after.numpy())
    assert {site: sim.encodings[site] for site in grids} == grids
    assert sim.adapters.names == ("lora",)
    sim.adapters.save(tmp_path)

    other = calibrated(dense())
    other.adapters.load(tmp_path)
    np.testing.assert_array_equal(output(other.run(X)), output(sim.run(X)))
    for model, error in (
        (dense(seed=1), "beside another base"),
        (dense(rank=2), "of another rank"),
        (dense(lora_alpha=16), "another lora_alpha"),
    ):
        with pytest.raises(ModelError, match=error):
            calibrated(model).adapters.load(tmp_path)
