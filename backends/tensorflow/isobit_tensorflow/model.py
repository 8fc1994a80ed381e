"""KerasModel: the contract of `isobit.backend.BackendModel` for Keras on TensorFlow.

The canonical neutral graph is the program. An edit that the core has checked is its new graph and new constants, so
nothing is translated back; the simulator is made anew around the variables that stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.backend import Batch, KeptParts, NameMap
from isobit.backend.quiet_loggers import quiet_loggers
from isobit.edits import EditPlan, ReadWeight
from isobit.encodings import Encoding, Encodings, LearnedGrid, Relations
from isobit.errors import ModelError
from isobit.graph import Graph, Site, find_adapters, to_canonical, to_native
from isobit.statistics import Request
from isobit.training import DistillationSettings
from isobit_tensorflow.export.state import dump
from isobit_tensorflow.given_model import GivenModel, as_array
from isobit_tensorflow.kernels.table import KERNELS
from isobit_tensorflow.simulate.float_weights import FloatWeights, Place
from isobit_tensorflow.simulate.gradient import PartError, gradient
from isobit_tensorflow.simulate.observe import Observation, watched
from isobit_tensorflow.simulate.part import trace_part
from isobit_tensorflow.simulate.quantizers import Quantizer
from isobit_tensorflow.simulate.simulator import Simulator
from isobit_tensorflow.simulate.switch_states import SwitchStates
from isobit_tensorflow.simulate.teacher import Teacher
from isobit_tensorflow.simulate.traced_pass import Switches, TracedPass, trace
from isobit_tensorflow.simulate.variables import VariableSpec, edited, make_variable

if TYPE_CHECKING:
    from onnx import ModelProto

#: What the adapter of a Keras model is called, and the names of its kernels.
_ADAPTER = "lora"
_SMALL = re.compile(r"lora_(kernel|embeddings)_[ab]$")


class KerasModel:
    """An opened Keras model."""

    backend = "tensorflow"
    ops = KERNELS.keys()
    failures = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError, TypeError)

    def __init__(self, native: Simulator, given: GivenModel | None = None, order: Sequence[Place] = ()) -> None:
        """`given` is the user's model that this one was read from, `order` that of its variables, where known."""
        self._native, self._given, self._order = native, given, order
        self._opened = native.graph.weights
        self._relations = native.relations
        self._runs: dict[Switches, TracedPass] = {}
        self._observations: dict[Switches, Observation] = {}
        self._parts: KeptParts[dict[Switches, TracedPass]] = KeptParts()
        self._switch_states = SwitchStates()
        self._errors: KeptParts[PartError] = KeptParts()

    @property
    def graph(self) -> Graph:
        """The neutral graph."""
        return self._native.graph

    @property
    def native(self) -> Simulator:
        """The simulator: a Keras model that takes and returns what the user's does."""
        return self._native

    def weight(self, name: str) -> NDArray[Any]:
        """A constant in canonical layout."""
        info = self.graph.weights[name]
        return np.array(to_canonical(self._native.parameters[info.source or name].numpy(), info.layout))

    # --- changing --------------------------------------------------------------------------------------------------

    def apply(self, plan: EditPlan) -> None:
        """Carry out edits: a simulator of the plan's graph, with the variables that stay."""
        graph, held = edited(plan, self.graph, self._native.parameters)
        quantizers = {s: q for s, q in self._native.quantizers.items() if graph.has_site(s)}
        self._replace(graph, held, quantizers)

    def fold_loaded(self, fold: Callable[[ReadWeight], Mapping[str, NDArray[Any]]]) -> None:
        """Let `load_weights_of` take in weights from before the edits through `fold`."""
        self._native.float_weights = FloatWeights(fold, self._order, self._opened, self.graph.weights)

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers."""
        is_related = self._relations.touch(encodings.keys())
        if is_related:
            self._native.link(False)
        quantizers = self._native.quantizers
        before = set(quantizers)
        moved = False
        for site, encoding in encodings.items():
            old = quantizers.get(site)
            if encoding is None:
                moved |= quantizers.pop(site, None) is not None
            elif old is not None and old.fits(encoding):
                old.set(encoding)
                old.enabled = True
            else:
                quantizers[site] = Quantizer.of(site, encoding)
                moved = True
        if moved or set(quantizers) != before:
            self._replace(self.graph, self._native.parameters, quantizers)
        elif is_related:
            self._keep_relations()

    def relate(self, relations: Relations) -> None:
        """Keep these relations, in training too, wherever the encodings have them."""
        self._native.link(False)
        self._relations = relations
        self._keep_relations()

    def _keep_relations(self) -> None:
        """Link the quantizers by the relations that hold; other ones than before make another simulator."""
        native = self._native
        if self._relations.that_hold(self.encodings()) == native.relations:
            native.link(True)
        else:
            self._replace(self.graph, native.parameters, native.quantizers)

    def learn(self, grids: Mapping[Site, LearnedGrid], sparse: Collection[Site] = ()) -> None:
        """Learn these grids from now on, and no others; the simulator is made anew around the same weights.

        Zeros of the `sparse` weights stay.
        """
        quantizers = {}
        for site, layer in self._native.quantizers.items():
            quantizers[site] = Quantizer.of(site, layer.encoding, grids.get(site), keeps_zeros=site in sparse)
            quantizers[site].enabled = layer.enabled
        self._replace(self.graph, self._native.parameters, quantizers)

    def train_in_float(self) -> None:
        """Let the simulator train without quantizers."""
        self._native.is_float = True

    def learn_by(self, learn: Callable[[], object]) -> None:
        """Nothing: the model that learns is another one, which `sim.trainable()` returns."""

    @property
    def grid_parameters(self) -> list[keras.Variable]:
        """The variables of the grids that are learned."""
        return [variable for layer in self._native.quantizer_layers for variable in layer.trainable_variables]

    @property
    def weight_parameters(self) -> list[keras.Variable]:
        """All other variables that train."""
        return [variable for variable in self._native.parameters.values() if variable.trainable]

    def teacher(self, settings: DistillationSettings, values: Mapping[str, NDArray[Any]]) -> Teacher:
        """A loss by which the float model, as it is now, teaches the simulator."""
        native, held = self._native, dict(self._native.parameters)
        moving = {
            self._source(name) for node in native.behaviour.momentum for name in self.graph.node(node).inputs[3:5]
        }
        changed = {self._source(name): (name, value) for name, value in values.items()}
        for source, variable in native.parameters.items():
            if not (variable.trainable or source in moving or source in changed):
                continue
            array = np.asarray(variable.numpy())
            if source in changed:
                name, value = changed[source]
                array = to_native(np.asarray(value), self.graph.weights[name].layout, array)
            held[source] = make_variable(replace(VariableSpec.of(source, variable), trainable=False), array)
        structures = native.input_structure, native.output_structure
        return Teacher(Simulator(self.graph, *structures, held, dtype=native.dtype_policy), settings)

    def _source(self, name: str | None) -> str:
        return self.graph.weights[name or ""].source or name or ""

    @property
    def adapters(self) -> Sequence[str]:
        """One where layers have LoRA: Keras gives it no name."""
        return (_ADAPTER,) if self.adapter_constants(_ADAPTER) else ()

    @property
    def adapter(self) -> str | None:
        """That one."""
        return next(iter(self.adapters), None)

    def use_adapter(self, name: str) -> None:
        """There is no other to use."""

    def adapter_constants(self, name: str) -> Mapping[str, str]:
        """The small kernels of layers with LoRA, and the biases that train with them, under their own names."""
        small = [name for name in self._native.parameters if _SMALL.search(name)]
        layers = {_SMALL.sub("", name) for name in small}
        parameters = self._native.parameters
        biases = [name for name in (f"{layer}bias" for layer in layers) if name in parameters]
        return {name: name for name in parameters if name in small or (name in biases and parameters[name].trainable)}

    def adapter_weights(self, name: str) -> Mapping[str, NDArray[Any]]:
        """The variables, as Keras lays them out."""
        return {key: np.asarray(self._native.parameters[key].numpy()) for key in self.adapter_constants(name)}

    def adapter_settings(self, name: str) -> Mapping[str, Any]:
        """The factor of each layer, which is no variable of Keras'."""
        factors = {
            adapter.base.name: float(np.asarray(self.graph.value(name)).reshape(()))
            for adapter in find_adapters(self.graph)
            for scale in adapter.scales
            for name in scale.inputs
            if self.graph.value(name) is not None
        }
        return {"library": "keras", "factors": factors}

    def set_adapter_weights(self, name: str, weights: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> None:
        """New values of the variables. Raises ModelError for other factors, which are a part of the graph."""
        own = self.adapter_settings(name)
        if settings and settings.get("factors", own["factors"]) != own["factors"]:
            raise ModelError("the adapter was trained with another lora_alpha: call enable_lora with that one")
        for key, value in weights.items():
            self._native.parameters[key].assign(value)

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off; nothing is rebuilt or traced again."""
        quantizers = self._native.quantizers
        for site in sites:
            quantizers[site].enabled = on

    @property
    def quantized(self) -> Collection[Site]:
        """The sites that have a quantizer, on or off."""
        return self._native.quantizers.keys()

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off, as their variables hold them now."""
        return Encodings({site: layer.encoding for site, layer in self._native.quantizers.items()})

    def _replace(
        self, graph: Graph, variables: Mapping[str, keras.Variable], quantizers: Mapping[Site, Quantizer]
    ) -> None:
        old = self._native
        self._native = Simulator(
            graph,
            old.input_structure,
            old.output_structure,
            variables,
            quantizers,
            old.behaviour,
            self._relations.that_hold({site: layer.encoding for site, layer in quantizers.items()}),
            name=old.name,
            dtype=old.dtype_policy,
        )
        self._native.take_history(old)
        old.is_superseded = True
        self._parts.clear()
        self._errors.clear()
        kept = {"float"} if graph is old.graph else set()  # a pass without quantizers stays what it is
        self._runs = {switches: run for switches, run in self._runs.items() if switches in kept}
        self._observations = {switches: o for switches, o in self._observations.items() if switches in kept}

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Outputs by name, in evaluation mode."""
        switches = self._switches()
        if switches not in self._runs:
            self._runs[switches] = trace(self._native, switches, "outputs", lambda feeds, run: run(feeds))
        with quiet_loggers("tensorflow"):  # it counts functions traced at one line as one that is traced again
            outputs = self._runs[switches](self.feeds(batch))
        return {name: as_array(value) for name, value in outputs.items()}

    @property
    def precision(self) -> str:
        """What the policy of the model computes in."""
        return str(self._native.compute_dtype)

    def run_given(self, batch: Batch, tensors: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Outputs, or these tensors, of the model as it was given. Raises ModelError."""
        if self._given is None or self._native.is_reloaded:
            raise ModelError("it is not at hand" if self._given is None else "other weights were loaded since")
        return self._given.run(batch, tensors)

    def _switches(self) -> Switches:
        """The quantizers of a pass. Where all are off or all are on, the traced pass has no switches."""
        on = self._switch_states.of(self._native.quantizer_layers)
        if not on or on == {False}:
            return "float"
        return "simulated" if on == {True} else "switched"

    def feeds(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The tensors of a batch."""
        return {name: tf.convert_to_tensor(batch[name]) for name in self.graph.inputs}

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Reduce the requested tensors inside a tf.function that returns nothing else."""
        switches = self._switches()
        quantized = () if switches == "float" else self.quantized
        items = tuple(watched(request, self.graph, quantized) for request in requests)
        observation = self._observations.get(switches)
        if observation is None or observation.watched != items:
            observation = Observation(self._native, switches, items)
            self._observations[switches] = observation
        feed = partial(observation.feed, observers=[request.observer for request in requests])
        for batch in data:
            with quiet_loggers("tensorflow"):
                feed(self.feeds(batch))

    def run_part(self, part: Graph, given: Batch) -> dict[str, NDArray[Any]]:
        """The tensors that the part makes, in front of their quantizers, by a trace of its own."""
        traced = self._parts.of(part, lambda part: {})
        switches = self._switches()
        if switches not in traced:
            traced[switches] = trace_part(self._native, switches, part)
        with quiet_loggers("tensorflow"):
            made = traced[switches]({name: tf.convert_to_tensor(given[name]) for name in part.inputs})
        return {name: as_array(value) for name, value in made.items()}

    def gradient(
        self, function: Callable[[Mapping[str, Any]], Any], weights: Batch, batch: Batch
    ) -> tuple[float, Mapping[str, NDArray[np.float32]]]:
        """Value of ``function(outputs)`` with `weights` overridden, and its gradient by each of them."""
        return gradient(self._native, function, weights, self.feeds(batch))

    def part_error(
        self, part: Graph, weights: Batch, batch: Batch, wanted: Batch
    ) -> tuple[float, Mapping[str, NDArray[np.float32]]]:
        """The squared error of a part's outputs, and its gradient by each of `weights`."""
        given = {name: tf.convert_to_tensor(batch[name]) for name in part.inputs}
        return self._errors.of(part, partial(PartError, self._native))(weights, given, wanted)

    # --- leaving ---------------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, and where each tensor and weight of the graph is in it."""
        from isobit_tensorflow.export.to_onnx import to_onnx

        return to_onnx(self._native, self.weight)

    def copy(self) -> KerasModel:
        """An independent copy."""
        copied = KerasModel(self._native.copy(), self._given, self._order)
        copied._opened = self._opened
        copied._relations = self._relations
        return copied

    def state(self) -> bytes:
        """Everything, as bytes."""
        return dump(self._native)
