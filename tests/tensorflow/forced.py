"""A Keras simulator run beside its file in onnxruntime, every tensor computed from the file's own integers.

Each quantized tensor is computed by TensorFlow from what onnxruntime has before it, quantized, and compared; then
onnxruntime's integers take its place. So a rounding that tips is seen where it happens, and nowhere behind that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from agreement import Arrays, Comparison, QdqFile
from numpy.typing import NDArray
from onnx import numpy_helper

from isobit.graph import Weight, to_canonical
from isobit.quantsim import QuantSim
from isobit_tensorflow.kernels.operands import Rounding
from isobit_tensorflow.model import KerasModel


class Forced:
    """The file that a calibrated Keras simulator exports to `folder`, in onnxruntime."""

    def __init__(self, sim: QuantSim, folder: Path) -> None:
        model = sim.backend_model.inner
        assert isinstance(model, KerasModel)
        self._model, self._file = model, QdqFile(sim, folder)
        self.run = self._file.run

    def compare(self, batch: Arrays) -> Comparison:
        """Integers of every quantized tensor, for the same integers before it."""
        tapped = self._file.tapped(batch)
        counted = []
        layers = self._model.native.quantizers
        rounding: dict[Any, Rounding] = {site: layer.rounded for site, layer in layers.items()}
        for tap in self._file.taps:
            encoding = layers[tap.site].encoding
            integers = to_canonical(tapped[tap.integers].astype(np.int64), self._file.names[tap.site].layout)

            def forced(
                x: tf.Tensor, axes: Any, site: Any = tap.site, e: Any = encoding, q: Any = integers
            ) -> tf.Tensor:
                order = tuple(range(q.ndim)) if axes is None else tuple(axes)
                scale, zero = (np.broadcast_to(part, q.shape).transpose(order) for part in e.broadcast(q.shape))
                expected = np.transpose(q, order)
                simulated = np.rint(layers[site].rounded(x, axes).numpy().astype(np.float64) / scale) + zero
                difference = np.abs(simulated.astype(np.int64) - expected)
                counted.append(Comparison(1, difference.size, int((difference == 0).sum()), int(difference.max())))
                return tf.constant(np.transpose(e.dequantize(q), order))

            rounding[tap.site] = forced
        self._model.native.run_named(self._model.feeds(batch), rounding=rounding)
        total = sum(counted, Comparison())
        return Comparison(len(counted), total.values, total.equal, total.largest)

    def unequal_constants(self) -> tuple[int, list[str]]:
        """How many weights and biases are stored, and which are not what the simulator's quantizer makes of them."""
        stored = {i.name: numpy_helper.to_array(i) for i in self._file.proto.graph.initializer}
        unequal, count = [], 0
        for site, layer in self._model.native.quantizers.items():
            if not isinstance(site, Weight):
                continue
            count += 1
            place = self._file.names[site]
            integers = to_canonical(stored[f"{place.name}_quantized"], place.layout)
            rounded: NDArray[np.float32] = layer.rounded(tf.constant(self._model.weight(site.name))).numpy()
            if not np.array_equal(layer.encoding.dequantize(integers), rounded):
                unequal.append(site.name)
        return count, unequal
