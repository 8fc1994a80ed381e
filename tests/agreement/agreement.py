"""Whether a simulator and the file that it exports agree, in onnxruntime: outputs in dB, integers one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from isobit.backend import NameMap
from isobit.graph import Tensor
from isobit.quantsim import QuantSim

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


@dataclass
class Sums:
    """Signal, and noise of simulator against float and of onnxruntime against the simulator; top-1 agreement."""

    signal: float = 0.0
    simulated_noise: float = 0.0
    executed_noise: float = 0.0
    choices: int = 0
    agreed: int = 0

    def add(
        self, plain: Arrays, simulated: Arrays, executed: Arrays, mask: NDArray[Any] | None, *, classes: bool
    ) -> None:
        """Count the first output of one batch, `classes` where it is logits; what a mask hides is left out."""
        key = next(iter(plain))
        x, y, z = (_valid(outputs[key].astype(np.float64), mask) for outputs in (plain, simulated, executed))
        self.signal += float(np.square(x).sum())
        self.simulated_noise += float(np.square(y - x).sum())
        self.executed_noise += float(np.square(z - y).sum())
        if classes:
            axis = 1 if x.ndim == 4 else -1
            agreed = y.argmax(axis) == z.argmax(axis)
            self.choices, self.agreed = self.choices + agreed.size, self.agreed + int(agreed.sum())

    @property
    def simulator(self) -> float:
        """SQNR of the simulator against the float model, in dB."""
        return _decibels(self.signal, self.simulated_noise)

    @property
    def onnxruntime(self) -> float:
        """SQNR of onnxruntime against the simulator, in dB."""
        return _decibels(self.signal, self.executed_noise)

    @property
    def close(self) -> bool:
        """Whether onnxruntime gives what the simulator does: a tenth of its error at most, or the same choices."""
        return self.onnxruntime >= self.simulator + 20 or (self.top_1 is not None and self.top_1 >= 0.995)

    @property
    def top_1(self) -> float | None:
        """Share of equal choices, None without logits."""
        return self.agreed / self.choices if self.choices else None


def _valid(output: NDArray[np.float64], mask: NDArray[Any] | None) -> NDArray[np.float64]:
    return output[mask.astype(bool)] if mask is not None and output.shape[:2] == mask.shape else output


def _decibels(signal: float, noise: float) -> float:
    return float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))


@dataclass
class Row:
    """What is measured of one architecture."""

    sites: int
    float_error: float
    sums: Sums
    integers: Comparison
    constants: tuple[int, list[str]]
    floats: str
    sizes: str

    @property
    def verdict(self) -> str:
        """Whether the requirement is met, or what is not."""
        integers, sums = self.integers, self.sums
        missed = []
        if integers.share < 0.999 or integers.largest > 1 or self.constants[1]:
            missed.append("integers")
        if not sums.close:
            missed.append("onnxruntime")
        if not self.float_error < 1e-4:
            missed.append("float")
        return "yes" if not missed else f"no: {', '.join(missed)}"

    def cells(self) -> list[str]:
        """The cells of the table."""
        sums, integers = self.sums, self.integers
        top = "" if sums.top_1 is None else f"{100 * sums.top_1:.1f} %"
        onnxruntime_text = "equal" if np.isinf(sums.onnxruntime) else f"{sums.onnxruntime:.0f}"
        share = f"{100 * integers.share:.3f} %".replace("100.000", "100")
        count, unequal = self.constants
        weights = f"{count} equal" if not unequal else f"{len(unequal)} of {count} differ"
        return [
            self.verdict, f"{self.sites}", f"{self.float_error:.0e}", f"{sums.simulator:.1f}", onnxruntime_text, top,
            f"{integers.quantizers}", share, f"{integers.largest}", weights, self.sizes, self.floats,
        ]  # fmt: skip


@dataclass(frozen=True)
class Tap:
    """A quantized tensor of the file: what its QuantizeLinear reads, and the integers that it makes."""

    site: Tensor
    source: str
    integers: str


class QdqFile:
    """The file that a calibrated simulator exports to `folder`, in onnxruntime, whole and tensor by tensor."""

    def __init__(self, sim: QuantSim, folder: Path) -> None:
        self.names: NameMap = {}
        self.path = self._export(sim, folder)
        self._session = _session(str(self.path))
        self.proto = onnx.load(self.path)
        quantizes = {node.output[0]: node for node in self.proto.graph.node if node.op_type == "QuantizeLinear"}
        self.taps = []
        for site, encoding in sim.backend_model.encodings().items():
            # Halves are cast, and onnxruntime hands out no 8-bit floats.
            if isinstance(site, Tensor) and not encoding.spec.type_name.startswith(("float", "bfloat")):
                node = quantizes[f"{self.names[site].name}_quantized"]
                self.taps.append(Tap(site, node.input[0], node.output[0]))
        already_there = {value.name for value in (*self.proto.graph.output, *self.proto.graph.input)}
        added = dict.fromkeys(
            name for tap in self.taps for name in (tap.source, tap.integers) if name not in already_there
        )
        self.proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
        self._tapped: onnxruntime.InferenceSession | None = None

    def _export(self, sim: QuantSim, folder: Path) -> Path:
        """Export, and keep the names that the backend gives."""
        model: Any = sim.backend_model.inner
        exported, self.names = model.to_onnx()
        model.__dict__["to_onnx"] = lambda: (exported, self.names)
        try:
            return sim.export(folder)["model"]
        finally:
            del model.__dict__["to_onnx"]

    def run(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        return _run(self._session, batch)

    def tapped(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """What every tap names, outputs and inputs, by name."""
        if self._tapped is None:
            self._tapped = _session(self.proto.SerializeToString(), tapped=True)
        return {**batch, **_run(self._tapped, batch)}


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
