"""Latency and size of model files, measured with onnxruntime on this machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isobit.data import Batch
from isobit.errors import ModelError

_WARM_UP, _FEWEST, _MOST, _SECONDS = 2, 5, 50, 3.0
_STEADY = 1.5  # if a median is further above the best run, the machine was busy


@dataclass(frozen=True)
class Latency:
    """Median and best milliseconds a batch of each file, None where onnxruntime cannot run the float one."""

    float_ms: float | None
    quantized_ms: float
    float_best_ms: float | None
    quantized_best_ms: float
    batch: int
    threads: int
    repeats: int
    runtime: str

    @property
    def is_steady(self) -> bool:
        """Whether the runs took about the same time, so that the ratio of the medians means something."""
        pairs = ((self.float_ms, self.float_best_ms), (self.quantized_ms, self.quantized_best_ms))
        return all(ms is None or best is None or ms <= _STEADY * best for ms, best in pairs)


def runtime_available() -> bool:
    """Whether onnxruntime is installed."""
    return find_spec("onnxruntime") is not None


def available_threads() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FileSession:
    """A model file in onnxruntime on the CPU, as a user would deploy it: all optimisations, no saturating sums."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # Without it, sums of uint8 x int8 products saturate on x86-64 processors that have no VNNI.
        options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.output_names = [output.name for output in self._session.get_outputs()]
        except Exception as error:  # onnxruntime raises its own kinds
            raise ModelError(f"onnxruntime cannot load {path}: {' '.join(str(error).split())[:300]}") from error

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        try:
            values = self._session.run(self.output_names, dict(batch))
        except Exception as error:
            raise ModelError(f"onnxruntime failed on a batch: {' '.join(str(error).split())[:300]}") from error
        return dict(zip(self.output_names, values, strict=True))


def measure(float_session: FileSession | None, quantized: FileSession, batch: Batch, threads: int) -> Latency:
    """Time both models on one batch, turn by turn, so that a busy machine slows both alike."""
    import onnxruntime

    sessions = [quantized] if float_session is None else [float_session, quantized]
    for session in sessions * _WARM_UP:
        session.run(batch)
    times: list[list[float]] = [[] for _ in sessions]
    begin = time.perf_counter()
    while len(times[0]) < _MOST and (len(times[0]) < _FEWEST or time.perf_counter() - begin < _SECONDS):
        for session, durations in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(batch)
            durations.append((time.perf_counter() - start) * 1e3)
    medians, best = [statistics.median(durations) for durations in times], [min(durations) for durations in times]
    size = len(next(iter(batch.values())))
    runtime = f"onnxruntime {onnxruntime.__version__}, CPU"
    float_times = (medians[0], best[0]) if float_session else (None, None)
    return Latency(float_times[0], medians[-1], float_times[1], best[-1], size, threads, len(times[0]), runtime)


def first_samples(batch: Batch, count: int, fixed: int | None) -> Batch:
    """At most `count` samples of a batch; all of it where the model's batch is fixed."""
    return dict(batch) if fixed else {name: array[:count] if array.ndim else array for name, array in batch.items()}


def file_size(path: Path) -> int | None:
    """Bytes of a model file with its external weights; None where it is unknown."""
    if not path.is_file():
        return None
    return path.stat().st_size + sum(
        external.stat().st_size for external in _external_files(path) if external.is_file()
    )


def _external_files(path: Path) -> Sequence[Path]:
    if path.suffix.lower() != ".onnx" or find_spec("onnx") is None:
        return ()
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # the backend has opened it, so this is a kind of file that has no external weights
        return ()
    locations = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / location for location in sorted(locations)]
