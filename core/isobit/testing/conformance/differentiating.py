"""Part 6: gradients, of backends that have them (`isobit.backend.Differentiable`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Differentiable
from isobit.data import Batch, Dataset
from isobit.edits.edit import SetWeights
from isobit.encodings.encoding import Encoding
from isobit.errors import DataError, IsobitError
from isobit.graph.between import between
from isobit.graph.sites import Tensor, Weight
from isobit.placement.place import place
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.statistics.observer import Request
from isobit.techniques.context import TechniqueContext
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.reconstruct_blocks import ReconstructBlocks
from isobit.testing import interpreter
from isobit.testing.conformance.base import ConformanceBase, Opened, assert_same, weight_names

Array = NDArray[Any]
Function = Callable[[Mapping[str, Any]], Any]


class DifferentiatingConformance(ConformanceBase):
    """Values and gradients of functions of the outputs."""

    def test_gradients_are_finite_differences(self, opened: Opened) -> None:
        """By every float weight, along a random direction and at single elements, on the float model.

        The differences are those of the interpreter, which computes in float64: float32 leaves no room for small steps.
        """
        model, network = differentiable(opened.model), opened.network
        graph, batch, rng = opened.model.graph, network.batch(2), np.random.default_rng(0)
        function = function_of(opened.model.run(batch))
        inputs = {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in batch.items()}
        weights = {name: opened.model.weight(name) for name, info in graph.weights.items() if info.is_float}
        exact_weights = {name: value.astype(np.float64) for name, value in weights.items()}

        def at(name: str, changed: Array) -> float:
            def lookup(n: str) -> Array:
                return changed if n == name else exact_weights.get(n, opened.model.weight(n))

            return float(function(interpreter.outputs(graph, lookup, inputs)))

        value, gradients = model.gradient(function, weights, batch)
        np.testing.assert_allclose(value, at("", np.zeros(0)), rtol=1e-4)
        assert set(gradients) == set(weights)
        for name, gradient in gradients.items():
            assert gradient.dtype == np.float32
            assert gradient.shape == weights[name].shape
            single = np.zeros(gradient.size)
            single[rng.integers(gradient.size)] = 1
            for direction in (rng.standard_normal(gradient.shape), single.reshape(gradient.shape)):
                step = 1e-6 / np.linalg.norm(direction) * direction
                expected = (at(name, exact_weights[name] + step) - at(name, exact_weights[name] - step)) / 2e-6
                slope = float((gradient * direction).sum() / np.linalg.norm(direction))
                limit = 1e-3 * max(float(np.linalg.norm(gradient)), 1e-2)
                assert abs(slope - expected) < limit, name

    def test_overridden_is_as_edited(self, differing: Opened) -> None:
        """The value is that of a model whose weights were set, quantizers included; the model stays as it is."""
        model, batch = differing.model, differing.network.batch(2)
        model.set_quantizers({Tensor(model.graph.inputs[0]): Encoding.of("int6", 0.1)})
        before, function = model.run(batch), function_of(model.run(batch))
        weights = {name: np.array(model.weight(name) * np.float32(1.5)) for name in weight_names(model.graph)}
        value, _ = differentiable(model).gradient(function, weights, batch)
        assert_same(model.run(batch), before)
        for name, changed in weights.items():
            np.testing.assert_array_equal(model.weight(name) * np.float32(1.5), changed)
        edited = model.copy()
        edited.edit([SetWeights(weights)])
        np.testing.assert_allclose(value, function(edited.run(batch)), rtol=1e-5)

    def test_straight_through(self, differing: Opened) -> None:
        """A quantized weight has the gradient of the float model at its rounded values; none where it saturates."""
        model, batch = differing.model, differing.network.batch(2)
        for name in weight_names(model.graph):
            weight = model.weight(name)
            encoding = Encoding.of("int4 per-tensor", np.abs(weight).max() / 12)
            rounded = encoding.fake_quantize(weight)
            inside = np.abs(np.rint(weight / encoding.scale) + 0.5) < 8
            assert not inside.all()
            function = function_of(model.run(batch))
            plain, expected = differentiable(model).gradient(function, {name: rounded}, batch)
            model.set_quantizers({Weight(name): encoding})
            value, gradients = differentiable(model).gradient(function, {name: weight}, batch)
            model.set_quantizers({Weight(name): None})
            assert value == pytest.approx(plain, rel=1e-6)
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(
                gradients[name], expected[name] * inside, rtol=0, atol=1e-5 * scale, err_msg=name
            )

    def test_a_part_alone(self, open_network: Callable[[str], Opened]) -> None:
        """Of tensors inside the model, quantizers included: the error of what it gives is 0, and has a gradient."""
        opened = open_network("inverted_residual")
        model, graph, batch = opened.model, opened.model.graph, opened.network.batch(3)
        layers = [node for node in graph.nodes if node.op == "Conv"]
        given, wanted = layers[1].inputs[0] or "", layers[2].outputs[0]
        part, name = between(graph, [given], [wanted]), layers[2].inputs[1] or ""
        model.set_quantizers(
            {
                Tensor(given): Encoding.of("uint8", 0.05),
                Tensor(layers[1].outputs[0]): Encoding.of("int8", 0.05),
                Weight(layers[1].inputs[1] or ""): Encoding.of("int8 per-tensor", 0.01),
            }
        )
        seen = [Collected(), Collected()]
        model.observe([batch], [Request(Tensor(given), seen[0]), Request(Tensor(wanted), seen[1], "after")])
        values, weight = {given: seen[0].value}, {name: model.weight(name)}
        error, _ = differentiable(model).part_error(part, weight, values, {wanted: seen[1].value})
        assert error <= 1e-6 * float(np.square(seen[1].value).sum())
        error, gradients = differentiable(model).part_error(part, weight, values, {wanted: seen[1].value - 1})
        assert error == pytest.approx(seen[1].value.size, rel=1e-3)
        step = {name: weight[name] - np.float32(1e-5) * gradients[name] / np.abs(gradients[name]).max()}
        less, _ = differentiable(model).part_error(part, step, values, {wanted: seen[1].value - 1})
        assert less < error
        with pytest.raises(DataError, match="no values for"):
            differentiable(model).part_error(part, weight, {}, {wanted: seen[1].value})

    def test_gradients_of_a_part_are_finite_differences(self, open_network: Callable[[str], Opened]) -> None:
        """By the weights of a residual block, of the error of its output, as the interpreter computes it in float64."""
        opened = open_network("residual")
        model, graph, batch, rng = opened.model, opened.model.graph, opened.network.batch(3), np.random.default_rng(0)
        sums = [node for node in graph.nodes if node.op == "Add"]
        given, wanted = (graph.uses(node.outputs[0])[0].node.outputs[0] for node in sums)
        part = between(graph, [given], [wanted])
        seen = [Collected(), Collected()]
        model.observe([batch], [Request(Tensor(given), seen[0]), Request(Tensor(wanted), seen[1], "after")])
        targets = seen[1].value + rng.standard_normal(seen[1].value.shape).astype(np.float32)
        weights = {
            name: model.weight(name) for name, info in part.weights.items() if info.is_float and len(info.shape) > 1
        }
        assert len(weights) == 3
        error, gradients = differentiable(model).part_error(part, weights, {given: seen[0].value}, {wanted: targets})
        exact = {name: model.weight(name).astype(np.float64) for name in part.weights}
        inputs = {given: seen[0].value.astype(np.float64)}

        def at(changed: Mapping[str, Array]) -> float:
            made = interpreter.outputs(part, lambda name: {**exact, **changed}[name], inputs)
            return float(np.square(made[wanted] - targets).sum())

        assert error == pytest.approx(at({}), rel=1e-4)
        for name, gradient in gradients.items():
            step = rng.standard_normal(gradient.shape)
            step *= 1e-6 / np.linalg.norm(step)
            slope = (at({name: exact[name] + step}) - at({name: exact[name] - step})) / 2
            limit = 1e-3 * float(np.linalg.norm(gradient)) * 1e-6
            assert abs(float((gradient * step).sum()) - slope) < limit, name

    def test_blocks_are_rounded_by_gradients(self, open_network: Callable[[str], Opened]) -> None:
        """Every block is descended in, weights are on the grids that were found, and the held-back samples decide."""
        opened = open_network("conv_net")
        differentiable(opened.model)
        data = Dataset(opened.network.batch(16), opened.model.graph, batch_size=8)
        FoldBatchNorms().apply(TechniqueContext(opened.model))
        plan = place(opened.model.graph, registry().target("default"), QuantConfig("int2 per-channel", None, {}, ()))
        report = ReconstructBlocks(steps=8, batch=8, layers=2).apply(TechniqueContext(opened.model, plan, data))
        told = [
            re.search(r"error of the block (\S+) -> (\S+) of", line)
            for line in [*report.changed, *report.left.values()]
        ]
        errors = [(float(match[1]), float(match[2])) for match in told if match is not None]
        assert len(errors) == 2
        assert all(after < 1.5 * before for before, after in errors), errors
        assert len(report.encodings) == 3
        for site, encoding in report.encodings.items():
            value = opened.model.weight(str(site))
            np.testing.assert_allclose(encoding.fake_quantize(value), value, rtol=1e-6, atol=1e-7)

    def test_what_gradients_refuse(self, open_network: Callable[[str], Opened]) -> None:
        """Unknown weights, other shapes and types, NaN, functions that are none."""
        opened = open_network("shared_weights")
        model, batch = differentiable(opened.model), opened.network.batch(2)
        weight = opened.model.weight("fc1.weight")
        function = function_of(opened.model.run(batch))
        wrong: tuple[dict[str, Array], ...] = (
            {"fc1.wait": weight}, {"fc1.weight": weight[:-1]}, {"fc1.weight": weight.astype(np.float64)},
            {"fc1.weight": np.full_like(weight, np.nan)},
        )  # fmt: skip
        for weights in wrong:
            with pytest.raises(IsobitError, match=r"fc1\.w"):
                model.gradient(function, weights, batch)
        functions: tuple[Function, ...] = (
            lambda outputs: outputs["y"],
            lambda outputs: 1.0,
            lambda outputs: outputs["y"][0, 0] * float("nan"),
        )
        for nonsense in functions:
            with pytest.raises(IsobitError, match="function"):
                model.gradient(nonsense, {"fc1.weight": weight}, batch)


class Collected:
    """Keeps the last batch of a tensor."""

    wants: Literal["tensor"] = "tensor"

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Keep it."""
        self.value = np.array(batch)


def differentiable(model: CheckedModel) -> Differentiable:
    """The model as what it can do; the test is skipped where it cannot."""
    if not isinstance(model, Differentiable):
        pytest.skip("the backend has no gradients")
    return model


def function_of(outputs: Batch) -> Function:
    """A smooth function of some elements of every output: by operators and indices alone, for arrays and tensors."""
    rng = np.random.default_rng(1)
    terms = [
        (name, tuple(int(rng.integers(size)) for size in value.shape), float(rng.uniform(0.5, 2.0)))
        for name, value in sorted(outputs.items())
        for _ in range(6)
    ]

    def function(outputs: Mapping[str, Any]) -> Any:
        total: Any = 0.0
        for name, index, factor in terms:
            element = outputs[name][index]
            total = total + factor * element * element - element
        return total

    return function
