"""Reading a Keras model: its layers and operations in order, nested models inlined, unknown layers opened."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isobit.errors import ModelError
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Emitter, Value
from isobit_tensorflow.read.inner_layers import inner_layers
from isobit_tensorflow.read.masks import is_masked, masks_read, takes_mask, with_masks, without_masks
from isobit_tensorflow.read.names import StableNames
from isobit_tensorflow.read.open_ranges import OpenRanges, open_ranges
from isobit_tensorflow.read.open_sizes import OpenSizeError, OpenSizes
from isobit_tensorflow.read.parameters import Computed, Parameter, call_traced
from isobit_tensorflow.read.rules.native import whole_layer
from isobit_tensorflow.read.symbolic_arithmetic import symbolic_arithmetic
from isobit_tensorflow.read.tensorflow_calls import tensorflow_calls


class KerasReader:
    """Follows a model from its outputs to its inputs and emits it in execution order.

    `rule_of` gives the rule of a layer or operation; a layer without one is opened. `tensors` are those of the model
    itself, not of what is nested in it, by the name of the graph's tensor, with whether that has the channels first.
    """

    def __init__(self, emitter: Emitter, rule_of: Callable[[Any], Rule | None], names: StableNames) -> None:
        self.emitter, self._rule_of, self._names = emitter, rule_of, names
        self._parameters: Mapping[int, Parameter] = {}  # of the layer that is open
        self._known: dict[Any, Parameter] = {}  # of all layers, by how they were computed
        self._sizes: OpenSizes | None = None  # of the layer that is open, where it computes with open sizes
        self._masks: Mapping[str, Value] = {}  # those that come with the arguments of the current call
        self.tensors: dict[str, tuple[keras.KerasTensor, bool]] = {}

    def read(self, outputs: Any, inputs: Mapping[int, Value], prefix: str = "") -> Any:
        """The values of a structure of Keras tensors; `inputs` are those to start from, by the id of their tensor."""
        values = dict(inputs)
        for number, tensor in enumerate(keras.tree.flatten(outputs)):
            if id(tensor) in self._parameters:  # a layer may give what it holds
                values[id(tensor)] = self._constant(tensor, f"{prefix}output{number}")
            else:
                self._produce(tensor, values, prefix)
        return keras.tree.map_structure(lambda tensor: values[id(tensor)], outputs)

    def _constant(self, tensor: Any, name: str) -> Value:
        """A parameter as the result of a layer."""
        known = self._parameters[id(tensor)]
        settled = known if self._sizes is None else self._sizes.settle(self.emitter, name, known)
        if isinstance(settled, Value):
            return settled
        weight = self.emitter.weight(settled, (), f"{name}/constant")
        return self.emitter.emit("Identity", name, [weight], tuple(settled.shape), str(settled.dtype))

    def _produce(self, tensor: Any, values: dict[int, Value], prefix: str) -> None:
        waiting = [tensor]
        while waiting:
            current = waiting[-1]
            if id(current) in values:
                waiting.pop()
                continue
            node = _node_of(current)
            name = prefix + self.name_of(node.operation)
            args, kwargs, masks = tuple(node.arguments.args), dict(without_masks(node)), masks_read(node)
            read = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, keras.KerasTensor)]
            read += masks.values()
            missing = [tensor for tensor in reversed(read) if id(tensor) not in values]
            if missing:
                waiting += missing
                continue
            self._masks = {values[tensor].name: values[id(mask)] for tensor, mask in masks.items() if tensor in values}
            self._run(node, name, args, kwargs, values)
            if not prefix:
                for tensor in node.output_tensors:
                    value = values[id(tensor)]
                    if isinstance(value, Value):
                        self.tensors.setdefault(value.name, (tensor, value.last))

    def _run(self, node: Any, name: str, args: Any, kwargs: Any, values: dict[int, Value]) -> None:
        def resolved(leaf: Any) -> Any:
            if isinstance(leaf, keras.KerasTensor):
                return values[id(leaf)]
            if tf.is_tensor(leaf) and not isinstance(leaf, keras.Variable):
                known = self._parameters.get(id(leaf))
                known = Computed(leaf.numpy(), ()) if known is None else known
                return known if self._sizes is None else self._sizes.settle(self.emitter, name, known)
            if isinstance(leaf, np.ndarray) and leaf.ndim > 1 and leaf.dtype.kind == "f":
                return Computed(leaf, ())  # which may be the weight of a layer
            return leaf

        arguments, named = keras.tree.map_structure(resolved, (args, kwargs))
        operation = node.operation
        if self._sizes is not None and not isinstance(operation, keras.layers.Layer):
            operation = self._sizes.opened(operation)
        named = dict(with_masks(operation, arguments, named, self._masks))
        result = self.apply(operation, name, arguments, named)
        flat = keras.tree.flatten(result)
        for tensor, value in zip(node.output_tensors, flat, strict=True):
            values[id(tensor)] = value

    def name_of(self, part: Any) -> str:
        """The name of a layer or an operation, which depends on the model alone."""
        return self._names.of_part(part)

    def apply(self, operation: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of one layer or operation on values."""
        _refuse(operation, name, kwargs)
        call = Call(self, operation, name, args, {k: v for k, v in kwargs.items() if k != "training"})
        if not isinstance(operation, keras.layers.Layer):
            return self._read(call)
        before, inside = self.emitter.state(), (self._names, self._parameters, self._sizes, self._masks)
        try:
            return self._read(call)
        except ModelError as error:
            self.emitter.go_back(before)
            self._names, self._parameters, self._sizes, self._masks = inside
            if self._masks and not is_masked(kwargs):
                raise  # a layer inside reads a mask that the call does not name
            try:
                return whole_layer(call, str(error))
            except ModelError as other:
                raise error from other

    def _read(self, call: Call) -> Any:
        """By what the layer or operation is made of."""
        operation, name = call.operation, call.name
        with_mask = isinstance(operation, keras.layers.Layer) and is_masked(call.kwargs)
        if isinstance(operation, keras.Model) and is_functional(operation) and not with_mask:
            return self._inline(operation, name, call.args)
        rule = None if isinstance(operation, keras.Model) else self._rule_of(operation)
        if rule is not None and with_mask and not takes_mask(operation):
            raise ModelError(f"{name!r} ({type(operation).__name__}) reads a mask, which isobit does not")
        result = None if rule is None else rule(call)
        if result is not None:
            return result
        return self.open(operation.call, name, call.args, call.kwargs, operation)

    def _inline(self, model: keras.Model, name: str, args: tuple[Any, ...]) -> Any:
        values = [leaf for leaf in keras.tree.flatten(args) if isinstance(leaf, Value)]
        if len(values) != len(model.inputs):
            raise ModelError(
                f"{name!r}: the nested model takes {len(model.inputs)} tensors, and is given {len(values)}"
            )
        structure = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
        inputs = {id(tensor): value for tensor, value in zip(model.inputs, values, strict=True)}
        return self.read(structure, inputs, f"{name}/")

    def open(
        self, function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], owner: Any
    ) -> Any:
        """A layer or function without a rule: called with symbolic tensors, it shows the operations that it is made of.

        Raises ModelError where it does more than call layers and `keras.ops`.
        """
        values = [leaf for leaf in keras.tree.flatten((args, dict(kwargs))) if isinstance(leaf, Value)]
        open_once = partial(self._open, function, name, args, kwargs, owner)
        usual, second = OpenSizes.of(values, 0, equal=True), OpenSizes.of(values, 1, equal=True)
        before, inside = self.emitter.state(), (self._names, self._parameters, self._sizes)
        try:
            return open_once(usual, is_filled=False)
        except ModelError:
            if not usual.places:
                raise
            self._go_back(before, inside)
        apart = OpenSizes.of(values, 0, equal=False)
        if len(apart.places) > len(usual.places):  # sizes of several tensors, which may be equal
            try:
                return self._open_twice(open_once, name, apart, OpenSizes.of(values, 1, equal=False))
            except OpenSizeError:
                raise
            except ModelError:
                self._go_back(before, inside)
        return self._open_twice(open_once, name, usual, second)

    def _open_twice(self, open_once: Callable[..., Any], name: str, first: OpenSizes, second: OpenSizes) -> Any:
        """With two sets of numbers for the open sizes: what is emitted must not follow from them."""
        before, inside = self.emitter.state(), (self._names, self._parameters, self._sizes)
        open_once(first, is_filled=True)
        emitted = self.emitter.emitted_since(before)
        self._go_back(before, inside)
        result = open_once(second, is_filled=True)
        if self.emitter.emitted_since(before) != emitted:
            raise OpenSizeError(
                f"{name!r} computes with a size that is open, a length or the batch, beyond counting to it"
            )
        return result

    def _go_back(self, before: Mapping[str, Any], inside: Any) -> None:
        self.emitter.go_back({key: copy(value) for key, value in before.items()})
        self._names, self._parameters, self._sizes = inside

    def _open(
        self,
        function: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        owner: Any,
        sizes: OpenSizes,
        *,
        is_filled: bool,
    ) -> Any:
        """With None for the open sizes, or, where `is_filled`, with what stands for them."""
        inputs: dict[int, Value] = {}
        kept_alive = []  # an id is a tensor's only as long as it lives
        masks = self._masks

        def symbolic(leaf: Any) -> Any:
            if not isinstance(leaf, Value):
                return leaf
            tensor = keras.KerasTensor(sizes.filled(leaf) if is_filled else leaf.shape, leaf.dtype)
            inputs[id(tensor)] = leaf
            kept_alive.append(tensor)
            if leaf.name in masks:
                mask = masks[leaf.name]
                shape = sizes.filled(mask, leaf) if is_filled else mask.shape
                tensor._keras_mask = keras.KerasTensor(shape, mask.dtype)
                inputs[id(tensor._keras_mask)] = mask
                kept_alive.append(tensor._keras_mask)
            return tensor

        arguments = keras.tree.map_structure(symbolic, args)
        named = keras.tree.map_structure(symbolic, dict(kwargs))
        if "training" in inspect.signature(function).parameters:
            named["training"] = False
        ranges = OpenRanges(sizes.among(inputs, kept_alive) if is_filled else {})
        with calls_forgotten(owner), symbolic_arithmetic(), tensorflow_calls(), inner_layers(), open_ranges(ranges):
            kind = type(owner).__name__
            try:
                held = list(owner.variables) if isinstance(owner, keras.layers.Layer) else []
                outputs, parameters = call_traced(lambda: function(*arguments, **named), held, self._known)
            except Exception as error:
                reason = _reason(error)
                raise ModelError(
                    f"{name!r} ({kind}) cannot be read: it does more than call layers and keras.ops ({reason}). "
                    "Write its call() with keras.ops and without branches on values, or split it into layers"
                ) from error
            is_doubtful = ranges.is_doubtful or (ranges.is_cut and sizes.are_shared)
            if is_doubtful and sizes.places and not is_filled:
                raise ModelError(f"{name!r} ({kind}) counts to, or cuts at, a size that may be open")
            outside = self._names, self._parameters, self._sizes
            self._names, self._parameters = self._names.within(_operations(outputs, inputs)), parameters
            self._sizes = sizes if is_filled else None
            try:
                return self.read(outputs, inputs, f"{name}/")
            finally:
                self._names, self._parameters, self._sizes = outside


def _reason(error: Exception) -> str:
    """What an error says in one line, without those that Keras puts around it to say which layer was called."""
    lines = [re.sub(r"\x1b\[\d+m", "", line).strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_AROUND)]
    return told[0] if told else type(error).__name__


#: How the lines begin that Keras puts around an error.
_AROUND = ("Exception encountered when calling", "Could not automatically infer the output shape")


def _operations(outputs: Any, inputs: Mapping[int, Value]) -> list[Any]:
    """The layers and operations between tensors."""
    leaves = [leaf for leaf in keras.tree.flatten(outputs) if isinstance(leaf, keras.KerasTensor)]
    seen, waiting, operations = set(inputs), leaves, []
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            node = _node_of(tensor)
            operations.append(node.operation)
            waiting += node.input_tensors
    return operations


def _node_of(tensor: Any) -> Any:
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        raise ModelError(f"a tensor of shape {tuple(tensor.shape)} does not come from the model's inputs")
    return history.operation._inbound_nodes[history.node_index]


@cache
def _functional() -> Any:
    """The class of functional models, which Keras does not export by name."""
    x = keras.Input((1,))
    return type(keras.Model(x, x))


def is_functional(model: keras.Model) -> bool:
    """Whether a model is a graph of layers: Sequential or functional, with the call that these have."""
    kinds: tuple[Any, ...] = (keras.Sequential, _functional())
    return any(isinstance(model, kind) and type(model).call is kind.call for kind in kinds)


@contextmanager
def calls_forgotten(owner: Any) -> Iterator[None]:
    """The symbolic calls leave no trace in the user's layers."""
    layers = list(owner._flatten_layers()) if isinstance(owner, keras.layers.Layer) else []
    counts = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
    try:
        yield
    finally:
        for layer, inbound, outbound in counts:
            del layer._inbound_nodes[inbound:], layer._outbound_nodes[outbound:]


def _refuse(operation: Any, name: str, kwargs: Mapping[str, Any]) -> None:
    """What changes a layer's meaning without being seen in its call."""
    if getattr(operation, "quantization_mode", None) is not None:
        raise ModelError(f"{name!r} was quantized by Keras ({operation.quantization_mode}): open the float model")
    if kwargs.get("training") and not _augments(operation):
        raise ModelError(f"{name!r} is called with training=True: the neutral graph is that of inference")


def _augments(operation: Any) -> bool:
    """Whether a layer trains unless it is told not to, as augmentations do: nobody asked for training in its call."""
    training = inspect.signature(operation.call).parameters.get("training")
    return training is not None and training.default is True
