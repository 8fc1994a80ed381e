"""KerasModel: the contract of `isobit.backend.BackendModel` for Keras on TensorFlow.

The canonical neutral graph is the program. An edit that the core has checked is its new graph and new constants, so
nothing is translated back; the simulator is made anew around the variables that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.backend import Batch, NameMap
from isobit.edit import Edit
from isobit.edits import plan_edits
from isobit.encoding import Encoding, Encodings
from isobit.errors import DataError, EditError, EncodingError, ModelError
from isobit.graph import Graph, WeightInfo
from isobit.layout import resized, to_canonical, to_native
from isobit.observer import Request
from isobit.quantizer_checks import check_quantizers
from isobit.sites import Site
from isobit_tensorflow.export.state import dump
from isobit_tensorflow.kernels.operands import Rounding
from isobit_tensorflow.kernels.table import is_known, known_ops
from isobit_tensorflow.simulate.observe import Observation, Watched
from isobit_tensorflow.simulate.quantizers import Quantizer
from isobit_tensorflow.simulate.simulator import Simulator
from isobit_tensorflow.simulate.variables import VariableSpec, make_variable

if TYPE_CHECKING:
    from onnx import ModelProto

#: The quantizers of a pass: none of them on, all of them, or some.
Switches = Literal["float", "simulated", "switched"]


class KerasModel:
    """An opened Keras model."""

    def __init__(self, native: Simulator) -> None:
        self._native = native
        self._runs: dict[Switches, Any] = {}
        self._observations: dict[Switches, Observation] = {}

    @property
    def graph(self) -> Graph:
        """The neutral graph."""
        return self._native.graph

    @property
    def native(self) -> Simulator:
        """The simulator: a Keras model that takes and returns what the user's does."""
        return self._native

    def weight(self, name: str) -> NDArray[Any]:
        """A constant in canonical layout. Raises ModelError for an unknown name."""
        info = self.graph.weights.get(name)
        if info is None:
            raise ModelError(f"no weight {name!r} in the graph")
        return np.array(to_canonical(self._native.parameters[info.source or name].numpy(), info.layout))

    # --- changing --------------------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits, all or none."""
        plan = plan_edits(self.graph, edits, self.weight)
        for node in plan.graph.nodes:
            if not is_known(node.op):
                raise EditError(
                    f"the TensorFlow backend cannot make a {node.op} node ({node.name!r}); it makes {known_ops()}"
                )
        variables = self._native.parameters
        values: dict[str, NDArray[Any]] = {}
        infos = dict(plan.graph.weights)
        for name, value in plan.weights.items():
            if name not in infos:
                continue  # a later edit of the same list removed it again
            info = infos[name] = _fitted(infos[name], self.graph.weights.get(name))
            source = info.source or name
            old = values.get(source)
            if old is None and source in variables:
                old = variables[source].numpy()
            values[source] = to_native(np.asarray(value), info.layout, old)
        graph = replace(plan.graph, weights=infos)
        kept = {info.source or name for name, info in graph.weights.items()}
        held = {source: _changed(source, variables, values) for source in variables | values if source in kept}
        quantizers = {s: q for s, q in self._native.quantizers.items() if graph.has_site(s)}
        self._replace(graph, held, quantizers)

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers; checked against the graph before anything changes."""
        check_quantizers(self.graph, encodings)
        quantizers = self._native.quantizers
        before = set(quantizers)
        moved = False
        for site, encoding in encodings.items():
            old = quantizers.get(site)
            if encoding is None:
                moved |= quantizers.pop(site, None) is not None
            elif old is not None and old.fits(encoding) and encoding.scale.shape == tuple(old.scale.shape):
                old.set(encoding)
                old.enabled = True
            else:
                quantizers[site] = Quantizer.of(site, encoding)
                moved = True
        if moved or set(quantizers) != before:
            self._replace(self.graph, self._native.parameters, quantizers)

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off; nothing is rebuilt or traced again."""
        wanted, known = list(sites), self._native.quantizers
        for site in wanted:
            if site not in known:
                raise EncodingError(f"{str(site)!r} has no quantizer to switch")
        for site in wanted:
            known[site].enabled = on

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
            name=old.name,
            dtype=old.dtype_policy,
        )
        kept = {"float"} if graph is old.graph else set()  # a pass without quantizers stays what it is
        self._runs = {switches: run for switches, run in self._runs.items() if switches in kept}
        self._observations = {switches: o for switches, o in self._observations.items() if switches in kept}

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Outputs by name, in evaluation mode."""
        native, (switches, rounding) = self._native, self._rounding()
        if switches not in self._runs:
            self._runs[switches] = tf.function(
                lambda feeds: native.run_named(feeds, rounding=rounding),
                input_signature=self._signature(),
                autograph=False,
            )
        found = _evaluated(self._runs[switches], self.feeds(batch))
        return {name: np.asarray(value.numpy()) for name, value in found.items()}

    def _rounding(self) -> tuple[Switches, Mapping[Site, Rounding]]:
        """The quantizers of a pass. Where all are off or all are on, the traced pass has no switches."""
        layers = self._native.quantizers
        on = {layer.enabled for layer in layers.values()}
        if not on or on == {False}:
            return "float", {}
        if on == {True}:
            return "simulated", {site: layer.rounded for site, layer in layers.items()}
        return "switched", {site: layer.call for site, layer in layers.items()}

    def _signature(self) -> list[dict[str, tf.TensorSpec]]:
        """Inputs of any batch size: a smaller last batch is traced no second time."""
        specs = {}
        for name in self.graph.inputs:
            info = self.graph.tensors[name]
            shape = info.shape and [n if axis and isinstance(n, int) else None for axis, n in enumerate(info.shape)]
            specs[name] = tf.TensorSpec(shape, info.dtype)
        return [specs]

    def feeds(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The tensors of a batch. Raises DataError where an input is missing."""
        missing = [name for name in self.graph.inputs if name not in batch]
        if missing:
            raise DataError(f"a batch has no array for input {missing[0]!r}")
        return {
            name: tf.convert_to_tensor(np.asarray(batch[name], self.graph.tensors[name].dtype))
            for name in self.graph.inputs
        }

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Reduce the requested tensors inside a tf.function that returns nothing else."""
        switches, rounding = self._rounding()
        watched = tuple(Watched.of(request, self.graph, rounding) for request in requests)
        observation = self._observations.get(switches)
        if observation is None or observation.watched != watched:
            observation = Observation(self._native, rounding, watched, self._signature())
            self._observations[switches] = observation
        feed = partial(observation.feed, observers=[request.observer for request in requests])
        for batch in data:
            _evaluated(feed, self.feeds(batch))

    # --- leaving ---------------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, and where each tensor and weight of the graph is in it."""
        from isobit_tensorflow.export.to_onnx import to_onnx

        return to_onnx(self._native, self.weight)

    def copy(self) -> KerasModel:
        """An independent copy."""
        return KerasModel(self._native.copy())

    def state(self) -> bytes:
        """Everything, as bytes."""
        return dump(self._native)


def _fitted(info: WeightInfo, before: WeightInfo | None) -> WeightInfo:
    """A constant whose shape has changed: its layout follows, or it is kept as it is canonical from now on."""
    if before is None or before.shape == info.shape or not info.layout:
        return info
    try:
        return replace(info, layout=resized(info.layout, info.shape))
    except ValueError:
        return replace(info, layout=())


def _changed(
    source: str, variables: Mapping[str, keras.Variable], values: Mapping[str, NDArray[Any]]
) -> keras.Variable:
    """A variable with its new value: the same object where the shape stays, a new one where it does not."""
    old, value = variables.get(source), values.get(source)
    if old is not None and value is None:
        return old
    assert value is not None
    if old is None:
        trainable = value.dtype == np.float32
        return make_variable(VariableSpec(source, value.shape, str(value.dtype), trainable), value)
    if tuple(old.shape) == value.shape:
        old.assign(value)
        return old
    return make_variable(VariableSpec(source, value.shape, VariableSpec.of(source, old).dtype, old.trainable), value)


def _evaluated(function: Any, feeds: dict[str, tf.Tensor]) -> Any:
    try:
        return function(feeds)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, ValueError, TypeError) as error:
        shapes = {name: tuple(value.shape) for name, value in feeds.items()}
        raise ModelError(f"the model failed on a batch of shapes {shapes}: {str(error).splitlines()[0]}") from error
