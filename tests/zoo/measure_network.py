"""A network of the zoo the whole way: opened, quantized, written, and run in onnxruntime."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from zoo_network import Batch, Run, ZooNetwork

import isobit
from isobit.placement.coverage import Coverage
from isobit.quantsim import QuantSim
from isobit.quantsim.checks.written import SessionCheck
from isobit_onnx.run.saturation import sums_saturate


@dataclass(frozen=True)
class Measured:
    """What came of a network: scores of the task in percent, outputs in dB, and time of the file over that of float."""

    coverage: Coverage
    checks: tuple[SessionCheck, ...]
    float_figure: float
    integer_figure: float
    decibels: float
    time_ratio: float
    reasons: dict[str, int]
    warned: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether the file in float mode is the simulator but for values that tip: nine in ten equal, or 25 dB."""
        check = self.checks[0]
        return not check.error and (check.equal >= 0.9 or check.decibels >= 25)

    @property
    def runs(self) -> bool:
        """Whether the file runs in every session."""
        return not any(check.error for check in self.checks)

    @property
    def lost(self) -> float:
        """Points of the score that INT8 costs."""
        return self.float_figure - self.integer_figure


def measure(network: ZooNetwork) -> Measured:
    """Quantize a network with its settings, and compare the written file with what was given."""
    model = network.model()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        sim = isobit.quantize(model, network.data(), progress=False, **network.settings)
        with tempfile.TemporaryDirectory() as folder:
            is_file = isinstance(model, Path)
            # The float model of a module is written beside encodings that use its names.
            written = sim.export(Path(folder), encodings_formats=() if is_file else "aimet-1.0.0")
            given = given_run(model, sim)
            float_file = model if is_file else written["float_model"]
            run = session_run(session(written["model"]))
            held_out = network.held_out()
            float_figure = network.figure(given)
            return Measured(
                sim.report.coverage,
                written.checks,
                float_figure,
                network.figure(run),
                min(map(decibels, given(held_out), run(held_out))),
                time_ratio(written["model"], float_file, held_out),
                reasons(sim),
                tuple(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)),
            )


def given_run(model: Any, sim: QuantSim) -> Run:
    """What runs the user's own model: onnxruntime the file, PyTorch the module, Keras the model."""
    if isinstance(model, Path):
        return session_run(session(model))
    if hasattr(model, "parameters"):
        import torch

        def run_module(batch: Batch) -> list[NDArray[Any]]:
            with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
                return [model(*(torch.from_numpy(batch[name]) for name in sim.graph.inputs)).numpy()]

        return run_module
    return lambda batch: [np.asarray(model(list(batch.values()), training=False))]


def session(file: Path) -> onnxruntime.InferenceSession:
    """A session of one thread, as the summary of an export advises: sums do not saturate on this processor."""
    options = onnxruntime.SessionOptions()
    if sums_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def session_run(opened: onnxruntime.InferenceSession) -> Run:
    """Runs a session on what it takes of a batch."""
    names = {entry.name for entry in opened.get_inputs()}
    return lambda batch: opened.run(None, {name: values for name, values in batch.items() if name in names})


def time_ratio(file: Path, float_file: Path, batch: Batch, rounds: int = 15) -> float:
    """Time of the quantized file over that of the float file, the medians of alternating runs."""
    runs = [session_run(session(path)) for path in (file, float_file)]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(batch)
            taken.append(time.perf_counter() - start)
    return float(np.median(times[0]) / np.median(times[1]))


def decibels(exact: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to noise of an output; minus infinity for another shape, infinite where it is equal or no number."""
    if exact.shape != other.shape:
        return -np.inf
    if exact.dtype.kind != "f":
        return np.inf
    noise = float(np.square(other.astype(np.float64) - exact).sum())
    return float(10 * np.log10(np.square(exact.astype(np.float64)).sum() / noise)) if noise else np.inf


def reasons(sim: QuantSim) -> dict[str, int]:
    """Bytes of float constants that stay in float, by reason."""
    found: dict[str, int] = {}
    left = sim.report.left_in_float
    for name, info in sim.graph.weights.items():
        if name in left and info.is_float:
            found[left[name]] = found.get(left[name], 0) + 4 * int(np.prod(info.shape))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
