"""JaxEngine: the canonical graph, run by JAX's kernels. `isobit.graph_backend` does the rest of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from isobit.backend import Batch, NameMap
from isobit.graph import Graph, Site
from isobit.graph_backend import GraphModel, Tap
from isobit.graph_backend.run_graph import run_tapped
from isobit_jax.kernels import KERNELS
from isobit_jax.native import JaxModel
from isobit_jax.quantizers import Numbers, apply, kind_of, numbers_of

#: The quantizers of a compiled function.
Kinds = tuple[tuple[Site, str], ...]

_bounds = jax.jit(lambda array: (jnp.min(array), jnp.max(array)))


class JaxEngine:
    """Compiles a function for each set of quantizers and tapped tensors; switching one compiles nothing."""

    name, ops = "jax", KERNELS.keys()

    def native(self, model: GraphModel) -> JaxModel:
        """The simulator as a function of its parameters: ``weights`` by name, and ``quantizers``."""
        run = partial(_run, model.graph, _kinds(model), ())
        return JaxModel(lambda params, **inputs: run(**params, inputs=inputs)[0], _parameters(model))

    def run(self, model: GraphModel, feeds: Batch, taps: Sequence[Tap]) -> tuple[Mapping[str, Any], Sequence[Any]]:
        """Outputs by name, or the tapped tensors."""
        key = (_kinds(model), tuple(taps))
        if key not in model.cache:
            model.cache[key] = jax.jit(partial(_run, model.graph, *key))
        return model.cache[key](**_parameters(model), inputs=feeds)  # type: ignore[no-any-return]

    def bounds(self, array: Any) -> tuple[float, float]:
        """Smallest and largest element, of which alone leave the device."""
        low, high = _bounds(array)
        return float(low), float(high)

    def to_onnx(self, model: GraphModel) -> tuple[Any, NameMap]:
        """The float model as ONNX, written from the graph."""
        from isobit_onnx.write.write_onnx import write_onnx

        return write_onnx(model.graph, model.weight)

    def gradient(
        self, model: GraphModel, function: Callable[[Mapping[str, Any]], Any], weights: Batch, feeds: Batch
    ) -> tuple[Any, Mapping[str, Any]]:
        """Value and gradient of a function of the outputs."""
        values = _parameters(model)
        run = partial(_run, model.graph, _kinds(model), (), quantizers=values["quantizers"], inputs=feeds)
        differentiated = jax.value_and_grad(lambda changed: function(run(weights={**values["weights"], **changed})[0]))
        return differentiated(jax.tree.map(jnp.asarray, dict(weights)))


def _kinds(model: GraphModel) -> Kinds:
    return tuple((site, kind_of(encoding)) for site, encoding in model.quantizers.items())


def _parameters(model: GraphModel) -> dict[str, Any]:
    numbers = [numbers_of(model, site) for site in model.quantizers]
    return {"weights": jax.tree.map(jnp.asarray, model.weights), "quantizers": numbers}


def _run(
    graph: Graph, kinds: Kinds, taps: Sequence[Tap], weights: Any, quantizers: Sequence[Numbers], inputs: Any
) -> tuple[dict[str, Any], list[Any]]:
    rounders = {site: partial(apply, kind, numbers) for (site, kind), numbers in zip(kinds, quantizers, strict=True)}
    return run_tapped(graph, lambda node, operands: KERNELS[node.op](node, *operands), weights, rounders, inputs, taps)
