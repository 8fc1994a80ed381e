"""OnnxModel: the contract of `isobit.backend.BackendModel` for ONNX.

The float model is the master. The simulator, a plain QDQ model, is built from it when it is asked for: a rebuild costs
about as much as making a session, and nothing can drift apart.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.backend import Batch, KeptParts, NameMap, OnnxName
from isobit.edits import EditPlan
from isobit.encodings import Encoding, Encodings
from isobit.errors import ModelError
from isobit.graph import Graph, Input, Site, Tensor, Weight, to_canonical
from isobit.statistics import Request, Watched
from isobit_onnx.export.export_qdq import QdqPlan
from isobit_onnx.export.fit_onnxruntime import fit_onnxruntime
from isobit_onnx.export.save_model import self_contained
from isobit_onnx.qdq.inserted import Inserted, Quantized
from isobit_onnx.qdq.writer import insert_quantizers
from isobit_onnx.read.bodies.branches import is_signal
from isobit_onnx.read.initializers import has_large_weights
from isobit_onnx.read.wide_floats import METADATA
from isobit_onnx.run.conditions import ExampleConditions
from isobit_onnx.run.given import run_given
from isobit_onnx.run.observe import ObservingSessions
from isobit_onnx.run.part import ModelPart
from isobit_onnx.run.session import RUN_FAILURES, Session, own_arrays
from isobit_onnx.run.simulator import Simulator
from isobit_onnx.state import dump
from isobit_onnx.translate.edit import apply_edits, set_weights
from isobit_onnx.translate.sites import NativeSite, bind
from isobit_onnx.translate.translate import NativeNodes, Translation, translate, view_chain

#: Sessions kept for other settings of `enable`: float and simulated runs alternate in most work.
_KEPT_SESSIONS = 3

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


class OnnxModel:
    """An opened ONNX model, prepared by `isobit_onnx.read.read_model`, that runs on onnxruntime's `providers`."""

    backend = "onnx"
    ops = None  # what is written in ONNX is not decided by the op alone
    failures = RUN_FAILURES

    def __init__(
        self, float_model: ir.Model, providers: Sequence[str] = (), translation: Translation | None = None
    ) -> None:
        self.float_model, self.providers = float_model, tuple(providers)
        self.translation = translate(float_model) if translation is None else translation
        self.given: Any = None  # the model as the user gave it, where it was opened here
        self._given_runs = 0
        self.conditions: ExampleConditions | None = None  # what every batch must have in common with the example
        self._encodings: dict[Site, Encoding] = {}
        self._off: set[Site] = set()
        self._sessions: dict[frozenset[Site], tuple[Session, Batch]] = {}  # and what they take beside each batch
        self._simulator: Simulator | None = None  # the last that was run
        self._observing: ObservingSessions | None = None  # of the float model
        self._parts: KeptParts[ModelPart] = KeptParts()

    @property
    def graph(self) -> Graph:
        """The neutral graph."""
        return self.translation.graph

    @property
    def native(self) -> onnx.ModelProto:
        """The simulator: a QDQ model that any onnxruntime loads."""
        simulator = self.simulator()
        fit_onnxruntime(simulator)
        return ir.to_proto(simulator)

    def weight(self, name: str) -> NDArray[Any]:
        """A constant in canonical layout."""
        info = self.graph.weights[name]
        tensor = self.float_model.graph.initializers[info.source or name].const_value
        if tensor is None:
            raise ModelError(f"weight {name!r} has no value")
        return np.asarray(to_canonical(tensor.numpy(), info.layout))

    @property
    def example(self) -> Batch | None:
        """What of the example has decided branches; None where nothing was decided by one."""
        batch = self.conditions.batch if self.conditions is not None else None
        if batch is None:
            return None
        signals = {value.name for value in self.float_model.graph.inputs if is_signal(value)}
        return {name: np.zeros_like(array) if name in signals else array for name, array in batch.items()}

    def takes(self, batch: Batch) -> bool:
        """Whether a batch takes the branches that the model holds."""
        return self.conditions is None or self.conditions.broken_by(batch) is None

    # --- changing --------------------------------------------------------------------------------------------------

    def apply(self, plan: EditPlan) -> None:
        """Carry out edits, all or none."""
        if plan.changes_layers_alone(self.graph):
            set_weights(self.float_model, plan, self.graph)
            self.translation = replace(self.translation, graph=plan.graph)
        else:
            edited = apply_edits(self.float_model, self.translation, plan)
            translation = translate(edited)  # may still refuse: nothing was assigned yet
            self.float_model, self.translation = edited, translation
        self._encodings = {site: e for site, e in self._encodings.items() if self.graph.has_site(site)}
        self._off &= self._encodings.keys()
        self._sessions.clear()
        self._simulator, self._observing = None, None
        self._parts.clear()

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers."""
        for site, encoding in encodings.items():
            if encoding is None:
                self._encodings.pop(site, None)
                self._off.discard(site)
            else:
                self._encodings[site] = encoding
        self._sessions.clear()

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off."""
        self._off = self._off.difference(sites) if on else self._off.union(sites)

    @property
    def quantized(self) -> Collection[Site]:
        """The sites that have a quantizer, on or off."""
        return self._encodings.keys()

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off."""
        return Encodings(self._encodings)

    # --- running ---------------------------------------------------------------------------------------------------

    def simulator(self, encodings: Mapping[Site, Encoding] | None = None) -> ir.Model:
        """The float model with the quantizers that are on (or those of `encodings`) as QDQ nodes."""
        return self._quantized(self._active() if encodings is None else encodings)[0]

    def _quantized(self, encodings: Mapping[Site, Encoding]) -> tuple[ir.Model, dict[str, Quantized]]:
        """A copy with these quantizers, and what is quantized for all its readers, by its name in the float model."""
        model, _, inserted = self._written(encodings)
        return model, inserted.quantized

    def _written(self, encodings: Mapping[Site, Encoding]) -> tuple[ir.Model, dict[Site, NativeSite], Inserted]:
        """A copy with these quantizers, where they are in the float model, and what was made of them."""
        model = self.float_model.clone()
        nodes = NativeNodes(model)
        places = {site: bind(nodes, self.translation, site) for site in encodings}
        return model, places, insert_quantizers(model, [(places[site], e) for site, e in encodings.items()])

    def _run_simulator(self, active: Mapping[Site, Encoding]) -> Simulator:
        """The simulator with these quantizers: the last one, where it takes their grids."""
        if self._simulator is None or not self._simulator.take(active):
            model, places, inserted = self._written(active)
            grids = {site: inserted.grids.get(place) for site, place in places.items()}
            self._simulator = Simulator(model, active, grids, inserted.quantized, self.providers)
        return self._simulator

    def _active(self) -> dict[Site, Encoding]:
        return {site: encoding for site, encoding in self._encodings.items() if site not in self._off}

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Outputs by name. Raises DataError for a batch that takes a branch of an If that the model does not hold."""
        if self.conditions is not None:
            self.conditions.check(batch)
        off = frozenset(self._off)
        is_first = off not in self._sessions
        if is_first or self._sessions[off][0].is_lean:
            self.release_sessions()
            while len(self._sessions) >= _KEPT_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            is_lean = is_first and has_large_weights(self.float_model)  # many models are run once, to be checked
            self._sessions[off] = self._opened(is_lean=is_lean)
        session, given = self._sessions[off]
        return own_arrays(session.run({**batch, **given}))

    def run_part(self, part: Graph, given: Batch) -> dict[str, NDArray[Any]]:
        """The tensors that the part makes, in front of their quantizers. Raises ModelError."""
        return self._parts.of(part, self._part).run(self._encodings, self._off, given)

    def _part(self, part: Graph) -> ModelPart:
        return ModelPart(self.float_model, self.translation, part, self.providers)

    def _opened(self, *, is_lean: bool) -> tuple[Session, Batch]:
        """A session of the simulator; one with large weights is not kept for the next, memory matters more."""
        if has_large_weights(self.float_model):
            return Session(self.simulator(), self.providers, is_lean=is_lean), {}
        simulator = self._run_simulator(self._active())
        return simulator.session(), simulator.feeds

    def release_sessions(self) -> None:
        """Let go sessions of a model with large weights, of which each holds copies in its own layout."""
        if has_large_weights(self.float_model):
            self._sessions.clear()
            self._parts.clear()
            self._observing = None
            gc.collect()  # graphs refer to themselves: copies that are done with hold their arrays until then

    @property
    def given_types(self) -> Collection[str]:
        """The types of the layers in the model as given, where float32 was put in their place."""
        return self.float_model.metadata_props.get(METADATA, "").split(", ")

    def run_given(self, batch: Batch, tensors: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Outputs, or these tensors, of the model as it was given. Raises ModelError."""
        if self.given is None:
            raise ModelError("it is not at hand")
        self.release_sessions()  # not beside another copy of large weights
        self._given_runs += 1
        values = {t: self.translation.values[t] for t in tensors}
        return run_given(self.given, batch, values, self.providers, self._given_runs)

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Reduce the requested tensors inside the graph.

        Sessions of the float model serve later passes that want the same: a calibration with other data makes none.
        """
        active = self._active_before(requests)
        kept = self._run_simulator(active) if active and not has_large_weights(self.float_model) else None
        if kept is not None:
            simulator, quantized = kept.model, kept.quantized
        else:
            simulator, quantized = self._quantized(active) if active else (self.float_model, {})
        values = ir.convenience.create_value_mapping(simulator.graph)
        nodes = NativeNodes(self.float_model), NativeNodes(simulator)
        watched = tuple(self._watch(*nodes, values, quantized, request) for request in requests)
        sessions = self._observing if kept is None else kept.observing
        if (active and kept is None) or sessions is None or sessions.watched != watched:
            sessions = ObservingSessions(simulator, watched, self.providers)
        if kept is not None:
            kept.observing = sessions
        elif not active:
            self._observing = sessions
        observers, given = [request.observer for request in requests], {} if kept is None else kept.feeds
        for batch in data:
            if self.conditions is not None:
                self.conditions.check(batch)
            sessions.observe(batch, observers, given)

    def _active_before(self, requests: Sequence[Request]) -> dict[Site, Encoding]:
        """The quantizers that are on; where whole tensors alone are wanted, those that these depend on."""
        active = self._active()
        if not active or any(request.observer.wants != "tensor" for request in requests):
            return active
        sites = [request.site for request in requests]
        readers = {site.node for site in sites if isinstance(site, Input)}
        tensors = {site.name for site in sites if isinstance(site, Tensor)}
        tensors.update(name for node in readers for name in self.graph.node(node).inputs if name is not None)
        nodes = self.graph.before(tensors) | readers
        tensors.update(name for node in nodes for name in self.graph.node(node).inputs if name is not None)

        def matters(site: Site) -> bool:
            return site.node in nodes if isinstance(site, Input) else site.name in tensors

        return {site: encoding for site, encoding in active.items() if matters(site)}

    def _watch(
        self,
        nodes: NativeNodes,
        simulated: NativeNodes,
        values: Mapping[str, ir.Value],
        quantized: Mapping[str, Quantized],
        request: Request,
    ) -> Watched[str]:
        site = request.site
        native = bind(nodes, self.translation, site)
        tensor = site.name if isinstance(site, Tensor) else self.graph.node(site.node).input(site.index) or ""
        source, result = quantized.get(native.value) or (values[native.value],) * 2
        value = source
        if request.stage == "after":  # where nothing reads the result of a quantizer, it is gone
            value = _read(simulated, native) or (result if result.name in values else source)
        return Watched.of(request.observer, value.name or native.value, self.graph.tensors[tensor].channel_axis)

    # --- export ----------------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[onnx.ModelProto, NameMap]:
        """The float model and the names of every tensor and weight in it."""
        nodes = NativeNodes(self.float_model)
        names: dict[Site, OnnxName] = {Tensor(t): OnnxName(v) for t, v in self.translation.values.items()}
        for name, info in self.graph.weights.items():
            names[Weight(name)] = OnnxName(info.source or name, info.layout)
        for node in self.graph.nodes:
            for index in range(len(node.inputs)):
                site = Input(node.name, index)
                if node.inputs[index] is not None:
                    readers = bind(nodes, self.translation, site).readers
                    if readers:
                        names[site] = OnnxName(readers[0][0], input=readers[0][1])
        return self_contained(self.float_model), names

    def inner_values(self) -> dict[str, str]:
        """Values before a reshape inside one neutral node: the runtime's kernel for the rest ends there."""
        natives = {node.name: node for node in self.float_model.graph}
        tensors = {}
        for node in self.graph.nodes:
            last = natives[node.parts[-1]]
            inner = last.inputs[0] if len(node.parts) > 1 and last.op_type in _VIEWS else None
            if inner is not None and inner.name:
                tensors[inner.name] = node.outputs[0]
        return tensors

    def qdq_plan(self, encodings: Mapping[Site, Encoding]) -> QdqPlan:
        """Where the quantizers of an export go, those of values inside neutral nodes too."""
        float_model = self.float_model.clone()
        nodes = NativeNodes(float_model)
        placed = [(bind(nodes, self.translation, site), encoding) for site, encoding in encodings.items()]
        inner = self.inner_values().items()
        interior = {name: encodings[Tensor(tensor)] for name, tensor in inner if Tensor(tensor) in encodings}
        return QdqPlan(float_model, placed, interior)

    def copy(self) -> OnnxModel:
        """An independent copy."""
        other = OnnxModel(self.float_model.clone(), self.providers, self.translation)  # which holds names alone
        other.set_state(self._encodings, self._off)
        other.given, other.conditions = self.given, self.conditions
        return other

    def set_state(self, encodings: Mapping[Site, Encoding], off: Iterable[Site]) -> None:
        """Take over the quantizers of another model of the same graph."""
        self.set_quantizers({**dict.fromkeys(self._encodings), **encodings})
        self._off = set(off)
        self._sessions.clear()

    def state(self) -> bytes:
        """Everything, as bytes."""
        decided = self.conditions.decided if self.conditions is not None else ()
        return dump(self.float_model, self._encodings, self._off, decided)


def _read(nodes: NativeNodes, native: NativeSite) -> ir.Value | None:
    """The value that the reader of a site sees in the simulator; None where it is not one reader's."""
    if not native.readers:
        return None
    node, index = native.readers[0]
    value = nodes[node].inputs[index]
    for link in [] if value is None else view_chain(value):  # it may read a view, which has other axes
        producer = link.producer()
        if link.name == native.value or (producer is not None and producer.op_type in ("DequantizeLinear", "Cast")):
            return link
    return value
