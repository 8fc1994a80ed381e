"""What must hold of every random model: it opens as given, exports, loads everywhere, and runs as simulated."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from draw_graph import GraphCase
from drawing import Array, run
from explain_difference import unexplained
from outcome import Outcome

import isobit
from isobit.errors import IsobitError, IsobitWarning

OTHER_LEVELS = ("ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
_LEAST_DECIBELS = 60.0


def check_graph(case: GraphCase, folder: Path) -> Outcome:
    """Quantize and export a graph, and look at everything that came of it."""

    def quantized() -> Any:
        return isobit.quantize(case.model, case.batches, progress=False, **case.settings.keywords)

    def given(batch: Mapping[str, Array]) -> dict[str, Array]:
        names = [output.name for output in case.model.graph.output]
        feeds = {value.name: batch[value.name] for value in case.model.graph.input}
        return dict(zip(names, run(case.model, feeds), strict=True))

    def why(sim: Any, written: onnx.ModelProto, feeds: dict[str, Array]) -> str:
        return unexplained(sim.model, written, feeds)

    def opened() -> Any:
        return isobit.QuantSim(case.model, target=case.settings.target)

    return check_case(Outcome(case.seed, kinds=case.ops), quantized, given, opened, why, case.batches, folder)


def check_case(
    outcome: Outcome,
    quantized: Callable[[], Any],
    given: Callable[[Any], dict[str, Array]],
    opened: Callable[[], Any],
    why: Callable[[Any, onnx.ModelProto, dict[str, Array]], str],
    batches: list[Any],
    folder: Path,
) -> Outcome:
    """`quantized` makes the simulator; `given` runs the user's model, `opened` makes one that no technique changes.

    `why` says what is wrong where the file gives other bits than the simulator; nothing where ties explain it. What is
    found goes into `outcome`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", IsobitWarning)
            sim = quantized()
            _check_opened(given, opened, batches, outcome)
            result = sim.export(folder)
    except IsobitError as error:
        outcome.add(f"refused by {type(error).__name__}", error)
        return outcome
    except Exception:  # whatever comes out raw
        outcome.add("raw exception", traceback.format_exc(limit=-6))
        return outcome
    outcome.is_quantized = bool(sim.plan.placements)
    for check in result.checks:
        if check.error:
            outcome.add("a session of the export check does not run", check)
    _check_file(sim, result["model"], batches, why, outcome)
    return outcome


def _check_opened(given: Any, opened: Any, batches: list[Any], outcome: Outcome) -> None:
    plain = opened()
    for batch in batches:
        expected, values = given(batch), plain.run_float(batch)
        if expected.keys() != values.keys():
            outcome.add("opened is not given", f"outputs {sorted(expected)}, not {sorted(values)}")
            return
        for name, array in expected.items():
            ratio = _distance(array, values[name])
            if ratio < _LEAST_DECIBELS:
                outcome.add("opened is not given", f"{name}: {ratio:.1f} dB")


def _distance(exact: Array, other: Array) -> float:
    """Decibels; whole numbers may differ in some places, where two scores are equal."""
    if exact.shape != other.shape or exact.dtype != other.dtype:
        return -math.inf
    if exact.dtype.kind != "f":
        return math.inf if exact.size == 0 or np.mean(exact != other) <= 0.05 else -math.inf
    return _decibels(exact, other)


def _decibels(exact: Array, other: Array) -> float:
    finite = np.isfinite(exact) & np.isfinite(other)
    signal, noisy = exact[finite].astype(np.float64), other[finite].astype(np.float64)
    noise, power = float(np.square(signal - noisy).sum()), float(np.square(signal).sum())
    if noise <= 1e-12 * max(exact.size, 1):
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def _check_file(sim: Any, path: Path, batches: list[Any], why: Any, outcome: Outcome) -> None:
    model = onnx.load(path)
    names = [output.name for output in model.graph.output]
    runs = [({v.name: feeds[v.name] for v in model.graph.input}, sim.run(feeds)) for feeds in map(_fed(sim), batches)]
    if any(list(simulated) != names for _, simulated in runs):
        outcome.add("outputs have other names", f"{names}, not {list(runs[0][1])}")
        return
    outcome.bits = "equal"
    for feeds, simulated in runs:
        outputs = _run(model, feeds, simulated, "ORT_DISABLE_ALL", outcome)
        if outputs and not all(np.array_equal(outputs[name], simulated[name], equal_nan=True) for name in names):
            reason = why(sim, model, feeds)
            outcome.bits = "different" if reason else "ties" if outcome.bits == "equal" else outcome.bits
            if reason:
                outcome.add("written is not simulated", reason)
    for level in OTHER_LEVELS:
        outputs = _run(model, runs[0][0], runs[0][1], level, outcome)
    floats = [_decibels(runs[0][1][n], a) for n, a in (outputs or {}).items() if a.dtype.kind == "f"]
    outcome.default_decibels = min(floats, default=math.nan)
    _run_with_precision(model, runs[0][0], outcome)


def _fed(sim: Any) -> Callable[[Any], dict[str, Array]]:
    """Batches by the name of the input."""
    names = list(sim.graph.inputs)

    def fed(batch: Any) -> dict[str, Array]:
        if isinstance(batch, Mapping):
            return dict(batch)
        parts = batch if isinstance(batch, tuple) else (batch,)
        return dict(zip(names, (np.asarray(part) for part in parts), strict=True))

    return fed


def _run(
    model: onnx.ModelProto, feeds: dict[str, Array], simulated: Mapping[str, Array], level: str, outcome: Outcome
) -> dict[str, Array] | None:
    try:
        outputs = dict(zip(simulated, run(model, feeds, level), strict=True))
    except Exception as error:  # onnxruntime raises its own kinds
        outcome.add(f"refused at {level}", error)
        return None
    for name, array in outputs.items():
        if array.shape != simulated[name].shape:
            outcome.add(f"another shape at {level}", f"{name}: {array.shape}, not {simulated[name].shape}")
            return None
    return outputs


def _run_with_precision(model: onnx.ModelProto, feeds: dict[str, Array], outcome: Outcome) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
    except Exception as error:  # onnxruntime raises its own kinds
        outcome.add("refused with session.x64quantprecision=1", error)
