"""Observation inside the graph: only minimum, maximum and a strided sample of each tensor leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.backend import Batch, Observer
from isobit.sampling import Sampling, sampling_of
from isobit.statistics import Histogram, MinMax
from isobit_onnx.initializers import add_initializer
from isobit_onnx.reading import infer_shapes
from isobit_onnx.session import Session

_BLOCKED_AFTER = 32  # batches


@dataclass(frozen=True)
class Watched:
    """What a request wants of a value. `kind` is "histogram" (of about `limit` elements), "minmax" or "whole"."""

    value: str
    channel_axis: int | None
    kind: str
    limit: int | None

    @classmethod
    def of(cls, observer: Observer, value: str, channel_axis: int | None) -> Watched:
        """What an observer needs."""
        if isinstance(observer, Histogram):
            return cls(value, channel_axis, "histogram", observer.limit)
        return cls(value, channel_axis, "minmax" if isinstance(observer, MinMax) else "whole", None)


@dataclass(frozen=True)
class _Outputs:
    """Names of the reduced outputs of one watched value, or of the tensor itself; elements of one sample.

    Without a minimum it is 0: the value has none below, and a zero in its sample shows that this one is there.
    """

    minimum: str = ""
    maximum: str = ""
    sample: str = ""
    whole: str = ""
    sample_elements: int = 0


class ObservingSession:
    """A model with reductions as extra outputs, for inputs of one per-sample shape; with whole tensors, for any."""

    def __init__(
        self, model: ir.Model, watched: Sequence[Watched], batch: Batch, providers: Sequence[str] = ()
    ) -> None:
        self.watched, self._providers = watched, providers
        self._base = model
        self._open(batch, zero_is_minimum=True)
        self._whole: Session | None = None

    def _open(self, batch: Batch, *, zero_is_minimum: bool) -> None:
        working = self._base.clone()
        reduced = [item.value for item in self.watched if item.kind != "whole"]
        if reduced and (_set_sample_shapes(working, batch) or not _are_known(working, reduced)):
            infer_shapes(working)
        self._model_outputs = [value.name or "" for value in working.graph.outputs]
        builder = _Reductions(working, zero_is_minimum)
        # onnxruntime visits the last leaves of a graph first: the reductions of the earliest tensors are added last, so
        # that each runs as soon as its tensor is there, and the tensor is freed.
        self._outputs = [builder.add(item) for item in reversed(self.watched)][::-1]
        self._ends = sorted({name for names in self._outputs for name in (names.minimum, names.maximum) if name})
        self._with_zeros = sorted({names.sample for names in self._outputs if names.sample and not names.minimum})
        samples = {names.sample for names in self._outputs if names.sample}
        # Reductions gain most from the blocked layout; where there are none, a short pass is over before that pays.
        after = 0 if self._ends else _BLOCKED_AFTER
        self._session = Session(working, self._providers, plan_memory=False, any_order=samples, blocked_after=after)

    def observe(self, batch: Batch, observers: Sequence[Observer]) -> None:
        """Run one batch and feed every observer, in the order of `watched`."""
        found = self._session.run(batch)
        if not self._is_finite(found):
            # onnxruntime's ReduceMin and ReduceMax pass over NaN, and infinity hides the largest finite value: look at
            # the whole tensors of this batch.
            self._observe_whole(batch, observers)
            return
        if any(found[name].all() for name in self._with_zeros):
            self._open(batch, zero_is_minimum=False)  # zeros are too rare here: look for the minimum
            found = self._session.run(batch)
        for observer, item, names in zip(observers, self.watched, self._outputs, strict=True):
            if names.whole:
                observer.update(_as_float32(found[names.whole]), item.channel_axis)
            elif isinstance(observer, Histogram):
                sample = found[names.sample]
                minimum = float(found[names.minimum]) if names.minimum else 0.0
                elements = names.sample_elements * int(sample.shape[0])  # its own axis 0, which need not be the input's
                observer.absorb(minimum, float(found[names.maximum]), sample, elements)
            else:
                observer.update(np.array([found[names.minimum], found[names.maximum]], np.float32))

    def _is_finite(self, found: Batch) -> bool:
        outputs = (found[name] for name in self._model_outputs)
        return all(isfinite(found[name]) for name in self._ends) and all(
            array.dtype.kind != "f" or np.isfinite(array).all() for array in outputs
        )

    def _observe_whole(self, batch: Batch, observers: Sequence[Observer]) -> None:
        if self._whole is None:
            working = self._base.clone()
            values = ir.convenience.create_value_mapping(working.graph)
            for item in self.watched:
                _expose(working, values[item.value])
            self._whole = Session(working, self._providers)
        found = self._whole.run(batch)
        for observer, item in zip(observers, self.watched, strict=True):
            observer.update(_as_float32(found[item.value]), item.channel_axis)


def _set_sample_shapes(model: ir.Model, batch: Batch) -> bool:
    """Fix every input dimension but the batch, which the sampling steps follow from; says if any was open."""
    changed = False
    for value in model.graph.inputs:
        array = batch.get(value.name or "")
        if array is not None and value.shape is not None and len(value.shape):
            changed |= tuple(value.shape[1:]) != array.shape[1:]
            value.shape = ir.Shape([value.shape[0], *array.shape[1:]])
    return changed


def _are_known(model: ir.Model, names: Sequence[str]) -> bool:
    values = ir.convenience.create_value_mapping(model.graph)
    shapes = [values[name].shape for name in names]
    return all(shape is not None and all(isinstance(n, int) for n in shape[1:]) for shape in shapes)


def _as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(array, np.float32)


def _expose(model: ir.Model, value: ir.Value) -> None:
    if not value.is_graph_output():
        model.graph.outputs.append(value)


def _is_clipped_at_zero(value: ir.Value) -> bool:
    """Whether a value comes out of a node that leaves nothing below zero, and most likely zeros."""
    node = value.producer()
    if node is None or node.op_type != "Clip":
        return node is not None and node.op_type == "Relu"
    bound = node.inputs[1] if len(node.inputs) > 1 else None
    lowest = None if bound is None else ir.convenience.get_const_tensor(bound)
    return lowest is not None and bool((lowest.numpy() == 0).all())


class _Reductions:
    """Adds the reducing nodes of watched values to a graph."""

    def __init__(self, model: ir.Model, zero_is_minimum: bool) -> None:
        self.model, self.zero_is_minimum = model, zero_is_minimum
        self.values = ir.convenience.create_value_mapping(model.graph)

    def add(self, item: Watched) -> _Outputs:
        value = self.values[item.value]
        shape = None if value.shape is None else tuple(n if isinstance(n, int) else None for n in value.shape)
        known = shape is not None and len(shape) >= 2 and all(n is not None for n in shape[1:])
        if item.kind == "whole" or not known or shape is None:
            _expose(self.model, value)
            return _Outputs(whole=item.value)
        maximum = self._reduce("ReduceMax", value)
        if item.kind == "minmax":
            return _Outputs(self._reduce("ReduceMin", value), maximum)
        minimum = "" if self.zero_is_minimum and _is_clipped_at_zero(value) else self._reduce("ReduceMin", value)
        sizes = [n or 1 for n in shape]
        sampling = sampling_of(sizes, item.channel_axis, item.limit)
        elements = int(np.prod(sizes[1:], dtype=np.int64))
        return _Outputs(minimum, maximum, self._sample(value, sampling, len(shape)), sample_elements=elements)

    def _reduce(self, op: str, value: ir.Value) -> str:
        name = f"{value.name}__{op}"
        if name not in self.values:
            self._node(op, [value], name, {"keepdims": 0})
        return name

    def _sample(self, value: ir.Value, sampling: Sampling, rank: int) -> str:
        if sampling.step == 1:
            name = f"{value.name}__all"
            if name not in self.values:
                self._node("Identity", [value], name)
            return name
        name = f"{value.name}__every_{sampling.step}"
        if name in self.values:
            return name
        flat = value
        wanted = 3 if sampling.spatial else 2
        if rank != wanted:
            shape = self._constant(f"{name}_shape", [0, 0, -1] if sampling.spatial else [0, -1])
            flat = self._node("Reshape", [value, shape], f"{name}_flat", output=False)
        numbers = {"start": 0, "end": np.iinfo(np.int64).max, "axis": wanted - 1, "step": sampling.step}
        self._node("Slice", [flat, *(self._constant(f"{name}_{key}", [v]) for key, v in numbers.items())], name)
        return name

    def _node(
        self,
        op: str,
        inputs: list[ir.Value],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        output: bool = True,
    ) -> ir.Value:
        node = ir.Node("", op, inputs, ir.convenience.convert_attributes(attributes or {}), name=f"{name}_node")
        result = node.outputs[0]
        result.name, result.type = name, ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.append(node)
        self.values[name] = result
        if output:
            self.model.graph.outputs.append(result)
        return result

    def _constant(self, name: str, numbers: list[int]) -> ir.Value:
        return add_initializer(self.model.graph, ir.Tensor(np.array(numbers, np.int64), name=name))
