"""The exported QDQ model in onnxruntime, quantizer by quantizer, against the simulator's quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from isobit.encoding import Encoding
from isobit.layout import to_canonical
from isobit.quantsim import QuantSim
from isobit.sites import Tensor, Weight
from isobit_torch.binding import bind
from isobit_torch.fxtools import attribute
from isobit_torch.model import TorchModel
from isobit_torch.quantizers import Quantizer

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """Integers of the simulator's activation quantizers against onnxruntime's, for the same inputs."""

    quantizers: int = 0
    values: int = 0
    equal: int = 0
    largest: int = 0

    @property
    def share(self) -> float:
        """Share of equal integers among all values."""
        return self.equal / max(self.values, 1)

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            max(self.quantizers, other.quantizers),
            self.values + other.values,
            self.equal + other.equal,
            max(self.largest, other.largest),
        )


class Executed:
    """The file that a calibrated simulator exports to `folder`, in onnxruntime."""

    def __init__(self, sim: QuantSim, folder: Path) -> None:
        model = sim.backend_model
        assert isinstance(model, TorchModel)
        self._model, self._names = model, {}
        self.path = self._export(sim, folder)
        self._session = _session(str(self.path))
        self._tapped = onnx.load(self.path)
        quantizes = {node.output[0]: node for node in self._tapped.graph.node if node.op_type == "QuantizeLinear"}
        self._taps: list[tuple[Quantizer, str, str]] = []
        for site in model.encodings():
            if isinstance(site, Tensor):
                node = quantizes[f"{self._names[site].name}_quantized"]
                self._taps.append((self._quantizer(site), node.input[0], node.output[0]))
        known = {value.name for value in (*self._tapped.graph.output, *self._tapped.graph.input)}
        wanted = dict.fromkeys(name for _, *names in self._taps for name in names if name not in known)
        self._tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        self._tapped_session: onnxruntime.InferenceSession | None = None

    def _export(self, sim: QuantSim, folder: Path) -> Path:
        """Export, and keep the names that the backend gives."""
        model = self._model
        made, self._names = model.to_onnx()
        model.__dict__["to_onnx"] = lambda: (made, self._names)
        try:
            return sim.export(folder)["model"]
        finally:
            del model.__dict__["to_onnx"]

    def _quantizer(self, site: Tensor | Weight) -> Quantizer:
        return self._model.native.quantizers[self._model._keys[site]]

    def run(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        return _run(self._session, batch)

    def compare(self, batch: Arrays) -> Comparison:
        """Feed each activation quantizer of the simulator what onnxruntime fed the one of the same site."""
        if self._tapped_session is None:
            self._tapped_session = _session(self._tapped.SerializeToString(), tapped=True)
        found = {**batch, **_run(self._tapped_session, batch)}
        values = equal = largest = 0
        for quantizer, source, result in self._taps:
            difference = np.abs(_integers(quantizer, found[source]) - found[result].astype(np.int64))
            values, equal = values + difference.size, equal + int((difference == 0).sum())
            largest = max(largest, int(difference.max(initial=0)))
        return Comparison(len(self._taps), values, equal, largest)

    def unequal_constants(self) -> tuple[int, list[str]]:
        """How many weights and biases are stored, and which are not what the simulator's quantizer makes of them."""
        stored = {i.name: numpy_helper.to_array(i) for i in self._tapped.graph.initializer}
        unequal, count = [], 0
        for site, encoding in self._model.encodings().items():
            if not isinstance(site, Weight):
                continue
            count += 1
            found = to_canonical(stored[f"{self._names[site].name}_quantized"], self._names[site].layout)
            if not np.array_equal(encoding.dequantize(found), self._simulated(site)):
                unequal.append(site.name)
        return count, unequal

    def _simulated(self, site: Weight) -> NDArray[np.float32]:
        native = bind(self._model.translation, site)
        with torch.no_grad():
            result = self._quantizer(site)(attribute(self._model.native, str(native.source.target)))
        return to_canonical(result.numpy(), native.layout)


def _session(model: str | bytes, *, tapped: bool = False) -> onnxruntime.InferenceSession:
    """A session that computes DequantizeLinear and what follows it in float, as the simulator does.

    With every tensor an output, onnxruntime (1.32) optimises MobileNetV1 into a convolution of the wrong group.
    """
    options = onnxruntime.SessionOptions()
    if tapped:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model, options)


def _run(session: onnxruntime.InferenceSession, batch: Arrays) -> dict[str, NDArray[Any]]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {i.name: batch[i.name] for i in session.get_inputs()}), strict=True))


def _integers(quantizer: Quantizer, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """The simulator's quantizer gives ``(q - zero_point) * scale``: the integers are exact in float64."""
    encoding: Encoding = quantizer.encoding
    with torch.no_grad():
        result = quantizer(torch.from_numpy(np.array(x))).numpy().astype(np.float64)
    scale, zero_point = encoding.broadcast(x.shape)
    return (np.rint(result / scale.astype(np.float64)) + zero_point).astype(np.int64)
