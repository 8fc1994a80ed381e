"""THE SEAM. What a backend implements, and all that it implements.

A backend translates, runs, reduces and edits. It decides nothing: placement, ranges and rounding come from the core.
It checks nothing either: `checked_model` stands before it. `isobit.testing` is the suite that an implementation
passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from isobit.data import Batch
from isobit.edits.edit import EditPlan
from isobit.encodings.encoding import Encoding, Encodings
from isobit.graph.graph import Graph
from isobit.graph.layout import Layout
from isobit.graph.sites import Site
from isobit.statistics.observer import Request

if TYPE_CHECKING:
    from onnx import ModelProto  # a type only: the core imports no framework


@dataclass(frozen=True)
class OnnxName:
    """Where a site is in an exported ONNX model.

    `name` is the ONNX value's; for an Input site the ONNX node's, with `input` the index. `layout` makes the ONNX
    tensor the core's (`isobit.graph.layout`): a transposition for most weights, more for a grouped ConvTranspose.
    """

    name: str
    layout: Layout = ()
    input: int | None = None


NameMap = Mapping[Site, OnnxName]


class BackendModel(Protocol):
    """A model opened by a backend. Names are the user's; layouts are canonical; nothing is shared with the original.

    `isobit.backend.CheckedModel` calls it, and nobody else: every method may trust its arguments.
    """

    @property
    def backend(self) -> str:
        """The name of the backend, whose `restore` reads the state."""
        ...

    @property
    def ops(self) -> Collection[str] | None:
        """The ops that `apply` makes new nodes of. None: `apply` says with EditError what it cannot make."""
        ...

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What the framework raises where a batch does not fit the model."""
        ...

    @property
    def graph(self) -> Graph:
        """The neutral graph in canonical form, up to date after `apply`."""
        ...

    @property
    def native(self) -> Any:
        """The framework's own model, with the quantizers in it: what the user runs, trains and saves."""
        ...

    def weight(self, name: str) -> NDArray[Any]:
        """A constant of the graph in canonical layout, unquantized."""
        ...

    def apply(self, plan: EditPlan) -> None:
        """Carry out checked edits, all or none. Quantizers on sites that are gone go with them."""
        ...

    @property
    def quantized(self) -> Collection[Site]:
        """The sites that have a quantizer, on or off."""
        ...

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or (None) remove the quantizers of these sites; others stay as they are."""
        ...

    def enable(self, sites: Sequence[Site], on: bool) -> None:
        """Switch quantizers that are there on or off without forgetting their encodings."""
        ...

    def encodings(self) -> Encodings:
        """The encodings of all quantizers, on or off."""
        ...

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Outputs by name for one batch, which has the model's inputs alone, in their element types."""
        ...

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        """Run every batch and feed the observers as tensors are produced; keeps none of them."""
        ...

    def to_onnx(self) -> tuple[ModelProto, NameMap]:
        """The float model as ONNX, and where each tensor and weight of the graph is in it."""
        ...

    def copy(self) -> BackendModel:
        """An independent copy, quantizers included."""
        ...

    def state(self) -> bytes:
        """Everything, as bytes that `Backend.restore` reads in another process."""
        ...


class Backend(Protocol):
    """A framework's front door. Its module imports the framework only inside the methods."""

    @property
    def name(self) -> str:
        """Unique; what users write as ``backend=``."""
        ...

    @property
    def framework(self) -> str:
        """The import name of the framework, by which a loaded one is recognised."""
        ...

    @property
    def install(self) -> str:
        """The command that installs what is missing."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File name endings of models that it opens from a path."""
        ...

    def accepts(self, model: object) -> int:
        """0: not mine; 1: I can open it; 2: it is certainly mine."""
        ...

    def open(self, model: Any, example_inputs: Any = None) -> BackendModel:
        """Open a model, or the path of one, as a copy. Raises ModelError."""
        ...

    def restore(self, state: bytes) -> BackendModel:
        """The model that `BackendModel.state` wrote."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    """Optional, asked for by ``isinstance``: gradients by weights, for block-wise techniques and training."""

    def gradient(
        self,
        function: Callable[[Mapping[str, Any]], Any],
        weights: Mapping[str, NDArray[np.float32]],
        batch: Batch,
    ) -> tuple[float, Mapping[str, NDArray[np.float32]]]:
        """Value of ``function(outputs)`` with `weights` overridden, and its gradient by each of them.

        `function` takes all outputs of the model by the names that `run` gives them, as the framework's own tensors,
        and returns one real number as such a tensor. What it computes with arithmetic operators and indices alone works
        in every framework. `weights` are float32 in canonical layout, and so are the gradients; a weight with several
        readers is overridden for all of them, and its gradient is the sum. The model runs as in `run`: in evaluation
        mode, with its quantizers, through whose rounding gradients pass straight inside the grid and not outside. The
        model itself stays as it is.

        Of a CheckedModel it raises IsobitError for an unknown weight, another shape or type, a value or a gradient that
        is not finite, and a function that returns anything else; a backend's model may trust its arguments.

        Source of the gradient of rounding: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic
        Neurons for Conditional Computation" (straight-through estimator).
        """
        ...

    def part_error(
        self, part: Graph, weights: Mapping[str, NDArray[np.float32]], batch: Batch, wanted: Batch
    ) -> tuple[float, Mapping[str, NDArray[np.float32]]]:
        """The sum of squared differences of a part's outputs from those `wanted`, and its gradient by `weights`.

        `part` is a part of `graph` (`isobit.graph.between`); it is computed as `gradient` computes the whole, and no
        more than it. `batch` has the tensors that are its inputs, before their quantizers, which are part of it;
        `wanted` is compared with what is behind the quantizers of its outputs. Called again and again with one `part`,
        which a backend may keep what it compiles by.
        """
        ...
