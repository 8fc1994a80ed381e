"""CheckedModel: an opened model as the core, techniques and users meet it.

What the contract promises of every backend is checked here, once: `isobit.backend.BackendModel` trusts its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checks import check_quantizers
from isobit.backend.contract import BackendModel, Differentiable, NameMap
from isobit.backend.optional import HoldsAdapters, RunsParts
from isobit.data import Batch, numpy_type
from isobit.data.samples import SampleAxes, cut_batches
from isobit.edits.compensation import Compensation, joined
from isobit.edits.draft import Draft
from isobit.edits.edit import Edit, EditPlan, Removed, SetWeights
from isobit.encodings.encoding import Encoding, Encodings
from isobit.errors import DataError, EditError, EncodingError, IsobitError, ModelError, did_you_mean
from isobit.graph.graph import Graph
from isobit.graph.layout import Take
from isobit.graph.sites import Input, Site, Tensor
from isobit.statistics.observer import Request

if TYPE_CHECKING:
    from onnx import ModelProto  # a type only: the core imports no framework

Array = NDArray[Any]


class CheckedModel:
    """A backend's model behind the checks of the contract. `CheckedModel.of` makes it; nobody implements it.

    `inner` is the backend's own, asked for what it adds to the contract (`isobit.backend.NativeExporter`).
    `edit_log` are the edits that were made through it, for saving and replaying; `compensations` what they
    did to constants for the sake of quantization alone (`SetWeights.compensates`). `opened` is the graph before them,
    None where it is not the only one that they are of.
    """

    def __init__(self, inner: BackendModel) -> None:
        self.inner = inner
        self.opened: Graph | None = inner.graph
        self.edit_log: list[Edit] = []
        self.compensations: dict[str, Compensation] = {}
        self.removed: list[Removed] = []  # so that names as the model was opened still say what they said
        self._follower: Callable[[CheckedModel], None] = _nobody

    @staticmethod
    def of(model: BackendModel | CheckedModel) -> CheckedModel:
        """`model`, used directly and not copied, with an empty log; `Differentiable` where the backend's model is."""
        inner = model.inner if isinstance(model, CheckedModel) else model
        return CheckedDifferentiable(inner) if isinstance(inner, Differentiable) else CheckedModel(inner)

    @property
    def backend(self) -> str:
        """The name of the backend that restores the model from its state."""
        return self.inner.backend

    @property
    def graph(self) -> Graph:
        """The neutral graph in canonical form, up to date after `edit`."""
        return self.inner.graph

    @property
    def native(self) -> Any:
        """The framework's own model, with the quantizers in it: what the user runs, trains and saves."""
        return self.inner.native

    def weight(self, name: str) -> Array:
        """A constant of the graph in canonical layout, unquantized. Raises ModelError for an unknown name."""
        self._require_weight(name)
        return self.inner.weight(name)

    def _require_weight(self, name: str) -> None:
        weights = self.graph.weights
        if name not in weights:
            raise ModelError(f"no weight {name!r} in the graph{did_you_mean(name, weights)}")

    # --- changing --------------------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[Edit] | Draft) -> None:
        """Apply edits, all or none: a list of them, or a draft of this model as it is.

        Raises EditError; quantizers on sites that are gone go with them.
        """
        if isinstance(edits, Draft) and edits.start is self.graph:
            draft = edits
        else:
            draft = Draft.of(self.graph, self.inner.weight, edits.edits if isinstance(edits, Draft) else edits)
        plan = draft.plan()
        self._require_ops(plan)
        removed = plan.removed(self.graph)
        self.inner.apply(plan)
        self.edit_log += draft.edits
        self.removed += removed
        compensated = draft.compensations
        final = {name for edit in draft.edits if isinstance(edit, SetWeights) for name in edit.weights} - {*compensated}
        earlier = {name: done for name, done in self.compensations.items() if name not in final}
        self.compensations = joined(earlier, compensated)
        self._follower(self)

    def follow_edits(self, follower: Callable[[CheckedModel], None]) -> None:
        """Call `follower` with this model now and after each edit, and likewise with copies of it."""
        self._follower = follower
        follower(self)

    def use_adapter(self, name: str) -> None:
        """Let the graph of a model that `HoldsAdapters` read another one. Raises ModelError."""
        if not isinstance(self.inner, HoldsAdapters):
            raise ModelError(f"the model holds no adapters, so it cannot use {name!r}")
        self.inner.use_adapter(name)
        self.opened = None
        self._follower(self)

    def _require_ops(self, plan: EditPlan) -> None:
        ops = self.inner.ops
        if ops is None:
            return
        present = {node.op for node in self.graph.nodes}
        unsupported = next((node for node in plan.graph.nodes if node.op not in ops and node.op not in present), None)
        if unsupported is not None:
            raise EditError(
                f"the {self.backend} backend cannot make a {unsupported.op} node ({unsupported.name!r}); "
                f"it makes {', '.join(sorted(ops))}"
            )

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or (None) remove the quantizers of these sites. Raises EncodingError, and changes nothing."""
        check_quantizers(self.graph, encodings)
        self.inner.set_quantizers(encodings)

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off without forgetting their encodings. Raises EncodingError where there is none."""
        chosen, quantized = list(sites), self.inner.quantized
        bare = next((site for site in chosen if site not in quantized), None)
        if bare is not None:
            raise EncodingError(f"{str(bare)!r} has no quantizer to switch")
        self.inner.enable(chosen, on)

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off."""
        return self.inner.encodings()

    # --- running ---------------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> dict[str, Array]:
        """Outputs by name for one batch of inputs by name. Raises DataError or ModelError for one that does not fit."""
        feeds = self._feeds(batch)
        with self._named_failures() as current:
            current.batch = feeds
            return self.inner.run(feeds)

    def run_part(self, part: Graph, given: Batch) -> dict[str, Array]:
        """Tensors of a part of the graph from given ones, in front of their quantizers, where the backend `RunsParts`.

        Raises ModelError where it does not run so.
        """
        if not isinstance(self.inner, RunsParts):
            raise ModelError(f"the {self.backend} backend runs no parts of a model")
        with self._named_failures() as current:
            current.batch = given
            return self.inner.run_part(part, given)

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Run every batch and feed the observers as tensors are produced; keeps none of them.

        Raises EncodingError for a site that is no tensor, and what `run` raises.
        """
        for request in requests:
            self._require_tensor(request.site)
        with self._named_failures() as current:
            self.inner.observe(self._fed(data, current), requests)

    def _fed(self, data: Iterable[Batch], current: _Current) -> Iterator[Batch]:
        for batch in data:
            current.batch = self._feeds(batch)
            yield current.batch
            current.batch = None  # an error raised by `data` itself is not the model's failure

    def _feeds(self, batch: Batch) -> dict[str, Array]:
        """The inputs of the model alone, in their element types; nothing is copied that has them."""
        graph = self.graph
        missing = next((name for name in graph.inputs if name not in batch), None)
        if missing is not None:
            raise DataError(f"a batch has no array for input {missing!r}{did_you_mean(missing, batch)}")
        types = {name: graph.tensors[name].dtype for name in graph.inputs}
        return {name: np.asarray(batch[name], numpy_type(dtype)) for name, dtype in types.items()}

    def _require_tensor(self, site: Tensor | Input) -> None:
        graph = self.graph
        name: str | None = None
        if graph.has_site(site):
            name = graph.node(site.node).input(site.index) if isinstance(site, Input) else site.name
        if name not in graph.tensors:
            raise EncodingError(f"{str(site)!r} is no tensor of the graph: only tensors have statistics")

    @contextmanager
    def _named_failures(self) -> Iterator[_Current]:
        """What the framework raises while a batch is computed becomes a ModelError with the batch's shapes."""
        current = _Current()
        try:
            yield current
        except IsobitError:
            raise
        except self.inner.failures as error:
            if current.batch is None:
                raise
            shapes = {name: array.shape for name, array in current.batch.items()}
            words = " ".join(str(error).split("\n\n")[0].split())[:400] or type(error).__name__
            advice = self._advice(current.batch)
            raise ModelError(f"the model failed on a batch of shapes {shapes}: {words}{advice}") from error

    def _advice(self, batch: Mapping[str, Array]) -> str:
        """What to do about a batch that failed, where the model runs its first sample alone, but not twice at once."""
        failures: tuple[type[Exception], ...] = (IsobitError, KeyError, *self.inner.failures)
        try:
            axes = SampleAxes.of(self.graph).cut({name: batch[name] for name in self.graph.inputs})
            if not any(batch[name].shape[axis] > 1 for name, axis in axes.items()):
                return ""
            one = next(cut_batches(batch, axes, 1, 1))
            repeats = {name: batch[name].shape[axis] for name, axis in axes.items()}
            self.inner.run(one)
        except failures:
            return ""
        try:  # where this runs, values of another sample are what failed
            self.inner.run({**one, **{name: np.repeat(one[name], n, axes[name]) for name, n in repeats.items()}})
        except failures:
            return "; it runs the first sample alone, so give it batches of one (batch_size=1, or --batch-size 1)"
        return ""

    # --- leaving ---------------------------------------------------------------------------------------------------

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, and where each tensor and weight of the graph is in it."""
        return self.inner.to_onnx()

    def copy(self) -> CheckedModel:
        """An independent copy, quantizers and log included."""
        copied = CheckedModel.of(self.inner.copy())
        copied.edit_log += self.edit_log
        copied.compensations.update(self.compensations)
        copied.removed += self.removed
        copied.opened = self.opened
        copied.follow_edits(self._follower)
        return copied

    def uncompensated(self) -> CheckedModel:
        """A copy as the float model is: its quantizers off, its constants without what compensates for them."""
        copied = self.copy()
        copied.enable(list(copied.encodings()), on=False)
        copied.take_back()
        return copied

    def take_back(self, names: Iterable[str] | None = None) -> None:
        """Undo what edits did to constants, or those of these names, for the sake of quantization alone.

        A bias that was added becomes 0.
        """
        chosen = self.compensations if names is None else names
        there = {name: self.compensations[name] for name in chosen if name in self.graph.weights}
        if there:
            self.edit([SetWeights({name: done.without(self.weight(name)) for name, done in there.items()})])

    def state(self) -> bytes:
        """The model without its log, as bytes that `Backend.restore` reads in another process."""
        return self.inner.state()


class CheckedDifferentiable(CheckedModel):
    """A CheckedModel that is `isobit.backend.Differentiable`, because the backend's model is."""

    def gradient(
        self, function: Callable[[Mapping[str, Any]], Any], weights: Mapping[str, NDArray[np.float32]], batch: Batch
    ) -> tuple[float, Mapping[str, NDArray[np.float32]]]:
        """Value of ``function(outputs)`` with `weights` overridden, and its gradient by each of them."""
        inner = self.inner
        assert isinstance(inner, Differentiable)  # `CheckedModel.of` makes this class only around a model that is
        overriding = self._overriding(weights)
        feeds = self._feeds(batch)
        with self._named_failures() as current:

            def number(outputs: Mapping[str, Any]) -> Any:
                current.batch = None  # the model has computed it: an error from here on is the function's
                return _number(function(outputs))

            current.batch = feeds
            value, gradients = inner.gradient(number, overriding, feeds)
        if not isfinite(value):
            raise DataError(f"the function of the outputs is {value}: check it, the batch and the weights")
        for name, gradient in gradients.items():
            if not np.isfinite(gradient).all():
                raise DataError(f"the gradient by weight {name!r} holds NaN or infinity: check the function")
        return value, gradients

    def part_error(
        self, part: Graph, weights: Mapping[str, NDArray[np.float32]], batch: Batch, wanted: Batch
    ) -> tuple[float, Mapping[str, NDArray[np.float32]]]:
        """The sum of squared differences of a part's outputs from those `wanted`, and its gradient by `weights`.

        Raises what `gradient` does, and DataError where an input or an output of the part is missing.
        """
        inner = self.inner
        assert isinstance(inner, Differentiable)
        overriding = self._overriding(weights)
        absent = [
            name
            for names, there in ((part.inputs, batch), (part.outputs, wanted))
            for name in names
            if name not in there
        ]
        if absent:
            raise DataError(f"there are no values for {absent[0]!r}, which the part of the graph reads or returns")
        types = {name: numpy_type(part.tensors[name].dtype) for name in part.inputs}
        feeds = {name: np.asarray(batch[name], dtype) for name, dtype in types.items()}
        with self._named_failures() as current:
            current.batch = feeds
            value, gradients = inner.part_error(part, overriding, feeds, wanted)
        if not isfinite(value):
            raise DataError(f"the error of {', '.join(part.outputs)} is {value}: check the data and the weights")
        for name, gradient in gradients.items():
            if not np.isfinite(gradient).all():
                raise DataError(f"the gradient by weight {name!r} holds NaN or infinity")
        return value, gradients

    def _overriding(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """The weights, checked; two of them may be two parts of one native array, but not the same values twice."""
        checked = {name: self._checked_weight(name, value) for name, value in weights.items()}
        parts: dict[str, dict[tuple[int, ...], str]] = {}
        for name in checked:
            info = self.graph.weights[name]
            part = tuple(step.index for step in info.layout if isinstance(step, Take))
            others = parts.setdefault(info.source or name, {})
            clash = next((other for at, other in others.items() if at[: len(part)] == part[: len(at)]), None)
            if clash is not None:
                raise ModelError(f"{clash!r} and {name!r} are the same parameter: override one of them")
            others[part] = name
        return checked

    def _checked_weight(self, name: str, value: Array) -> Array:
        self._require_weight(name)
        info, array = self.graph.weights[name], np.asarray(value)
        if not info.is_float:
            raise ModelError(f"constant {name!r} holds {info.dtype} values: only float weights have gradients")
        if array.dtype != np.float32:
            raise DataError(f"weight {name!r} is overridden by {array.dtype} values: convert them to float32")
        if array.shape != info.shape:
            raise DataError(f"weight {name!r} has shape {info.shape} in canonical layout, and is given {array.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"weight {name!r} is overridden by NaN or infinity")
        return array


@dataclass
class _Current:
    """The batch that the model computes now, None between two."""

    batch: Mapping[str, Array] | None = None


def _nobody(model: CheckedModel) -> None:
    """The follower where there is none."""


def _number(value: Any) -> Any:
    """The value of a function of outputs, without axes. Raises ModelError for what no gradient can be taken of."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or isinstance(value, np.ndarray | np.generic):
        described = repr(value)
    elif prod(shape) != 1 or "float" not in str(dtype):
        described = f"{dtype} of shape {tuple(shape)}"
    else:
        return value[(0,) * len(shape)] if shape else value
    raise ModelError(
        f"the function of the outputs must return one real number as the framework's own tensor, not {described}"
    )
