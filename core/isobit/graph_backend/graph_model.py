"""GraphModel: all of `isobit.backend.BackendModel` for a backend whose program is the canonical neutral graph.

What is left to the backend is an `Engine`: running the graph in its framework. An edit that the core has checked is
nothing but its new graph and constants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from isobit.backend.checks import check_quantizers
from isobit.backend.contract import NameMap
from isobit.backend.kept_parts import KeptParts
from isobit.data import Batch
from isobit.edits.edit import EditPlan
from isobit.encodings.encoding import Encoding, Encodings
from isobit.errors import IsobitError, ModelError
from isobit.formats import isobit_json
from isobit.graph.graph import Graph
from isobit.graph.records import graph_from_record, graph_to_record
from isobit.graph.sites import Input, Site, Tensor
from isobit.graph_backend.run_graph import Tap
from isobit.statistics.observe_tensor import observe_tensor
from isobit.statistics.observer import Request

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[Any]

_LENGTH = 8  # a state begins with the length of its JSON, in so many bytes


class Engine(Protocol):
    """A framework, as a GraphModel needs it. One engine serves many models; what it keeps of one is in its `cache`."""

    @property
    def name(self) -> str:
        """The name of the backend."""
        ...

    @property
    def ops(self) -> Collection[str]:
        """The ops of the neutral graph that it runs; the canonical form makes some that no user wrote (HardSwish)."""
        ...

    def native(self, model: GraphModel) -> Any:
        """What the user gets: the model in the framework's own terms, quantizers included."""
        ...

    def run(self, model: GraphModel, feeds: Batch, taps: Sequence[Tap]) -> tuple[Mapping[str, Any], Sequence[Any]]:
        """Outputs by name, or the tapped tensors in order (`run_tapped`), as arrays that NumPy reads.

        `feeds` has every input in its element type. TypeError and ValueError mean that the batch does not fit.
        """
        ...

    def bounds(self, array: Any) -> tuple[float, float]:
        """The smallest and largest element of a tapped tensor, NaN where it holds NaN."""
        ...

    def to_onnx(self, model: GraphModel) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX: ``isobit_onnx.write.write_onnx.write_onnx(model.graph, model.weight)``."""
        ...


class DifferentiableEngine(Engine, Protocol):
    """What a `DifferentiableGraphModel` needs."""

    def gradient(
        self, model: GraphModel, function: Callable[[Mapping[str, Any]], Any], weights: Batch, feeds: Batch
    ) -> tuple[Any, Mapping[str, Any]]:
        """The value of `function` of the outputs and its gradient by each of `weights`; all arguments are checked."""
        ...


class GraphModel:
    """A model that an engine runs. `quantizers` are its encodings by site, and `off` the sites that are switched off.

    `cache` is the engine's: what it compiles for this graph. All copies share it until an edit.
    """

    failures = (TypeError, ValueError)

    def __init__(self, engine: Engine, graph: Graph, weights: Mapping[str, Array]) -> None:
        """`weights` are the constants of `graph` in canonical layout. Raises ModelError for an op without a kernel."""
        unsupported = next((node for node in graph.nodes if node.op not in engine.ops), None)
        if unsupported is not None:
            raise ModelError(
                f"the {engine.name} backend does not read {unsupported.op!r} (node {unsupported.name!r}); "
                f"it reads {', '.join(sorted(engine.ops))}"
            )
        self.engine, self.graph = engine, graph
        self.weights = {name: weights[name] for name in graph.weights}
        self.quantizers: dict[Site, Encoding] = {}
        self.off: set[Site] = set()
        self.cache: dict[Any, Any] = {}
        self._parts: KeptParts[GraphModel] = KeptParts()

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self.engine.name

    @property
    def ops(self) -> Collection[str]:
        """The ops that an edit can make new nodes of."""
        return self.engine.ops

    @property
    def native(self) -> Any:
        """The model in the framework's own terms, quantizers included."""
        return self.engine.native(self)

    def weight(self, name: str) -> Array:
        """A constant in canonical layout."""
        return self.weights[name].copy()

    # --- changing --------------------------------------------------------------------------------------------------

    def apply(self, plan: EditPlan) -> None:
        """The plan's graph and constants take the place of this model's."""
        values = {**self.weights, **plan.weights}
        self.graph, self.weights = plan.graph, {name: values[name] for name in plan.graph.weights}
        self.quantizers = {site: e for site, e in self.quantizers.items() if self.graph.has_site(site)}
        self.off &= self.quantizers.keys()
        self.cache = {}
        self._parts.clear()

    @property
    def quantized(self) -> Collection[Site]:
        """The sites that have a quantizer, on or off."""
        return self.quantizers.keys()

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers."""
        for site, encoding in encodings.items():
            self.off.discard(site)
            if encoding is None:
                self.quantizers.pop(site, None)
            else:
                self.quantizers[site] = encoding

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off."""
        (self.off.difference_update if on else self.off.update)(sites)

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off."""
        return Encodings(self.quantizers)

    def grid(self, site: Site) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scale and zero point of the quantizer at a site, in shapes that broadcast against what it rounds."""
        encoding = self.quantizers[site]
        name = (self.graph.node(site.node).inputs[site.index] or "") if isinstance(site, Input) else site.name
        if name in self.weights:
            return encoding.broadcast(self.graph.weights[name].shape)
        dimensions = enumerate(self.graph.tensors[name].shape or ())
        sizes = (
            n if isinstance(n, int) else encoding.scale.size if axis == encoding.axis else 1 for axis, n in dimensions
        )
        return encoding.broadcast(tuple(sizes))

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> dict[str, Array]:
        """Outputs by name."""
        return {name: np.asarray(value) for name, value in self.engine.run(self, batch, ())[0].items()}

    def run_part(self, part: Graph, given: Batch) -> dict[str, Array]:
        """The tensors that the part makes, in front of their quantizers."""
        taps: list[Tap] = [(Tensor(name), "before") for name in part.outputs]
        values = self.engine.run(self._part(part), {name: given[name] for name in part.inputs}, taps)[1]
        return {name: np.asarray(value) for name, value in zip(part.outputs, values, strict=True)}

    def _part(self, part: Graph) -> GraphModel:
        """A model that is the part alone, with the quantizers as they are now."""
        held = self._parts.of(part, lambda graph: GraphModel(self.engine, graph, self.weights))
        held.quantizers = {site: e for site, e in self.quantizers.items() if part.has_site(site)}
        held.off = self.off & held.quantizers.keys()
        return held

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Run every batch; the requested tensors are reduced where they are, and let go."""
        tap_and_name = [self._tap(request) for request in requests]
        taps = tuple(dict.fromkeys(tap for tap, _ in tap_and_name))
        for batch in data:
            tensors = dict(zip(taps, self.engine.run(self, batch, taps)[1], strict=True))
            for (tap, name), request in zip(tap_and_name, requests, strict=True):
                observe_tensor(
                    request.observer, tensors[tap], self.graph.tensors[name].channel_axis, self.engine.bounds
                )

    def _tap(self, request: Request) -> tuple[Tap, str]:
        """Where a request's tensor is met, and the tensor's name."""
        site = request.site
        name = site.name if isinstance(site, Tensor) else self.graph.node(site.node).input(site.index) or ""
        own = request.stage == "after" and site in self.quantizers
        return (site if own else Tensor(name), request.stage), name

    # --- copy and state --------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, and where each tensor and weight of the graph is in it."""
        return self.engine.to_onnx(self)

    def copy(self) -> Self:
        """An independent copy."""
        copied = type(self)(self.engine, self.graph, self.weights)
        copied.quantizers, copied.off, copied.cache = dict(self.quantizers), set(self.off), self.cache
        return copied

    def state(self) -> bytes:
        """Everything, as bytes that `restore` reads: a length, JSON of that many bytes, constants as safetensors."""
        off = [index for index, site in enumerate(self.quantizers) if site in self.off]
        meta = {"graph": graph_to_record(self.graph), "encodings": isobit_json.dumps(self.encodings()), "off": off}
        text = json.dumps(meta).encode()
        arrays = {name: np.asarray(array, order="C") for name, array in self.weights.items()}
        return len(text).to_bytes(_LENGTH, "little") + text + safetensors.numpy.save(arrays)

    @classmethod
    def restore(cls, engine: Engine, state: bytes) -> Self:
        """The model that `state` wrote. Raises ModelError for other bytes."""
        try:
            end = _LENGTH + int.from_bytes(state[:_LENGTH], "little")
            meta = json.loads(state[_LENGTH:end].decode())
            graph = graph_from_record(meta["graph"])
            model = cls(engine, graph, safetensors.numpy.load(state[end:]))
            encodings = isobit_json.loads(meta["encodings"], "the state")
            check_quantizers(graph, encodings)
            model.set_quantizers(encodings)
            sites = list(model.quantizers)
            model.enable([sites[index] for index in meta["off"]], on=False)
        except (ValueError, KeyError, IndexError, TypeError, IsobitError, safetensors.SafetensorError) as error:
            raise ModelError(f"these bytes are no state of a {engine.name} model: {error}") from error
        return model


class DifferentiableGraphModel(GraphModel):
    """A GraphModel that is `isobit.backend.Differentiable`, because its engine has gradients."""

    engine: DifferentiableEngine

    def gradient(
        self, function: Callable[[Mapping[str, Any]], Any], weights: Batch, batch: Batch
    ) -> tuple[float, Mapping[str, Array]]:
        """The value of `function` of the outputs, and its gradient by each of `weights`."""
        return self._derived(self, function, weights, batch)

    def part_error(self, part: Graph, weights: Batch, batch: Batch, wanted: Batch) -> tuple[float, Mapping[str, Array]]:
        """The squared error of a part's outputs, and its gradient: `gradient` of a model that is the part alone."""

        def error(outputs: Mapping[str, Any]) -> Any:
            differences = [outputs[name] - wanted[name] for name in part.outputs]
            return sum((difference * difference).sum() for difference in differences)

        return self._derived(self._part(part), error, weights, batch)

    def _derived(
        self, model: GraphModel, function: Callable[[Mapping[str, Any]], Any], weights: Batch, batch: Batch
    ) -> tuple[float, Mapping[str, Array]]:
        value, gradients = self.engine.gradient(model, function, weights, batch)
        return float(value), {name: np.asarray(gradient, np.float32) for name, gradient in gradients.items()}
