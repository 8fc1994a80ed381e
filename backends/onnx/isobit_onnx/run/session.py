"""onnxruntime sessions of onnx-ir models, also of those too large for one protobuf."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from isobit.errors import ModelError, OutputError, PluginError, did_you_mean
from isobit.files import temporary_folder
from isobit.threads import available_threads
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.initializers import PROTOBUF_LIMIT, weight_bytes
from isobit_onnx.read.open_session import open_session
from isobit_onnx.run.blocked_layout import block_size, keep_blocked, optimise

_LOG = logging.getLogger(__name__)

#: What onnxruntime raises of a batch that does not fit: its own kinds, which have no common base, and Python's.
RUN_FAILURES = (
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    TypeError,
    ValueError,
)

Weights = dict[str, NDArray[Any]]

#: Bytes; onnxruntime wants small constants, among them shapes, in the graph.
_SMALLEST_ARRAY = 1024

#: Threads of a session that is one of dozens, of which each starts its own.
_MOST_THREADS = 8

#: Making a session in blocked layout, with its first run, takes three times as long as making the plain one, and runs
#: in it take about a third less time: what that saves is as much after plain runs of so many times as long.
BLOCKED_COST = 8.0

_ARRAY_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.UINT8})


class Session:
    """Runs a model in float: QDQ pairs are computed as they are written, never fused into integer kernels.

    Where onnxruntime keeps images in blocks of channels, quantizers and reductions can work in that layout
    (`isobit_onnx.run.blocked_layout`). The same bits come out in less time, but the session takes longer to make. It
    is kept only if its first run gives the bits of the plain session, and while it gives no error.
    """

    def __init__(
        self,
        model: ir.Model,
        providers: Sequence[str] = (),
        *,
        plan_memory: bool = True,
        any_order: Collection[str] = (),
        is_reducing: bool = False,
        blocked_after: int | None = None,
        is_lean: bool = False,
        is_short: bool = False,
        proto: onnx.ModelProto | None = None,
    ) -> None:
        """`proto` is what `to_proto` made of the model, where that is at hand.

        `providers` are onnxruntime's, in order of preference; without any, CUDA where it is there, then the CPU.

        `plan_memory` reserves all tensors of a run at once: faster, but larger where many outputs leave.
        The run after `blocked_after` runs makes a session in blocked layout; unless said, the one after which it would
        have saved as much as making it takes, so that both never take twice the time of the better choice.
        `any_order` are outputs whose elements may come in another order within each sample; `is_reducing` says that
        others are reductions (`isobit_onnx.run.observe`). `is_lean` dequantizes weights as they are read: opened sooner
        and smaller, but slower in each run. `is_short` starts few threads, for sessions of a few nodes that run in turn
        with dozens of others.
        """
        self._plan_memory, self._any_order, self.is_lean = plan_memory, frozenset(any_order), is_lean
        self._is_short = is_short
        self._providers = chosen_providers(providers)
        on_cpu = self._providers == ["CPUExecutionProvider"]
        # Held where a session in blocked layout may take the place of the plain one, or the other way round.
        self._model: ir.Model | None = (
            model if on_cpu and gains_from_blocks(model, is_reducing or bool(any_order)) else None
        )
        self._runs_left = blocked_after
        self._seconds_left = 0.0
        self.is_blocked = False
        self._weights: Weights = {}  # onnxruntime reads these arrays as long as the plain session lives
        start = time.perf_counter()
        self._session = self._open(model, proto)
        self._seconds_left = BLOCKED_COST * (time.perf_counter() - start)
        self.output_names = [output.name for output in self._session.get_outputs()]

    def _options(self, weights: Weights | None = None) -> Any:
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = self._plan_memory
        # Fused integer kernels round elsewhere; a simulator rounds at its quantizers and nowhere else.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Threads that wait busily take up to half of the processor time again, and the time of who else runs here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._is_short:
            options.intra_op_num_threads = min(available_threads(), _MOST_THREADS)
        if weights:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
        return options

    def _open(self, model: ir.Model, proto: onnx.ModelProto | None = None) -> Any:
        """The plain session. Raises ModelError."""
        try:
            with _serialized(model, proto) as (source, weights):
                try:
                    unwanted = ["ConstantFolding"] if self.is_lean else None
                    session = open_session(
                        source, self._options(weights), self._providers, disabled_optimizers=unwanted
                    )
                except Exception as error:  # its own fusions can make an invalid graph: then it is run as it is written
                    _LOG.info("onnxruntime does not load the optimised model: %s", one_line(error))
                    options = self._options(weights)
                    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                    session = open_session(source, options, self._providers)
                    self._model = None
        except OutputError:
            raise
        except Exception as error:  # onnxruntime raises its own kinds
            raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}") from error
        self._weights = weights
        return session

    def _open_blocked(self, model: ir.Model) -> Any:
        """The session in blocked layout, or None where nothing is gained by it. Raises onnxruntime's errors."""
        with temporary_folder() as name, _serialized(model) as (source, weights):
            path = optimise(source, self._options(weights), name)
            proto = onnx.load(path, load_external_data=False)
            if not keep_blocked(proto, self._any_order):
                return None
            path.write_bytes(proto.SerializeToString())
            options = self._options()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised
            if not self._plan_memory:  # in the file's order: what is reduced is still in the cache, and then freed
                options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
            return open_session(str(path), options, self._providers)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises RUN_FAILURES."""
        start = time.perf_counter()
        outputs = self._run_in_either_layout(feeds)
        if self._model is not None and not self.is_blocked and self._pays_from_now(time.perf_counter() - start):
            outputs = own_arrays(outputs)
            self._change_layout(self._model, feeds, outputs)
        return outputs

    def _pays_from_now(self, seconds: float) -> bool:
        """Whether a session in blocked layout is to be made after a run that took so long."""
        if self._runs_left is not None:
            self._runs_left -= 1
            return self._runs_left < 0
        self._seconds_left -= seconds
        return self._seconds_left < 0

    def _run_in_either_layout(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs, from the plain session where that of the blocked layout fails. Raises onnxruntime's errors."""
        try:
            return self._outputs(feeds)
        except Exception:
            if self._model is None or not self.is_blocked:
                raise
        return self._run_plain(self._model, feeds)

    def _outputs(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What the session at hand gives. Raises onnxruntime's errors."""
        values = self._session.run(None, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(self.output_names, values, strict=True)}

    def _change_layout(
        self, model: ir.Model, feeds: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
    ) -> None:
        """Put a session in blocked layout in place of the plain one, if it gives the same bits as this one did.

        The plain session goes before the other one runs, so that the tensors of both are not in memory at once.
        """
        is_replaced, problem = False, "nothing is gained by it"
        try:
            session = self._open_blocked(model)
            if session is not None:
                self._session, self._weights, is_replaced = session, {}, True
                self.is_blocked = _are_same_bits(expected, self._outputs(feeds), self._any_order)
                problem = "its outputs differ from those of the plain session"
        except Exception as error:  # not every model that runs can be written, and not every written one can be loaded
            problem = one_line(error)
        if not self.is_blocked:
            _LOG.info("no session in blocked layout: %s", problem)
            self._model = None
            self._session = self._open(model) if is_replaced else self._session

    def _run_plain(self, model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of a plain session, which stays if it runs what the blocked session failed on."""
        blocked_session, self._session = self._session, self._open(model)
        try:
            outputs = self._outputs(feeds)
        except Exception:  # the batch is at fault
            self._session, self._weights = blocked_session, {}
            raise
        _LOG.info("the session in blocked layout failed on a batch that the plain session runs")
        self._model, self.is_blocked = None, False
        return outputs


def own_arrays(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Outputs of a run in memory of their own, for who keeps them.

    An array that onnxruntime hands out lies in the memory that its session computes in, and holds all of that as long
    as it lives, also when the session is gone.
    """
    return {name: array if array.flags.owndata else array.copy() for name, array in outputs.items()}


def _are_same_bits(
    expected: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], any_order: Collection[str]
) -> bool:
    """Whether all outputs are the same to the bit; those of `any_order` hold the same elements in each sample."""
    for name, array in expected.items():
        bits, other_bits = _bits(array), _bits(outputs[name])
        if name in any_order:
            bits, other_bits = (np.sort(part.reshape(len(part), -1), axis=1) for part in (bits, other_bits))
        if bits.dtype != other_bits.dtype or not np.array_equal(bits, other_bits):
            return False
    return True


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    is_number = array.dtype.kind in "fiub" and array.dtype.itemsize <= 8
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") if is_number else array


@contextmanager
def _serialized(model: ir.Model, proto: onnx.ModelProto | None = None) -> Iterator[tuple[str | bytes, Weights]]:
    """A model as onnxruntime takes it, and its large weights by name, which are not copied.

    Where what is left is too large for one protobuf: a path, in a folder that goes afterwards, with all weights.
    """
    large = _large(model)
    weights: Weights = {name: np.require(tensor.numpy(), requirements=("C", "A")) for name, tensor in large.items()}
    if weight_bytes(model) - sum(array.nbytes for array in weights.values()) < PROTOBUF_LIMIT:
        yield (to_proto(model) if proto is None else proto).SerializeToString(), weights
        return
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        ir.save(model, path, external_data="weights.bin")
        yield str(path), {}  # a session maps or copies the file while it is made


def _large(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The constants that are handed over as arrays: large, of a type that NumPy has, and read by something.

    onnxruntime removes constants that nothing reads, and then refuses an array for one of them. A body whose If or
    Loop is no longer there still uses what it read, so that a constant's own list of uses does not tell.
    """
    read = {value for graph in model.graphs() for node in graph for value in node.inputs}
    read.update(value for graph in model.graphs() for value in graph.outputs)
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value in read and _can_be_an_array(value.const_value)
    }


def _can_be_an_array(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= _SMALLEST_ARRAY and tensor.dtype in _ARRAY_TYPES


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """A model as a protobuf that names its large weights without holding them.

    The model is changed meanwhile, so no other thread may read it. Weights in files go into the protobuf: onnxruntime
    would look for the files in the working directory.
    """
    constants = [value for graph in model.graphs() for value in graph.initializers.values()]
    tensors = {value: value.const_value for value in constants}
    try:
        for name, large_tensor in _large(model).items():
            model.graph.initializers[name].const_value = _external_tensor(name, large_tensor)
        for value, tensor in tensors.items():
            if value.const_value is tensor and isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=value.name)
        return ir.to_proto(model)
    finally:
        for value, tensor in tensors.items():
            value.const_value = tensor


def _external_tensor(name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)


def gains_from_blocks(model: ir.Model, is_reducing: bool) -> bool:
    """Whether the model has convolutions, and quantizers or reductions, and there is a blocked layout."""
    ops = {node.op_type for node in model.graph}
    return "Conv" in ops and (is_reducing or "QuantizeLinear" in ops) and block_size() > 0


def chosen_providers(providers: Sequence[str] = ()) -> list[str]:
    """The providers to run on. Raises PluginError for one that the installed onnxruntime does not have."""
    available = onnxruntime.get_available_providers()
    for name in providers:
        if name not in available:
            hint = did_you_mean(name, available) or '; for CUDA: pip install "isobit[onnx-cuda]"'
            raise PluginError(f"onnxruntime has no provider {name!r}{hint}; it has {', '.join(available)}")
    return list(providers) or [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
