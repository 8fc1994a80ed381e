"""OpenedModel: the contract of `isobit.backend`. The canonical neutral graph is the program, run by JAX's kernels.

So an edit that the core has checked is nothing but its new graph and constants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from isobit.backend import Batch, NameMap, Request
from isobit.edits import Edit, plan_edits
from isobit.encoding import Encoding, Encodings
from isobit.errors import DataError, EditError, EncodingError, ModelError
from isobit.formats import isobit_json
from isobit.graph import Graph
from isobit.graph_records import graph_from_record, graph_to_record
from isobit.quantizer_checks import check_quantizers
from isobit.sites import Input, Site, Tensor, Weight
from isobit_jax import observing, quantizers
from isobit_jax.kernels import KERNELS
from isobit_jax.native import JaxModel

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[Any]


class OpenedModel:
    """A function opened through its jaxpr."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array]) -> None:
        self.graph, self._weights = graph, dict(weights)
        self._encodings: dict[Site, Encoding] = {}
        self._off: set[Site] = set()
        self._compiled: dict[Any, Callable[..., Any]] = {}

    @property
    def native(self) -> JaxModel:
        """The simulator as a function of its parameters: ``weights`` by name, and ``quantizers``."""
        run = partial(run_graph, self.graph, self._forms())
        return JaxModel(
            lambda params, **inputs: run(params["weights"], params["quantizers"], inputs), self._parameters()
        )

    def weight(self, name: str) -> Array:
        """A constant in canonical layout. Raises ModelError for an unknown name."""
        if name not in self._weights:
            raise ModelError(f"no weight {name!r} in the graph")
        return self._weights[name].copy()

    # --- changing --------------------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits, all or none."""
        plan = plan_edits(self.graph, edits, self.weight)
        odd = next((node for node in plan.graph.nodes if node.op not in KERNELS), None)
        if odd is not None:
            raise EditError(
                f"the JAX backend cannot make a {odd.op} node ({odd.name!r}); it makes {', '.join(KERNELS)}"
            )
        values = {**self._weights, **plan.weights}
        self.graph, self._weights = plan.graph, {name: values[name] for name in plan.graph.weights}
        self._encodings = {site: e for site, e in self._encodings.items() if self.graph.has_site(site)}
        self._compiled = {}

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers; checked against the graph before anything changes."""
        check_quantizers(self.graph, encodings)
        for site, encoding in encodings.items():
            self._off.discard(site)
            if encoding is None:
                self._encodings.pop(site, None)
            else:
                self._encodings[site] = encoding

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off; nothing is compiled again."""
        wanted = list(sites)
        for site in wanted:
            if site not in self._encodings:
                raise EncodingError(f"{str(site)!r} has no quantizer to switch")
        (self._off.difference_update if on else self._off.update)(wanted)

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off."""
        return Encodings(self._encodings)

    def _forms(self) -> Forms:
        return tuple((site, quantizers.Form.of(encoding)) for site, encoding in self._encodings.items())

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> dict[str, Array]:
        """Outputs by name."""
        return self._run(batch)[0]

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Run every batch; the requested tensors are reduced where they are, and let go."""
        taps = [self._tap(request) for request in requests]
        for batch in data:
            found = self._run(batch, tuple(dict.fromkeys(taps)))[1]
            for tap, request in zip(taps, requests, strict=True):
                name = tap[0].name if isinstance(tap[0], Tensor) else self._read(tap[0])
                observing.feed(request.observer, found[tap], self.graph.tensors[name].channel_axis)

    def gradient(
        self, function: Callable[[Mapping[str, Any]], Any], weights: Mapping[str, Array], batch: Batch
    ) -> tuple[float, Mapping[str, Array]]:
        """`isobit.backend.Differentiable`: the value of a function of the outputs, and its gradient by weights."""
        for name, value in weights.items():
            if name not in self._weights or not self.graph.weights[name].is_float:
                raise ModelError(f"no float weight {name!r} in the graph")
            if value.shape != self._weights[name].shape or value.dtype != np.float32 or not np.isfinite(value).all():
                raise ModelError(f"{name!r} must be finite float32 of shape {self._weights[name].shape}")
        held = self._parameters()

        def loss(given: dict[str, Any]) -> Any:
            weights = {**held["weights"], **given}
            value = function(run_graph(self.graph, self._forms(), weights, held["quantizers"], self._feeds(batch)))
            if not isinstance(value, jax.Array) or value.shape != ():
                raise ModelError(f"the function must return one number of JAX, not {value!r}")
            return value

        value, found = jax.value_and_grad(loss)({name: jnp.asarray(array) for name, array in weights.items()})
        if not np.isfinite(value) or not all(np.isfinite(gradient).all() for gradient in found.values()):
            raise DataError("the value of the function, or a gradient of it, is not finite")
        return float(value), {name: np.asarray(gradient) for name, gradient in found.items()}

    def _run(self, batch: Batch, taps: tuple[Tap, ...] = ()) -> Any:
        feeds, parameters = self._feeds(batch), self._parameters()
        key = (self._forms(), taps)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(partial(_tapped, self.graph, *key))
        try:
            outputs, found = self._compiled[key](parameters["weights"], parameters["quantizers"], feeds)
        except (TypeError, ValueError) as error:
            shapes = {name: value.shape for name, value in feeds.items()}
            raise ModelError(f"the model failed on a batch of shapes {shapes}: {error}") from error
        return {name: np.asarray(value) for name, value in outputs.items()}, dict(zip(taps, found, strict=True))

    def _feeds(self, batch: Batch) -> dict[str, Any]:
        missing = next((name for name in self.graph.inputs if name not in batch), None)
        if missing is not None:
            raise DataError(f"a batch has no array for input {missing!r}")
        return {name: jnp.asarray(batch[name], self.graph.tensors[name].dtype) for name in self.graph.inputs}

    def _parameters(self) -> dict[str, Any]:
        numbers = [quantizers.parameters(encoding, s not in self._off) for s, encoding in self._encodings.items()]
        return {"weights": {name: jnp.asarray(value) for name, value in self._weights.items()}, "quantizers": numbers}

    def _read(self, site: Tensor | Input) -> str:
        return site.name if isinstance(site, Tensor) else self.graph.node(site.node).input(site.index) or ""

    def _tap(self, request: Request) -> Tap:
        name = self._read(request.site)
        if name not in self.graph.tensors:
            raise EncodingError(f"{str(request.site)!r} is no tensor of the graph: only tensors have statistics")
        own = request.stage == "after" and request.site in self._encodings
        return (request.site if own else Tensor(name), request.stage)

    # --- leaving ---------------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, written from the graph."""
        from isobit_onnx.writing import write_onnx

        return write_onnx(self.graph, self.weight)

    def copy(self) -> OpenedModel:
        """An independent copy."""
        twin = OpenedModel(self.graph, self._weights)
        twin._encodings, twin._off, twin._compiled = dict(self._encodings), set(self._off), dict(self._compiled)
        return twin

    def state(self) -> bytes:
        """A length, JSON of that many bytes, and the constants as safetensors."""
        off = [index for index, site in enumerate(self._encodings) if site in self._off]
        meta = {"graph": graph_to_record(self.graph), "encodings": isobit_json.dumps(self.encodings()), "off": off}
        text = json.dumps(meta).encode()
        arrays = {name: np.ascontiguousarray(a) for name, a in self._weights.items()}
        return len(text).to_bytes(8, "little") + text + safetensors.numpy.save(arrays)

    @classmethod
    def of_parts(cls, meta: Mapping[str, Any], weights: Mapping[str, Array]) -> OpenedModel:
        """The inverse of `state`."""
        graph = graph_from_record(meta["graph"])
        model = cls(graph, {name: weights[name] for name in graph.weights})
        model.set_quantizers(dict(isobit_json.loads(meta["encodings"], "the state")))
        sites = list(model._encodings)
        model.enable([sites[index] for index in meta["off"]], on=False)
        return model


#: The quantizers of a compiled function.
Forms = tuple[tuple[Site, quantizers.Form], ...]

#: A tensor, or what one reader sees of it, before or after its quantizer.
Tap = tuple[Tensor | Input, str]


def run_graph(
    graph: Graph, forms: Forms, weights: Mapping[str, Any], numbers: Sequence[Any],
    inputs: Mapping[str, Any], tap: Callable[[Tap, Any], None] = lambda tap, value: None,
) -> dict[str, Any]:  # fmt: skip
    """Outputs by name; `numbers` are the quantizers' parameters in the order of `forms`."""
    held = {site: (form, given) for (site, form), given in zip(forms, numbers, strict=True)}
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}

    def rounded(site: Site, value: Any) -> Any:
        return quantizers.apply(*held[site], value) if site in held else value

    def produce(name: str, value: Any) -> None:
        before[name], after[name] = value, rounded(Tensor(name), value)
        tap((Tensor(name), "before"), before[name])
        tap((Tensor(name), "after"), after[name])

    def operand(site: Input, name: str | None) -> Any:
        if name is None:
            return None
        if name in weights:
            return rounded(site if site in held else Weight(name), weights[name])
        if site not in held:
            return after[name]
        own = rounded(site, before[name])
        tap((site, "after"), own)
        return own

    for name in graph.inputs:
        produce(name, inputs[name])
    for node in graph.nodes:
        operands = [operand(Input(node.name, index), name) for index, name in enumerate(node.inputs)]
        produce(node.outputs[0], KERNELS[node.op](node, *operands))
    return {name: after[tensor] for name, tensor in graph.outputs.items()}


def _tapped(
    graph: Graph, forms: Forms, taps: Sequence[Tap], weights: Any, numbers: Any, inputs: Any
) -> tuple[dict[str, Any], list[Any]]:
    found: dict[Tap, Any] = {}

    def tap(key: Tap, value: Any) -> None:
        if key in taps:
            found[key] = value

    outputs = run_graph(graph, forms, weights, numbers, inputs, tap)
    return outputs, [found[key] for key in taps]
