"""What a backend, or an opened model, may have beside the contract. The core asks with isinstance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from isobit.backend.contract import BackendModel
from isobit.data import Batch
from isobit.edits.edit import ReadWeight
from isobit.encodings.encoding import Encodings
from isobit.encodings.learned_grid import LearnedGrid
from isobit.encodings.relations import Relations
from isobit.graph.graph import Graph
from isobit.graph.sites import Site


@runtime_checkable
class ReportsDevice(Protocol):
    """Optional, asked for by ``isinstance``: what `isobit backends` shows of a backend's framework."""

    def device(self) -> str:
        """``CPU``, or ``CUDA`` where the installed build has it and a driver is there; found without an import."""
        ...


@runtime_checkable
class OpenedByExample(Protocol):
    """An opened model that another example would have made another model of: a saved simulator keeps what decided."""

    @property
    def example(self) -> Batch | None:
        """A batch with which the model is opened as it is now, signals set to zero; None where any example will do."""
        ...

    def takes(self, batch: Batch) -> bool:
        """Whether a batch decides as the example did."""
        ...


@runtime_checkable
class QdqWriter(Protocol):
    """What the ONNX backend adds to the contract: writing a float model and encodings as a QDQ model."""

    def write_qdq(self, model: BackendModel, encodings: Encodings, path: Path, *, runs_next: bool = False) -> list[str]:
        """Write to `path`; returns notes, for example that the file was not checked.

        Raises ModelError where the runtime does not load it; with `runs_next` that is left to `RunsWritten`.
        """
        ...

    def write_float(self, model: BackendModel, path: Path) -> None:
        """Write the float model, whose names are those of encodings files for ONNX tools."""
        ...


@dataclass(frozen=True)
class WrittenRun:
    """What a written file gave in one kind of session: outputs by name, or why there are none.

    `remark` says what is to be known of such a session on this machine.
    """

    session: str
    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    error: str = ""
    remark: str = ""


@runtime_checkable
class RunsWritten(Protocol):
    """What the ONNX backend adds where it can run the files that it wrote."""

    def run_written(self, path: Path, batch: Batch) -> Sequence[WrittenRun]:
        """Run a written QDQ model in float, in the runtime's default session, and in each session that is advised.

        Nothing where the runtime is not installed. Raises ModelError where the default session does not load it.
        """
        ...


@runtime_checkable
class ShowsRounding(Protocol):
    """What the ONNX backend adds where it can show what the quantizers of a file round."""

    def rounded(
        self, path: Path, batch: Batch, rounds: Iterable[Sequence[str]]
    ) -> Iterator[Mapping[str, tuple[NDArray[Any], NDArray[Any]]]]:
        """Tensors of a written QDQ model by name, before and behind their quantizers, as it computes in float mode.

        A run for each sequence of names, made when it is asked for. Those that have one quantizer for all their
        readers; it ends where the file cannot be run so.
        """
        ...

    def computed(self, path: Path, batch: Batch, names: Collection[str]) -> Mapping[str, NDArray[Any]]:
        """Those of these tensors that the file computes, as they are in float mode before they are rounded."""
        ...


class Deployed(Protocol):
    """A model file in a runtime, as a user runs it on this machine."""

    @property
    def runtime(self) -> str:
        """The runtime, its version, the device, and each setting that is not its default."""
        ...

    @property
    def computes_in_caller(self) -> bool:
        """Whether all is computed by the thread that calls `run`, where the file was loaded for one thread.

        Then its processor time is the latency also on a busy machine.
        """
        ...

    def run(self, batch: Batch) -> Mapping[str, NDArray[Any]]:
        """Outputs by name. Raises ModelError."""
        ...


@runtime_checkable
class DeploysFiles(Protocol):
    """What a backend adds whose files a runtime loads: `isobit quantize` measures its time and accuracy there."""

    def deploy(self, path: Path, threads: int) -> Deployed | None:
        """Load a file with the settings that are right on this machine; None where the runtime is not installed.

        Raises ModelError where the runtime refuses the file.
        """
        ...

    def files_of(self, path: Path) -> Sequence[Path]:
        """The file and those that belong to it, such as external weights."""
        ...


@runtime_checkable
class HoldsSessions(Protocol):
    """What a BackendModel adds whose runs leave copies of large weights behind, so that an export has the memory."""

    def release_sessions(self) -> None:
        """Let go what can be made again; a model for which that takes longer than it is worth keeps it."""
        ...


@runtime_checkable
class RunsGiven(Protocol):
    """What a BackendModel adds that can run the model as the user gave it, to be compared with the opened one."""

    def run_given(self, batch: Batch, tensors: Sequence[str] = ()) -> Mapping[str, NDArray[Any]]:
        """Outputs by name, or those of `tensors` that the given model computes. Raises ModelError where it cannot."""
        ...


@runtime_checkable
class RunsParts(Protocol):
    """What a BackendModel adds that can run a part of its graph from given values, so that others are not run again."""

    def run_part(self, part: Graph, given: Batch) -> dict[str, NDArray[Any]]:
        """The tensors in `part.outputs`, whose names are their own, from values of `part.inputs`.

        `part` has some nodes of the graph, all of the model's inputs, and as further inputs the tensors that the nodes
        read and do not make. Values are those in front of quantizers, given ones and results alike; what the nodes
        read is behind the quantizers that are on. What is made for a part may be kept as long as the object lives.
        """
        ...


@runtime_checkable
class SaysGivenTypes(Protocol):
    """What a BackendModel adds that computes in float32 what the model as given computes in other floats."""

    @property
    def given_types(self) -> Collection[str]:
        """The names of those types, of which ``"float16"`` and ``"bfloat16"`` round much more."""
        ...


@runtime_checkable
class SaysPrecision(Protocol):
    """What a BackendModel adds whose simulator may compute in other floats than the float32 of written files."""

    @property
    def precision(self) -> str:
        """The type, ``"float16"`` for example."""
        ...


@runtime_checkable
class TrainsGrids(Protocol):
    """What a BackendModel adds whose native model can train, its grids included."""

    def relate(self, relations: Relations) -> None:
        """Keep these relations from now on wherever the encodings have them, also while grids are learned.

        `set_quantizers` still sets what it is given: a relation that no longer holds afterwards is not kept.
        """
        ...

    def learn(self, grids: Mapping[Site, LearnedGrid], sparse: Collection[Site] = ()) -> None:
        """Learn these grids from now on, from the encodings that they have, and no others.

        At the `sparse` sites, all of weights, values that are exactly zero get no gradient, so that they stay zero.

        `isobit.encodings.learned_grid` says how a parameter of the framework's becomes a scale or a zero point, and
        what its gradient is. A grid that `set_quantizers` sets is no longer learned. `native` may be another object
        afterwards.
        """
        ...

    def train_in_float(self) -> None:
        """Let the native model train without quantizers, which elsewhere is an error: calibration was forgotten."""
        ...

    def learn_by(self, learn: Callable[[], object]) -> None:
        """`learn` does what `sim.trainable()` does: for a native model that offers it to who holds that alone."""
        ...

    @property
    def grid_parameters(self) -> Sequence[Any]:
        """The parameters of the grids that are learned, as the framework's optimizers take them."""
        ...

    @property
    def weight_parameters(self) -> Sequence[Any]:
        """All other parameters that train."""
        ...


@runtime_checkable
class Teaches(Protocol):
    """What a BackendModel adds whose float model can teach its simulator while that trains."""

    def teacher(self, settings: Any, values: Mapping[str, NDArray[Any]]) -> Any:
        """A function ``loss(outputs, *inputs)`` in the framework's own tensors, as `settings` say.

        The settings are `isobit.training.DistillationSettings`. The teacher is the float model as it is now, in
        evaluation mode: it copies what trains and shares what does not; `values` stand for constants of the graph.
        """
        ...


@runtime_checkable
class LoadsFloatWeights(Protocol):
    """What a BackendModel adds whose native model loads saved weights of the user's model, also after edits."""

    def fold_loaded(self, fold: Callable[[ReadWeight], Mapping[str, NDArray[Any]]]) -> None:
        """Let the native model take in weights of the graph as it was opened, through `fold`, from now on.

        `fold` reads those constants in canonical layout, and returns the constants that the edits have made or changed
        in the graph as it is, canonical too. It raises ModelError, and nothing is loaded, where the edits are not
        known to fit other weights. Copies of the native model take them in likewise.
        """
        ...


@runtime_checkable
class CountsBatches(Protocol):
    """What a BackendModel adds whose norms count the batches that they train on, beside what the graph holds.

    A momentum may follow from the count (PyTorch's ``momentum=None``), so a saved simulator keeps it.
    """

    @property
    def batches_seen(self) -> Mapping[str, int]:
        """The counts, by names of the backend's own."""
        ...

    def set_batches_seen(self, counts: Mapping[str, int]) -> None:
        """Go on from these counts; names that are not there are passed over."""
        ...


@runtime_checkable
class HoldsAdapters(Protocol):
    """What a BackendModel adds whose model may hold several adapters (LoRA), of which the graph reads one.

    What an adapter is in the graph, the core finds out (`isobit.graph.find_adapters`); here is what only the framework
    knows: their names, and which weights are whose.
    """

    @property
    def adapters(self) -> Sequence[str]:
        """The names of all; empty where there are none."""
        ...

    @property
    def adapter(self) -> str | None:
        """The one that the graph reads."""
        ...

    def use_adapter(self, name: str) -> None:
        """Let the graph read another one; quantizers on sites that are gone go with them. Raises ModelError."""
        ...

    def adapter_constants(self, name: str) -> Mapping[str, str]:
        """The constants of the graph that are an adapter's while it is read, and their names in its file."""
        ...

    def adapter_weights(self, name: str) -> Mapping[str, NDArray[Any]]:
        """All weights of an adapter by their names in its file, as the framework lays them out."""
        ...

    def adapter_settings(self, name: str) -> Mapping[str, Any]:
        """What the file of settings says of it, as JSON data."""
        ...

    def set_adapter_weights(self, name: str, weights: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> None:
        """New values for all of `adapter_weights`, of the same shapes; `settings` may be empty. Raises ModelError."""
        ...


@runtime_checkable
class NativeExporter(Protocol):
    """What a BackendModel adds to the contract when it can be written in formats of its own framework."""

    @property
    def native_formats(self) -> Mapping[str, str]:
        """Each format, as users write it in ``formats=``, and the name of its file or folder."""
        ...

    def write_native(self, form: str, encodings: Encodings, path: Path) -> list[str]:
        """Write the quantized model in one of `native_formats` to `path`, a file or folder; returns notes."""
        ...


@runtime_checkable
class HasInnerValues(Protocol):
    """What a BackendModel adds whose ONNX model has values that the neutral graph does not."""

    def inner_values(self) -> Mapping[str, str]:
        """ONNX values before a reshape inside one neutral node, and the tensor whose encoding is theirs."""
        ...
