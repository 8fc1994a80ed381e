"""A pass is traced once for all models of its structure, and each runs it with variables of its own."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import keras
import numpy as np
import pytest
from keras import layers as L

from isobit.backend import CheckedModel
from isobit.edits import SetWeights
from isobit.encodings import Encoding
from isobit.graph import Tensor, Weight
from isobit.statistics import MinMax, Request
from isobit_tensorflow.backend import TensorFlowBackend
from isobit_tensorflow.simulate import traced_pass

X = {"x": np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)}


@pytest.fixture(autouse=True)
def traced(monkeypatch) -> Iterator[list[object]]:
    """The functions that are traced, from none."""
    found: list[object] = []
    trace = traced_pass._traced
    monkeypatch.setattr(traced_pass, "_KEPT", traced_pass._Kept(traced_pass._MOST))
    monkeypatch.setattr(traced_pass, "_traced", lambda *arguments: found.append(trace(*arguments)) or found[-1])
    return found


def model(seed: int = 0, width: int = 4) -> CheckedModel:
    keras.utils.set_random_seed(seed)
    x = keras.Input((6,), name="x")
    y = L.Dense(width, activation="relu", name="first")(x)
    return CheckedModel.of(TensorFlowBackend().open(keras.Model(x, L.Dense(3, name="last")(y))))


def expected(opened: CheckedModel) -> np.ndarray:
    first, last = (opened.weight(f"{name}/kernel") for name in ("first", "last"))
    hidden = np.maximum(X["x"] @ first.T + opened.weight("first/bias"), 0)
    return hidden @ last.T + opened.weight("last/bias")


def out(opened: CheckedModel) -> np.ndarray:
    (values,) = opened.run(X).values()
    return values


def test_copies_edited_models_and_others_of_the_structure_share_a_trace(traced) -> None:
    first, second = model(0), model(1)
    copy = first.copy()
    copy.edit([SetWeights({"last/bias": np.array([1, 2, 3], np.float32)})])
    found = [out(opened) for opened in (first, second, copy)]
    for opened, values in zip((first, second, copy), found, strict=True):
        np.testing.assert_allclose(values, expected(opened), atol=1e-5)
    np.testing.assert_allclose(found[2] - found[0], np.broadcast_to([1, 2, 3], (5, 3)), atol=1e-5)
    assert len(traced) == 1
    np.testing.assert_allclose(out(model(0, width=5)), expected(model(0, width=5)), atol=1e-5)
    assert len(traced) == 2


def test_the_numbers_of_encodings_are_each_models_own_and_formats_are_traced(traced) -> None:
    first, second = model(), model()
    for opened, scale in ((first, 0.5), (second, 0.25)):
        weight = Encoding.of("int4", 0.1)
        opened.set_quantizers({Tensor("x"): Encoding.of("int8", scale), Weight("last/kernel"): weight})
    rounded = [out(opened) for opened in (first, second)]
    assert not np.array_equal(*rounded)
    assert len(traced) == 1
    seen = [MinMax(), MinMax()]
    for opened, observer in zip((first, second), seen, strict=True):
        opened.observe([X], [Request(Tensor("x"), observer, "after")])
    for observer, scale in zip(seen, np.float32([0.5, 0.25]), strict=True):
        assert observer.batches[0][1] == (np.rint(X["x"] / scale) * scale).max()
    assert len(traced) == 2
    second.enable([Tensor("x")], on=False)
    out(second)
    second.set_quantizers({Weight("last/kernel"): Encoding.of("int5", 0.1)})
    out(second)
    assert len(traced) == 4


def test_a_trace_holds_no_model() -> None:
    opened = model()
    out(opened)
    simulator = weakref.ref(opened.native)
    del opened
    gc.collect()
    assert simulator() is None
    assert len(traced_pass._KEPT._functions) == 1


def test_what_is_kept_is_bounded(traced, monkeypatch) -> None:
    monkeypatch.setattr(traced_pass, "_KEPT", traced_pass._Kept(1))
    for width in (4, 5, 4):
        out(model(width=width))
    assert len(traced) == 3
    assert len(traced_pass._KEPT._functions) == 1


def test_what_is_behind_the_watched_tensors_is_not_traced(traced) -> None:
    opened = model()
    hidden = opened.graph.node("last").inputs[0]
    seen = MinMax()
    opened.observe([X], [Request(Tensor(hidden), seen)])
    first = opened.weight("first/kernel")
    assert seen.batches[0][1] == pytest.approx(np.maximum(X["x"] @ first.T + opened.weight("first/bias"), 0).max())
    (function,) = traced
    assert [operation.type for operation in function.graph.get_operations()].count("MatMul") == 1


def test_switches_that_anybody_sets_count_from_the_next_run_on() -> None:
    """The switches are read together, by a function that knows the quantizers: also once they are others."""
    opened = model()
    opened.set_quantizers({Tensor("x"): Encoding.of("int8", 0.5), Weight("last/kernel"): Encoding.of("int4", 0.1)})
    exact, coarse = expected(opened), [out(opened) for _ in range(8)][-1]
    assert np.abs(coarse - exact).max() > 0.01
    for layer in opened.inner.native.quantizer_layers:
        layer.on.assign(0.0)  # as what loads weights does
    np.testing.assert_allclose(out(opened), exact, atol=1e-5)
    opened.set_quantizers({Tensor("x"): None, Weight("last/kernel"): Encoding.of("int8", 0.5)})
    opened.enable([Weight("last/kernel")], on=True)
    found = [out(opened) for _ in range(8)]
    assert np.abs(found[-1] - exact).max() > 0.01
    opened.enable([Weight("last/kernel")], on=False)
    np.testing.assert_allclose(out(opened), exact, atol=1e-5)
