"""The exported QDQ model in onnxruntime, quantizer by quantizer, against the simulator's quantizers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from agreement import Arrays, Comparison, QdqFile
from numpy.typing import NDArray
from onnx import numpy_helper

from isobit.encodings import Encoding
from isobit.graph import Tensor, Weight, to_canonical
from isobit.quantsim import QuantSim
from isobit_torch.model import TorchModel
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.simulate.quantizers import Quantizer
from isobit_torch.translate.sites import bind

__all__ = ["Comparison", "Executed"]


class Executed:
    """The file that a calibrated simulator exports to `folder`, in onnxruntime."""

    def __init__(self, sim: QuantSim, folder: Path) -> None:
        model = sim.backend_model.inner
        assert isinstance(model, TorchModel)
        self._model, self._file = model, QdqFile(sim, folder)
        self.path, self.run = self._file.path, self._file.run

    def _quantizer(self, site: Tensor | Weight) -> Quantizer:
        return self._model.native.quantizers[self._model._keys[site]]

    def compare(self, batch: Arrays) -> Comparison:
        """Feed each activation quantizer of the simulator what onnxruntime fed the one of the same site."""
        tapped = self._file.tapped(batch)
        values = equal = largest = 0
        for tap in self._file.taps:
            quantizer = self._quantizer(tap.site)
            integers = _integers(quantizer, tapped[tap.source])
            difference = np.abs(integers - tapped[tap.integers].astype(np.int64))
            values, equal = values + difference.size, equal + int((difference == 0).sum())
            largest = max(largest, int(difference.max(initial=0)))
        return Comparison(len(self._file.taps), values, equal, largest)

    def unequal_constants(self) -> tuple[int, list[str]]:
        """How many weights and biases are stored, and which are not what the simulator's quantizer makes of them."""
        stored = {i.name: numpy_helper.to_array(i) for i in self._file.proto.graph.initializer}
        names = self._file.names
        unequal, count = [], 0
        for site, encoding in self._model.encodings().items():
            if not isinstance(site, Weight):
                continue
            count += 1
            kind = encoding.spec.type_name
            is_half = kind in ("float16", "bfloat16")
            written = stored[f"{names[site].name}_{kind if is_half else 'quantized'}"]
            written = to_canonical(written.astype(np.float32) if is_half else written, names[site].layout)
            values = written if is_half else encoding.dequantize(written)
            if not np.array_equal(values, self._simulated(site)):
                unequal.append(site.name)
        return count, unequal

    def _simulated(self, site: Weight) -> NDArray[np.float32]:
        native = bind(self._model.translation, site)
        with torch.no_grad():
            result = self._quantizer(site)(attribute(self._model.native, str(native.source.target)))
        return to_canonical(result.numpy(), native.layout)


#: Small floats, of which onnxruntime returns the bytes: neighbours are one apart.
_FLOATS = {"float8e4m3": ml_dtypes.float8_e4m3fn, "float8e5m2": ml_dtypes.float8_e5m2}


def _integers(quantizer: Quantizer, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """The simulator's quantizer gives ``(q - zero_point) * scale``: the integers are exact in float64."""
    encoding: Encoding = quantizer.encoding
    with torch.no_grad():
        result = quantizer(torch.from_numpy(np.array(x))).numpy().astype(np.float64)
    scale, zero_point = encoding.broadcast(x.shape)
    levels = result / scale.astype(np.float64)
    if not encoding.spec.is_integer:
        return levels.astype(_FLOATS[encoding.spec.type_name]).view(np.uint8).astype(np.int64)
    return (np.rint(levels) + zero_point).astype(np.int64)
