"""JaxEngine: the canonical graph, run by JAX's kernels. `isobit.graph_model` does the rest of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from isobit.backend import Batch, NameMap
from isobit.graph import Graph
from isobit.graph_model import GraphModel
from isobit.running import Tap, run_graph
from isobit.sites import Site
from isobit_jax import quantizers
from isobit_jax.kernels import KERNELS
from isobit_jax.native import JaxModel
from isobit_jax.quantizers import apply

if TYPE_CHECKING:
    from onnx import ModelProto

#: The quantizers of a compiled function.
Forms = tuple[tuple[Site, quantizers.Form], ...]


class JaxEngine:
    """Compiles a function for each set of quantizers and tapped tensors; switching one compiles nothing."""

    name, ops = "jax", KERNELS.keys()

    def native(self, model: GraphModel) -> JaxModel:
        """The simulator as a function of its parameters: ``weights`` by name, and ``quantizers``."""
        run = partial(_run, model.graph, _forms(model), ())
        return JaxModel(lambda params, **inputs: run(**params, inputs=inputs)[0], _parameters(model))

    def run(self, model: GraphModel, feeds: Batch, taps: Sequence[Tap]) -> tuple[Mapping[str, Any], Sequence[Any]]:
        """Outputs by name, and the tapped tensors."""
        key = (_forms(model), tuple(taps))
        if key not in model.cache:
            model.cache[key] = jax.jit(partial(_run, model.graph, *key))
        found: tuple[Mapping[str, Any], Sequence[Any]] = model.cache[key](**_parameters(model), inputs=feeds)
        return found

    def bounds(self, array: Any) -> tuple[float, float]:
        """Smallest and largest element, of which alone leave the device."""
        low, high = _bounds(array)
        return float(low), float(high)

    def to_onnx(self, model: GraphModel) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, written from the graph."""
        from isobit_onnx.write.write_onnx import write_onnx

        return write_onnx(model.graph, model.weight)

    def gradient(
        self, model: GraphModel, function: Callable[[Mapping[str, Any]], Any], weights: Batch, feeds: Batch
    ) -> tuple[Any, Mapping[str, Any]]:
        """Value and gradient of a function of the outputs."""
        held = _parameters(model)
        run = partial(_run, model.graph, _forms(model), (), quantizers=held["quantizers"], inputs=feeds)
        found: tuple[Any, Mapping[str, Any]] = jax.value_and_grad(
            lambda given: function(run(weights={**held["weights"], **given})[0])
        )({name: jnp.asarray(array) for name, array in weights.items()})
        return found


@jax.jit
def _bounds(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.min(array), jnp.max(array)


def _forms(model: GraphModel) -> Forms:
    return tuple((site, quantizers.Form.of(encoding)) for site, encoding in model.quantizers.items())


def _parameters(model: GraphModel) -> dict[str, Any]:
    numbers = [quantizers.parameters(encoding, site not in model.off) for site, encoding in model.quantizers.items()]
    return {"weights": {name: jnp.asarray(value) for name, value in model.weights.items()}, "quantizers": numbers}


def _run(
    graph: Graph, forms: Forms, taps: Sequence[Tap], weights: Any, quantizers: Sequence[Any], inputs: Any
) -> tuple[dict[str, Any], list[Any]]:
    found: dict[Tap, Any] = {}

    def tap(place: Tap, value: Any) -> None:
        if place in taps:
            found[place] = value

    rounders = {site: partial(apply, form, numbers) for (site, form), numbers in zip(forms, quantizers, strict=True)}
    outputs = run_graph(graph, lambda node, operands: KERNELS[node.op](node, *operands), weights, rounders, inputs, tap)
    return outputs, [found[place] for place in taps]
