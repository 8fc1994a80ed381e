"""GraphModel: all of `isobit.backend.BackendModel` for a backend whose program is the canonical neutral graph.

What is left to the backend is an `Engine`: running the graph in its framework. An edit that the core has checked is
nothing but its new graph and constants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import ReferenceType, ref

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from isobit.backend import Batch, NameMap
from isobit.edit import Edit
from isobit.edits import plan_edits
from isobit.encoding import Encoding, Encodings
from isobit.errors import DataError, EditError, EncodingError, IsobitError, ModelError
from isobit.feeding import feed
from isobit.formats import isobit_json
from isobit.graph import Graph
from isobit.graph_records import graph_from_record, graph_to_record
from isobit.observer import Request
from isobit.quantizer_checks import check_quantizers
from isobit.running import Tap
from isobit.sites import Site, Tensor

if TYPE_CHECKING:
    from onnx import ModelProto

Array = NDArray[Any]

_LENGTH = 8  # bytes of the state that say how many its JSON has


class Engine(Protocol):
    """A framework, as a GraphModel needs it. One engine serves many models; what it keeps of one is in its `cache`."""

    @property
    def name(self) -> str:
        """The framework's name, for messages."""
        ...

    @property
    def ops(self) -> Collection[str]:
        """The ops of the neutral graph that it runs; the canonical form makes some that no user wrote (HardSwish)."""
        ...

    def native(self, model: GraphModel) -> Any:
        """What the user gets: the model in the framework's own terms, quantizers included."""
        ...

    def run(self, model: GraphModel, feeds: Batch, taps: Sequence[Tap]) -> tuple[Mapping[str, Any], Sequence[Any]]:
        """Outputs by name and the tapped tensors in order (`isobit.running.run_graph`), as arrays that NumPy reads.

        `feeds` has every input in its element type. TypeError and ValueError mean that the batch does not fit.
        """
        ...

    def bounds(self, array: Any) -> tuple[float, float]:
        """The smallest and largest element of a tapped tensor, NaN where it holds NaN."""
        ...

    def to_onnx(self, model: GraphModel) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX: ``isobit_onnx.write.write_onnx.write_onnx(model.graph, model.weight)``."""
        ...


@runtime_checkable
class DifferentiableEngine(Protocol):
    """What makes a GraphModel `isobit.backend.Differentiable`."""

    def gradient(
        self, model: GraphModel, function: Callable[[Mapping[str, Any]], Any], weights: Batch, feeds: Batch
    ) -> tuple[Any, Mapping[str, Any]]:
        """The value of `function` of the outputs and its gradient by each of `weights`; all arguments are checked."""
        ...


class GraphModel:
    """A model that an engine runs. `quantizers` are its encodings by site, and `off` the sites that are switched off.

    `cache` is the engine's: what it compiles for this graph. An edit empties it, a copy shares what is in it.
    """

    gradient: Callable[[Callable[[Mapping[str, Any]], Any], Batch, Batch], tuple[float, Mapping[str, Array]]]

    def __init__(self, engine: Engine, graph: Graph, weights: Mapping[str, Array]) -> None:
        """`weights` are the constants of `graph` in canonical layout. Raises ModelError for an op without a kernel."""
        odd = next((node for node in graph.nodes if node.op not in engine.ops), None)
        if odd is not None:
            raise ModelError(
                f"the {engine.name} backend does not read {odd.op!r} (node {odd.name!r}); "
                f"it reads {', '.join(sorted(engine.ops))}"
            )
        self.engine, self.graph = engine, graph
        self.weights = {name: weights[name] for name in graph.weights}
        self.quantizers: dict[Site, Encoding] = {}
        self.off: set[Site] = set()
        self.cache: dict[Any, Any] = {}
        if isinstance(engine, DifferentiableEngine):  # only then has the model the attribute, which `isinstance` asks
            self.gradient = partial(_gradient, ref(self), engine)  # weak: a model goes with its last user

    @property
    def native(self) -> Any:
        """The model in the framework's own terms, quantizers included."""
        return self.engine.native(self)

    def weight(self, name: str) -> Array:
        """A constant in canonical layout. Raises ModelError for an unknown name."""
        if name not in self.weights:
            raise ModelError(f"no weight {name!r} in the graph")
        return self.weights[name].copy()

    # --- changing --------------------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits, all or none."""
        plan = plan_edits(self.graph, edits, self.weight)
        odd = next((node for node in plan.graph.nodes if node.op not in self.engine.ops), None)
        if odd is not None:
            known = ", ".join(sorted(self.engine.ops))
            raise EditError(
                f"the {self.engine.name} backend cannot make a {odd.op} node ({odd.name!r}); it makes {known}"
            )
        values = {**self.weights, **plan.weights}
        self.graph, self.weights = plan.graph, {name: values[name] for name in plan.graph.weights}
        self.quantizers = {site: e for site, e in self.quantizers.items() if self.graph.has_site(site)}
        self.off &= self.quantizers.keys()
        self.cache = {}

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers; checked against the graph before anything changes."""
        check_quantizers(self.graph, encodings)
        for site, encoding in encodings.items():
            self.off.discard(site)
            if encoding is None:
                self.quantizers.pop(site, None)
            else:
                self.quantizers[site] = encoding

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off."""
        wanted = list(sites)
        for site in wanted:
            if site not in self.quantizers:
                raise EncodingError(f"{str(site)!r} has no quantizer to switch")
        (self.off.difference_update if on else self.off.update)(wanted)

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off."""
        return Encodings(self.quantizers)

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> dict[str, Array]:
        """Outputs by name."""
        return {name: np.asarray(value) for name, value in self._run(batch, ())[0].items()}

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Run every batch; the requested tensors are reduced where they are, and let go."""
        asked = [self._tap(request) for request in requests]
        taps = tuple(dict.fromkeys(tap for tap, _ in asked))
        for batch in data:
            found = dict(zip(taps, self._run(batch, taps)[1], strict=True))
            for (tap, name), request in zip(asked, requests, strict=True):
                feed(request.observer, found[tap], self.graph.tensors[name].channel_axis, self.engine.bounds)

    def feeds(self, batch: Batch) -> dict[str, Array]:
        """The inputs of a batch in their element types. Raises DataError where one is missing."""
        missing = next((name for name in self.graph.inputs if name not in batch), None)
        if missing is not None:
            raise DataError(f"a batch has no array for input {missing!r}")
        return {name: np.asarray(batch[name], self.graph.tensors[name].dtype) for name in self.graph.inputs}

    def _run(self, batch: Batch, taps: tuple[Tap, ...]) -> tuple[Mapping[str, Any], Sequence[Any]]:
        feeds = self.feeds(batch)
        try:
            return self.engine.run(self, feeds, taps)
        except (TypeError, ValueError) as error:
            shapes = {name: value.shape for name, value in feeds.items()}
            raise ModelError(f"the model failed on a batch of shapes {shapes}: {error}") from error

    def _tap(self, request: Request) -> tuple[Tap, str]:
        """Where a request's tensor is met, and the tensor's name."""
        site = request.site
        name = site.name if isinstance(site, Tensor) else self.graph.node(site.node).input(site.index) or ""
        if name not in self.graph.tensors:
            raise EncodingError(f"{str(site)!r} is no tensor of the graph: only tensors have statistics")
        own = request.stage == "after" and site in self.quantizers
        return (site if own else Tensor(name), request.stage), name

    # --- leaving ---------------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, and where each tensor and weight of the graph is in it."""
        return self.engine.to_onnx(self)

    def copy(self) -> GraphModel:
        """An independent copy."""
        twin = GraphModel(self.engine, self.graph, self.weights)
        twin.quantizers, twin.off, twin.cache = dict(self.quantizers), set(self.off), dict(self.cache)
        return twin

    def state(self) -> bytes:
        """Everything, as bytes that `restore` reads: a length, JSON of that many bytes, constants as safetensors."""
        off = [index for index, site in enumerate(self.quantizers) if site in self.off]
        meta = {"graph": graph_to_record(self.graph), "encodings": isobit_json.dumps(self.encodings()), "off": off}
        text = json.dumps(meta).encode()
        arrays = {name: np.asarray(array, order="C") for name, array in self.weights.items()}
        return len(text).to_bytes(_LENGTH, "little") + text + safetensors.numpy.save(arrays)

    @classmethod
    def restore(cls, engine: Engine, state: bytes) -> GraphModel:
        """The model that `state` wrote. Raises ModelError for other bytes."""
        try:
            end = _LENGTH + int.from_bytes(state[:_LENGTH], "little")
            meta = json.loads(state[_LENGTH:end].decode())
            graph = graph_from_record(meta["graph"])
            model = cls(engine, graph, safetensors.numpy.load(state[end:]))
            model.set_quantizers(dict(isobit_json.loads(meta["encodings"], "the state")))
            sites = list(model.quantizers)
            model.enable([sites[index] for index in meta["off"]], on=False)
        except (ValueError, KeyError, IndexError, TypeError, IsobitError, safetensors.SafetensorError) as error:
            raise ModelError(f"these bytes are no state of a {engine.name} model: {error}") from error
        return model


def _gradient(
    reference: ReferenceType[GraphModel], engine: DifferentiableEngine, function: Callable[[Mapping[str, Any]], Any],
    weights: Batch, batch: Batch,
) -> tuple[float, Mapping[str, Array]]:  # fmt: skip
    """`isobit.backend.Differentiable.gradient`, arguments and results checked."""
    model = reference()
    if model is None:
        raise ModelError("this gradient is of a model that is gone: keep the model, not its method")
    for name, value in weights.items():
        if name not in model.weights or not model.graph.weights[name].is_float:
            raise ModelError(f"no float weight {name!r} in the graph")
        shape = model.weights[name].shape
        if value.shape != shape or value.dtype != np.float32 or not np.isfinite(value).all():
            raise ModelError(f"{name!r} must be finite float32 of shape {shape}")

    def checked(outputs: Mapping[str, Any]) -> Any:
        value = function(outputs)
        if getattr(value, "shape", None) != () or isinstance(value, np.ndarray | np.generic):
            raise ModelError(f"the function must return one number as the framework's own tensor, not {value!r}")
        return value

    value, found = engine.gradient(model, checked, weights, model.feeds(batch))
    gradients = {name: np.asarray(gradient, np.float32) for name, gradient in found.items()}
    if not np.isfinite(value) or not all(np.isfinite(gradient).all() for gradient in gradients.values()):
        raise DataError("the value of the function, or a gradient of it, is not finite")
    return float(value), gradients
