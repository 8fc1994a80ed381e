"""Observation inside the graph: only minimum, maximum and a strided sample of each tensor leave it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit.statistics import Observer, Sampling, Watched, sampling_of
from isobit.statistics.sampling import is_spatial
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.read_model import infer_shapes
from isobit_onnx.read.unused_nodes import remove_unused
from isobit_onnx.run.session import Session, gains_from_blocks

_BLOCKED_AFTER = 32  # batches

#: Sizes, and names of sizes that the inputs have.
_Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class _Outputs:
    """Names of the reduced outputs of one watched value, or of the tensor itself; its shape behind the batch.

    An empty `minimum` stands for 0: nothing in the value is below zero, and a zero in its sample shows that zero is
    reached. Where the shape depends on the batch, `step` is the input that says how far apart the elements of the
    sample lie, and `size` the output with the value's shape. `mean` and `count` are the means of its channels, and the
    number of all its elements; `moments` are minima, maxima, means and mean squares of the channels of each sample.
    """

    minimum: str = ""
    maximum: str = ""
    sample: str = ""
    whole: str = ""
    step: str = ""
    size: str = ""
    shape: _Dims = ()
    mean: str = ""
    count: str = ""
    moments: tuple[str, ...] = ()


class ObservingSessions:
    """The session that observes a model on batches of all shapes, or one for each per-sample shape of the inputs.

    One serves all shapes where the named sizes of every reduced tensor are sizes of inputs. A file may give names that
    are not true: from the first batch that contradicts them, each shape of the inputs has a session of its own.
    """

    def __init__(self, model: ir.Model, watched: tuple[Watched[str], ...], providers: Sequence[str] = ()) -> None:
        self.watched = watched
        self._model, self._providers = model, providers
        self._any_shape = _serves_any_shape(model, watched)
        self._sessions: dict[Any, ObservingSession] = {}

    def observe(self, batch: Batch, observers: Sequence[Observer], given: Batch | None = None) -> None:
        """Run one batch and feed every observer, in the order of `watched`; `given` are inputs that are no data."""
        beside = {} if given is None else given
        if self._any_shape and not self._session((), batch).observe(batch, observers, beside):
            self._any_shape = False
            self._sessions.clear()
        if not self._any_shape:
            key = tuple(sorted((name, array.shape[1:]) for name, array in batch.items()))
            self._session(key, batch).observe(batch, observers, beside)

    def _session(self, key: Any, batch: Batch) -> ObservingSession:
        if key not in self._sessions:
            self._sessions[key] = ObservingSession(
                self._model, self.watched, batch, self._providers, any_shape=self._any_shape
            )
        return self._sessions[key]


class ObservingSession:
    """A model with reductions as extra outputs, for inputs of one per-sample shape, or of any (`_serves_any_shape`)."""

    def __init__(
        self,
        model: ir.Model,
        watched: Sequence[Watched[str]],
        batch: Batch,
        providers: Sequence[str] = (),
        *,
        any_shape: bool = False,
    ) -> None:
        self.watched, self._providers = watched, providers
        self._base = model
        self._any_shape = any_shape
        self._open(batch, zero_is_minimum=True)
        self._whole: Session | None = None

    def _open(self, batch: Batch, *, zero_is_minimum: bool) -> None:
        working = self._base.clone()
        reduced = [item.place for item in self.watched if item.wants != "tensor"]
        if not self._any_shape and (_set_sample_shapes(working, batch) or not _are_known(working, reduced)):
            infer_shapes(working)
        if self.watched and not reduced:  # outputs that no observer reads need not be computed
            working.graph.outputs.clear()
        self._model_outputs = [value.name or "" for value in working.graph.outputs]
        builder = _Reductions(working, self.watched, zero_is_minimum, self._any_shape)
        # onnxruntime visits the last leaves of a graph first: the reductions of the earliest tensors are added last, so
        # that each runs as soon as its tensor is there, and the tensor is freed.
        self._outputs = [builder.add(item) for item in reversed(self.watched)][::-1]
        remove_unused(working)
        self._ends = sorted({name for names in self._outputs for name in (names.minimum, names.maximum) if name})
        self._with_zeros = sorted({names.sample for names in self._outputs if names.sample and not names.minimum})
        # Not a tensor that leaves as it is: others may want it too, in its own order.
        samples = {
            o.sample for o, item in zip(self._outputs, self.watched, strict=True) if o.sample not in ("", item.place)
        }
        # Reductions gain from the blocked layout; where there are none, a short pass is over before that pays.
        after = None if self._ends else _BLOCKED_AFTER
        is_reducing = any(names.sample for names in self._outputs)
        self._session = Session(
            working,
            self._providers,
            plan_memory=False,
            any_order=samples,
            is_reducing=is_reducing,
            blocked_after=after,
        )

    def observe(self, batch: Batch, observers: Sequence[Observer], given: Batch) -> bool:
        """Run one batch, with what is `given` beside it, and feed every observer, in the order of `watched`.

        False where a tensor has not the sizes that its names promise: nothing is observed then.
        """
        sizes = _sizes(self._base, batch)
        feeds = {**batch, **given, **self._steps(sizes)}
        values = self._session.run(feeds)
        if any(values[o.size][1:].tolist() != _resolved(o.shape, sizes) for o in self._outputs if o.size):
            return False
        if not self._is_finite(values):
            # onnxruntime's ReduceMin and ReduceMax pass over NaN, and infinity hides the largest finite value: look at
            # the whole tensors of this batch.
            self._observe_whole({**batch, **given}, observers)
            return True
        if any(values[name].all() for name in self._with_zeros):
            self._open(batch, zero_is_minimum=False)  # zeros are too rare here: look for the minimum
            values = self._session.run(feeds)
        for observer, item, names in zip(observers, self.watched, self._outputs, strict=True):
            if names.whole:
                observer.update(_as_float32(values[names.whole]), item.channel_axis)
            elif observer.wants == "means":
                means = values[names.mean]
                if not values[names.count]:
                    continue  # nothing was found in this batch, and nothing has no mean
                if item.channel_axis != 0:  # of each sample: few enough to be added in float64
                    means = np.asarray(np.mean(means, axis=0, dtype=np.float64, keepdims=means.ndim == 1))
                observer.add_means(means, int(values[names.count]) // means.size)
            elif observer.wants == "moments":
                by_sample = [values[name] for name in names.moments]
                if values[names.count]:  # nothing has no mean
                    observer.add_moments(_moments(by_sample), int(values[names.count]) // by_sample[0].shape[1])
            elif observer.wants == "sample":
                sample = values[names.sample]
                minimum = float(values[names.minimum]) if names.minimum else 0.0
                # the value's own axis 0, which need not be the input's
                elements = prod(_resolved(names.shape, sizes)) * int(sample.shape[0])
                observer.absorb(minimum, float(values[names.maximum]), sample, elements)
            elif observer.wants == "bounds":
                observer.add(float(values[names.minimum]), float(values[names.maximum]))
        return True

    def _steps(self, sizes: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
        """How far apart the elements of each sample lie, for tensors of this batch's shapes."""
        return {
            names.step: np.array(
                [sampling_of([1, *_resolved(names.shape, sizes)], item.channel_axis, item.limit).step], np.int64
            )
            for item, names in zip(self.watched, self._outputs, strict=True)
            if names.step
        }

    def _is_finite(self, values: Batch) -> bool:
        outputs = (values[name] for name in self._model_outputs)
        return all(isfinite(values[name]) for name in self._ends) and all(
            array.dtype.kind != "f" or np.isfinite(array).all() for array in outputs
        )

    def _observe_whole(self, feeds: Batch, observers: Sequence[Observer]) -> None:
        if self._whole is None:
            working = self._base.clone()
            values = ir.convenience.create_value_mapping(working.graph)
            for item in self.watched:
                _expose(working, values[item.place])
            self._whole = Session(working, self._providers)
        tensors = self._whole.run(feeds)
        for observer, item in zip(observers, self.watched, strict=True):
            observer.update(_as_float32(tensors[item.place]), item.channel_axis)


def _serves_any_shape(model: ir.Model, watched: Sequence[Watched[str]]) -> bool:
    """Whether one session observes inputs of all shapes.

    It does where the sizes of all reduced tensors are those of inputs, known for each batch. Where onnxruntime works in
    blocked layout it must know them when the session is made.
    """
    reduced = [item.place for item in watched if item.wants != "tensor"]
    if reduced and gains_from_blocks(model, is_reducing=True):
        return False
    values, inputs = ir.convenience.create_value_mapping(model.graph), _input_dims(model)
    return all(_sample_dims(values[name], inputs) is not None for name in reduced)


def _input_dims(model: ir.Model) -> dict[str, tuple[str, int]]:
    """The first input and axis that has each named size."""
    places: dict[str, tuple[str, int]] = {}
    for value in model.graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value:
                places.setdefault(size.value, (value.name or "", axis))
    return places


def _sizes(model: ir.Model, batch: Batch) -> dict[str, int]:
    """The named sizes of a batch; onnxruntime refuses one that lacks an input or has it in another rank."""
    shapes = {name: np.shape(array) for name, array in batch.items()}
    places = _input_dims(model).items()
    return {size: shapes[name][axis] for size, (name, axis) in places if axis < len(shapes.get(name, ()))}


def _sample_dims(value: ir.Value, named: Collection[str] = ()) -> _Dims | None:
    """The sizes behind the batch, as numbers or as names of `named`; None where they are unknown, or there is none."""
    if value.shape is None or len(value.shape) < 2:
        return None
    sizes = tuple(size if isinstance(size, int) else size.value for size in value.shape[1:])
    dims = tuple(size for size in sizes if isinstance(size, int) or (size in named and size is not None))
    return dims if len(dims) == len(sizes) else None


def _resolved(dims: _Dims, sizes: Mapping[str, int]) -> list[int]:
    return [sizes.get(size, 1) if isinstance(size, str) else size for size in dims]


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
    return all(_sample_dims(values[name]) is not None for name in names)


def _moments(by_sample: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Minima, maxima, means and mean squares (4, channels), from those of each sample: few enough for float64."""
    low, high, mean, square = (np.asarray(array, np.float64) for array in by_sample)
    return np.stack([low.min(axis=0), high.max(axis=0), mean.mean(axis=0), square.mean(axis=0)])


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

    def __init__(
        self, model: ir.Model, watched: Sequence[Watched[str]], zero_is_minimum: bool, any_shape: bool
    ) -> None:
        self.model, self.zero_is_minimum = model, zero_is_minimum
        self.named = _input_dims(model) if any_shape else {}
        self.values = ir.convenience.create_value_mapping(model.graph)
        #: The axis of channels of values whose channels are reduced anyway.
        self._channels = {item.place: item.channel_axis for item in watched if item.wants == "moments"}
        self._separator = "__"  # longer than any run of underscores in the model's names: no new name is there already
        while any(self._separator in name for name in self.values):
            self._separator += "_"

    def _name(self, value: ir.Value, what: str) -> str:
        return f"{value.name}{self._separator}{what}"

    def add(self, item: Watched[str]) -> _Outputs:
        value = self.values[item.place]
        dims = _sample_dims(value, self.named)
        if item.wants == "tensor" or dims is None:
            _expose(self.model, value)
            return _Outputs(whole=item.place)
        if item.wants == "means":
            mean, count = self._means(value, item.channel_axis, 1 + len(dims))
            return _Outputs(mean=mean, count=count)
        if item.wants == "moments":
            return self._moments(value, item.channel_axis or 0, 1 + len(dims))
        maximum = self._reduce("ReduceMax", value, 1 + len(dims))
        if item.wants == "bounds":
            return _Outputs(self._reduce("ReduceMin", value, 1 + len(dims)), maximum)
        has_zero = self.zero_is_minimum and _is_clipped_at_zero(value)
        minimum = "" if has_zero else self._reduce("ReduceMin", value, 1 + len(dims))
        sizes = [size for size in dims if isinstance(size, int)]
        if len(sizes) == len(dims):
            sampling = sampling_of([1, *sizes], item.channel_axis, item.limit)
            return _Outputs(minimum, maximum, self._sample(value, sampling, 1 + len(dims)), shape=dims)
        sample, step = self._open_sample(value, item, 1 + len(dims))
        size = self._name(value, "size")
        if size not in self.values:
            self._node("Shape", [value], size, kind=ir.DataType.INT64)
        return _Outputs(minimum, maximum, sample, step=step, size=size, shape=dims)

    def _reduce(self, op: str, value: ir.Value, rank: int) -> str:
        """The smallest or largest element: of the ends of channels where these are there, which are few."""
        name, axis = self._name(value, op), self._channels.get(value.name or "")
        if name not in self.values:
            ends = value if axis is None else self.values[self._by_channel(op, value, axis, rank)]
            self._node(op, [ends], name, {"keepdims": 0})
        return name

    def _means(self, value: ir.Value, channel_axis: int | None, rank: int) -> tuple[str, str]:
        """The mean of each channel of each sample, and how many elements there are."""
        count = self._name(value, "count")
        if count not in self.values:
            self._node("Size", [value], count, kind=ir.DataType.INT64)
        return self._by_channel("ReduceMean", value, channel_axis, rank), count

    def _moments(self, value: ir.Value, channel_axis: int, rank: int) -> _Outputs:
        """Of each channel of each sample: minimum, maximum, mean and mean square."""
        mean, count = self._means(value, channel_axis, rank)
        name = self._name(value, "square")  # ReduceSumSquare takes three times as long
        if name not in self.values:
            self._node("Mul", [value, value], name, output=False)
        ends = [self._by_channel(op, value, channel_axis, rank) for op in ("ReduceMin", "ReduceMax")]
        square = self._by_channel("ReduceMean", self.values[name], channel_axis, rank)
        return _Outputs(count=count, moments=(*ends, mean, square))

    def _by_channel(self, op: str, value: ir.Value, channel_axis: int | None, rank: int) -> str:
        """A reduction of each sample over all axes but that of the channels; the value itself where there are none."""
        axes = [axis for axis in range(1, rank) if axis != channel_axis]
        if not axes:
            _expose(self.model, value)
            return value.name or ""
        name = self._name(value, f"{op}_{channel_axis}")
        if name not in self.values:
            if (self.model.opset_imports.get("") or 0) >= 18:
                self._node(op, [value, self._constant(f"{name}_axes", axes)], name, {"keepdims": 0})
            else:
                self._node(op, [value], name, {"axes": axes, "keepdims": 0})
        return name

    def _sample(self, value: ir.Value, sampling: Sampling, rank: int) -> str:
        if sampling.step == 1:
            _expose(self.model, value)
            return value.name or ""
        name = self._name(value, f"every_{sampling.step}")
        if name not in self.values:
            self._slice(value, name, sampling.spatial, rank, self._constant(f"{name}_step", [sampling.step]))
        return name

    def _open_sample(self, value: ir.Value, item: Watched[str], rank: int) -> tuple[str, str]:
        """A sample whose step is an input of the model; names of both."""
        spatial = is_spatial(rank, item.channel_axis)
        name = self._name(value, f"sample_{item.limit}{'_spatial' if spatial else ''}")
        if name not in self.values:
            step = ir.Value(name=f"{name}_step", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
            self.model.graph.inputs.append(step)
            self._slice(value, name, spatial, rank, step)
        return name, f"{name}_step"

    def _slice(self, value: ir.Value, name: str, spatial: bool, rank: int, step: ir.Value) -> None:
        """Every `step`-th element of each sample, or, `spatial`, of each channel, as output `name`."""
        flat = value
        axis = 2 if spatial else 1
        if rank != axis + 1:
            shape = self._constant(f"{name}_shape", [0, 0, -1] if spatial else [0, -1])
            flat = self._node("Reshape", [value, shape], f"{name}_flat", output=False)
        numbers = {"start": 0, "end": np.iinfo(np.int64).max, "axis": axis}
        self._node("Slice", [flat, *(self._constant(f"{name}_{key}", [v]) for key, v in numbers.items()), step], name)

    def _node(
        self,
        op: str,
        inputs: list[ir.Value],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        output: bool = True,
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        node = ir.Node("", op, inputs, ir.convenience.convert_attributes(attributes or {}), name=f"{name}_node")
        result = node.outputs[0]
        result.name, result.type = name, ir.TensorType(kind)
        self.model.graph.append(node)
        self.values[name] = result
        if output:
            self.model.graph.outputs.append(result)
        return result

    def _constant(self, name: str, numbers: list[int]) -> ir.Value:
        return add_initializer(self.model.graph, ir.Tensor(np.array(numbers, np.int64), name=name))
