"""The simulator: a Keras model that runs the neutral graph, with the user's variables and with quantizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isobit.encodings import Encoding, Relations
from isobit.errors import DataError, ModelError
from isobit.graph import Graph, Site, Weight, graph_from_record, graph_to_record, to_canonical
from isobit.graph_backend import Tap
from isobit.training import left_grids_noticed
from isobit_tensorflow.kernels.operands import Operand, Rounding
from isobit_tensorflow.simulate.float_weights import FloatWeights
from isobit_tensorflow.simulate.interpreter import run
from isobit_tensorflow.simulate.quantizers import Quantizer
from isobit_tensorflow.simulate.training_pass import TrainingPass
from isobit_tensorflow.simulate.training_watch import PassWatch, watched, without_gradient
from isobit_tensorflow.simulate.variables import VariableSpec, is_distributed, make_variable
from isobit_tensorflow.training import Training

_UNCALIBRATED = (
    "the simulator has no quantizers, so the float network would train: calibrate first, and again after a technique "
    "that has changed it; then sim.model is another one"
)
_OTHER_DEVICES = (
    "the optimizer was made under the scope of a strategy, and the simulator was not: save the simulator and load it "
    "under that scope, or open and calibrate the model and call trainable() there; then compile"
)
_CALLBACKS = 5  # the place of `callbacks` among the arguments of `keras.Model.fit`


@keras.saving.register_keras_serializable("isobit")
class Simulator(keras.Model):  # type: ignore[misc]
    """Takes and returns what the user's model does. Variables have the paths that they have there.

    Edits, and quantizers at new sites, make another simulator that holds the same variables.
    """

    def __init__(
        self,
        graph: Graph | str,
        inputs: Any,
        outputs: Any,
        variables: Mapping[str, keras.Variable] | Sequence[Mapping[str, Any]],
        quantizers: Mapping[Site, Quantizer] | Sequence[Mapping[str, Any]] = (),
        training: Training | Mapping[str, Any] | None = None,
        relations: Relations | Mapping[str, Any] | None = None,
        is_float: bool = False,
        **kwargs: Any,
    ) -> None:
        """Parts as objects, or as the JSON data of `get_config`; `inputs` and `outputs` are structures of names.

        `relations` are those that the encodings have, which training keeps; with `is_float` it trains without any.
        """
        super().__init__(**kwargs)
        self.graph = graph_from_record(json.loads(graph)) if isinstance(graph, str) else graph
        self._inputs_names, self._outputs_names = json.dumps(inputs), json.dumps(outputs)
        if not isinstance(variables, Mapping):
            specs = [VariableSpec(**entry) for entry in variables]
            variables = {spec.name: make_variable(spec) for spec in specs}
        if not isinstance(quantizers, Mapping):
            layers = [keras.saving.deserialize_keras_object(dict(entry)) for entry in quantizers]
            quantizers = {layer.site: layer for layer in layers}
        if not isinstance(training, Training):
            training = Training() if training is None else Training.from_record(training)
        self.behaviour = training.for_graph(self.graph)
        self._names = list(variables)
        self._held = list(variables.values())
        self.quantizer_layers = list(quantizers.values())
        if not isinstance(relations, Relations):
            relations = Relations() if relations is None else Relations.from_record(relations)
        self.relations = relations
        self.link(True)
        self._generators = [keras.random.SeedGenerator(d.seed) for d in self.behaviour.dropouts]
        self._watch: PassWatch | None = None
        self._is_fitting = False
        self._teacher: Callable[[Any, Any], tf.Tensor] | None = None
        self.float_weights: FloatWeights | None = None
        self.is_float, self.is_reloaded = is_float, False
        self.is_superseded = False  # by another simulator of the same model
        self.supports_jit = False  # XLA may divide otherwise; `compile(jit_compile=True)` still asks for it
        self.built = True

    @property
    def parameters(self) -> dict[str, keras.Variable]:
        """Variables by the name that the graph has for them."""
        return dict(zip(self._names, self._held, strict=True))

    @property
    def quantizers(self) -> dict[Site, Quantizer]:
        """Quantizers by site."""
        return {layer.site: layer for layer in self.quantizer_layers}

    def link(self, on: bool) -> None:
        """Let quantizers follow one another as the relations say, or have what they have for themselves."""
        layers, relations = self.quantizers, self.relations
        for layer in layers.values():
            layer.relate()
        for site, layer in layers.items() if on else ():
            related = (relations.ties[site],) if site in relations.ties else relations.products.get(site, ())
            layer.relate(*(layers[other] for other in related))

    @property
    def input_structure(self) -> Any:
        """Input names in the structure that the model takes."""
        return json.loads(self._inputs_names)

    @property
    def output_structure(self) -> Any:
        """Output names in the structure that the model returns."""
        return json.loads(self._outputs_names)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the user's model returns for `inputs`, simulated."""
        named = self._named(inputs)
        if training:
            self._require_current()
            watch = self._watch_passes()
            watch.before()
        outputs = self.run_named(named, training=bool(training))
        if training and not self._is_fitting:  # `fit` looks at the loss
            typed = {name: self._typed(name, named[name]) for name in self.graph.inputs}
            outputs = watch.after(typed, outputs, partial(self._tapped, named))
            if not self._trains:  # a pass may be for its statistics alone: its gradients may not be taken
                outputs = {name: without_gradient(value, _UNCALIBRATED) for name, value in outputs.items()}
        result = keras.tree.map_structure(lambda name: outputs[name], self.output_structure)
        if training and self._teacher is not None:
            self.add_loss(self._teacher(result, inputs))
        return result

    def take_history(self, other: Simulator) -> None:
        """Be what has become of the same model as another simulator is, of which this takes the place or is a copy."""
        self.float_weights, self.is_reloaded = other.float_weights, other.is_reloaded

    def _tapped(self, feeds: Mapping[str, tf.Tensor], tap: Callable[[Tap, Operand], None]) -> None:
        self.run_named(feeds, tap=tap)

    def _watch_passes(self) -> PassWatch:
        """The watch over the passes of a loop that is not `fit`."""
        if self._watch is None:
            grids = [variable for layer in self.quantizer_layers for variable in layer.trainable_variables]
            self._watch = PassWatch(self.parameters, grids)
        return self._watch

    def teach_by(self, teacher: Callable[[Any, Any], tf.Tensor] | None) -> None:
        """Add ``teacher(outputs, inputs)`` to the loss of each pass of training from now on; compile after it."""
        self._teacher = teacher

    def freeze_batch_norms(self) -> None:
        """Normalise by the moving statistics from now on, in training too, and leave them as they are.

        Folding does so at the end, so the last epochs train what will run. In the middle of `fit` as well.
        """
        self.behaviour = replace(self.behaviour, momentum={})
        if self.compiled:
            self.make_train_function(force=True)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """As of any Keras model.

        Raises ModelError before calibration, where the loss is NaN, where `trainable()` made another simulator, and
        for an optimizer from before it, or of a strategy that the simulator is not of.
        """
        if not self._trains:
            raise ModelError(_UNCALIBRATED)
        self._require_current()
        if self.compiled and is_distributed(self.optimizer.iterations) and not self._is_distributed:
            raise ModelError(_OTHER_DEVICES)  # TensorFlow's own is an AssertionError without a word
        if len(args) > _CALLBACKS:
            args = (*args[:_CALLBACKS], watched(args[_CALLBACKS]), *args[_CALLBACKS + 1 :])
        else:
            kwargs["callbacks"] = watched(callbacks)
        self._is_fitting = True
        try:
            return super().fit(*args, **kwargs)
        except ValueError as error:
            if "Unknown variable" not in str(error):
                raise
            raise ModelError(
                "the optimizer was built before trainable(), or for another model, and does not know all that trains "
                "here: make a new one and compile again"
            ) from error
        finally:
            self._is_fitting = False

    @property
    def _trains(self) -> bool:
        """Whether training changes the network that is meant."""
        return bool(self.quantizer_layers) or self.is_float

    @property
    def _is_distributed(self) -> bool:
        return all(is_distributed(variable) for variable in self.trainable_variables)

    def _require_current(self) -> None:
        if self.is_superseded:
            raise ModelError(
                "trainable(), or an edit, has made another simulator around these weights: compile and train what "
                "trainable() returned, which is sim.model"
            )

    def run_named(
        self,
        feeds: Mapping[str, tf.Tensor],
        *,
        training: bool = False,
        tap: Callable[[Tap, Operand], None] | None = None,
        rounding: Mapping[Site, Rounding] | None = None,
        parameters: Mapping[str, Any] | None = None,
        only: Collection[Tap] | None = None,
        part: Graph | None = None,
    ) -> dict[str, tf.Tensor]:
        """Outputs by name from inputs by name; `rounding` stands for the quantizers, each behind its switch.

        Those of a `part` of the graph, where one is given.

        `parameters` stand for the variables by their names. `tap` and `only` are of `isobit.graph_backend.run_graph`.
        """
        if rounding is None:
            rounding = {site: layer.call for site, layer in self.quantizers.items()}
        parameters, training_pass = self.parameters if parameters is None else parameters, None
        if training:
            seeds = {d.name: g for d, g in zip(self.behaviour.dropouts, self._generators, strict=True)}
            training_pass = TrainingPass(self.graph, parameters, self.behaviour, seeds)
        graph = self.graph if part is None else part
        typed = {name: self._typed(name, feeds[name]) for name in graph.inputs}
        return run(graph, parameters, rounding, typed, training_pass, tap, only)

    def _typed(self, name: str, value: Any) -> tf.Tensor:
        dtype = self.graph.tensors[name].dtype
        return tf.cast(value, self.compute_dtype if dtype == "float32" else dtype)

    def _named(self, inputs: Any) -> dict[str, tf.Tensor]:
        structure = self.input_structure
        names = [str(name) for name in keras.tree.flatten(structure)]
        if isinstance(inputs, Mapping) and set(names) <= set(inputs):
            return {name: inputs[name] for name in names}
        if isinstance(inputs, Mapping) and len(names) > 1 and not isinstance(structure, Mapping):
            raise DataError(f"the model's inputs are {', '.join(names)}, and a batch has {', '.join(inputs)}")
        return dict(zip(names, keras.tree.flatten(inputs), strict=True))

    def get_config(self) -> dict[str, Any]:
        """The graph, the variables' names and kinds, quantizers and training behaviour, as JSON data."""
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "graph": json.dumps(graph_to_record(self.graph)),
            "inputs": self.input_structure,
            "outputs": self.output_structure,
            "variables": [VariableSpec.of(n, v).to_record() for n, v in self.parameters.items()],
            "quantizers": [keras.saving.serialize_keras_object(layer) for layer in self.quantizer_layers],
            "training": self.behaviour.to_record(),
            "relations": self.relations.to_record(),
            "is_float": self.is_float,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Simulator:
        """The inverse of `get_config`."""
        config = dict(config)
        config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        return cls(**config)

    def copy(self) -> Simulator:
        """An independent copy, the quantizers' switches included."""
        new_simulator = Simulator.from_config(self.get_config())
        new_simulator.take_history(self)
        for name, variable in new_simulator.parameters.items():
            variable.assign(self.parameters[name])
        for new_layer, layer in zip(new_simulator.quantizer_layers, self.quantizer_layers, strict=True):
            new_layer.take_values(layer)
        return new_simulator

    def build(self, input_shape: Any = None) -> None:
        """Nothing is left to build: every variable is there."""

    def compute_output_spec(self, inputs: Any, training: Any = None) -> Any:
        """Shapes and types from the graph."""
        tensors = {name: self.graph.tensors[tensor] for name, tensor in self.graph.outputs.items()}

        def spec(name: str) -> keras.KerasTensor:
            info = tensors[name]
            shape = tuple(n if isinstance(n, int) else None for n in info.shape or ())
            return keras.KerasTensor(shape, self.compute_dtype if info.dtype == "float32" else info.dtype)

        return keras.tree.map_structure(spec, self.output_structure)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        """What `tf.train.Checkpoint` keeps: it does not look into the lists of a Keras model."""
        children: dict[str, Any] = super()._trackable_children(save_type, **kwargs)
        if save_type == "checkpoint":
            children |= {f"parameter_{i}": variable._value for i, variable in enumerate(self._held)}
            children |= {f"quantizer_{i}": layer for i, layer in enumerate(self.quantizer_layers)}
        return children

    def load_weights_of(self, model: keras.Model) -> None:
        """Take over the weights of a float model that is built as the one that was opened.

        Where batch norms were folded they are folded on the way in. Grids stay as they are; where they fit the weights
        no more a `GridWarning` says so. Raises ModelError, and changes nothing, for another model, and where techniques
        beside folding have changed the simulator.
        """
        self._require_current()
        if self.float_weights is None:
            raise ModelError("a simulator that was read from a file has no float model: load it by isobit.load")
        folded = self.float_weights.folded(model, self.parameters)
        with left_grids_noticed(self._quantized_weights):
            for source, value in folded.items():
                self.parameters[source].assign(value)
        self._count_as_loaded()

    def _quantized_weights(self) -> Iterator[tuple[str, Encoding, Any]]:
        """Each weight with a quantizer, its grid, and its values in canonical layout."""
        parameters = self.parameters
        for site, layer in self.quantizers.items():
            if not isinstance(site, Weight):
                continue
            info = self.graph.weights.get(site.name)
            if info is not None:
                values = parameters[info.source or site.name].numpy()
                yield site.name, layer.encoding, np.asarray(to_canonical(values, info.layout))

    def _count_as_loaded(self) -> None:
        """The weights are no longer those that were opened, and no step of training has changed them."""
        self.is_reloaded, self._watch = True, None

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """As of any Keras model. Raises ModelError for a file of another one, such as the float model's."""
        with self._own_weights(f"{filepath} does not hold", "model.load_weights(path); "):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    def set_weights(self, weights: Any) -> None:
        """As of any Keras model. Raises ModelError for weights of another one, such as the float model's."""
        with self._own_weights("these are not"):
            super().set_weights(weights)

    @contextmanager
    def _own_weights(self, told: str, first: str = "") -> Iterator[None]:
        """What loads weights of this simulator; for others an error that begins as `told` says how theirs come in."""
        try:
            yield
        except ValueError as error:
            raise ModelError(
                f"{told} the weights of this simulator ({str(error).splitlines()[0]}). Those of the float model come "
                f"in by {first}sim.model.load_weights_of(model)"
            ) from error
        self._count_as_loaded()

    def save_own_variables(self, store: Any) -> None:
        """Variables in the order of `get_config`, whichever of them train now."""
        for index, variable in enumerate(self._held):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """What `save_own_variables` wrote. Raises ValueError where that was of a simulator with other variables."""
        if len(store.keys()) != len(self._held):
            raise ValueError(f"it has {len(self._held)} variables, and the file {len(store.keys())}")
        for index, variable in enumerate(self._held):
            variable.assign(store[str(index)])
