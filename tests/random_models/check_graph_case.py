"""What must hold of every random graph: it opens as given, exports, loads everywhere, and runs as simulated."""

from __future__ import annotations

import math
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from draw_graph import GraphCase
from drawing import Array, run
from explain_difference import unexplained

import isobit
from isobit.errors import IsobitError, IsobitWarning

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
_LEAST_DECIBELS = 60.0


@dataclass
class Outcome:
    """What came of a case. `problems` are (kind, text); none where all holds."""

    seed: int
    problems: list[tuple[str, str]] = field(default_factory=list)
    equal: bool = False  # the file without optimisation gives the simulator's bits
    ties: bool = False  # or differs from a rounding tie on
    default_decibels: float = math.inf  # the default session from the simulator
    default_equal: float = 1.0
    quantized: bool = False


def check_graph_case(case: GraphCase, folder: Path) -> Outcome:
    """Quantize and export a case, and look at everything that came of it."""
    outcome = Outcome(case.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", IsobitWarning)
            sim = isobit.quantize(case.model, case.batches, progress=False, **case.settings.keywords)
            _check_float(case, sim, outcome)
            result = sim.export(folder)
    except IsobitError as error:
        outcome.problems.append((f"refused {type(error).__name__}", str(error)))
        return outcome
    except Exception:  # whatever comes out raw
        outcome.problems.append(("raw exception", traceback.format_exc(limit=-6)))
        return outcome
    outcome.quantized = bool(sim.plan.placements)
    for check in result.checks:
        if check.error:
            outcome.problems.append(("a session does not run", str(check)))
    _check_file(case, sim, result["model"], outcome)
    return outcome


def _check_float(case: GraphCase, sim: Any, outcome: Outcome) -> None:
    """The float model against the given one, where no technique has changed it on purpose."""
    if case.settings.recipe == "transformer":
        return
    plain = isobit.QuantSim(case.model, target=case.settings.target)
    for batch in case.batches:
        given = dict(zip([o.name for o in case.model.graph.output], run(case.model, _fed(case, batch)), strict=True))
        opened = plain.run_float(batch)
        if given.keys() != opened.keys():
            outcome.problems.append(("opened is not given", f"outputs {sorted(given)}, not {sorted(opened)}"))
            return
        for name, values in given.items():
            ratio = _distance(values, opened[name])
            if ratio < _LEAST_DECIBELS:
                outcome.problems.append(("opened is not given", f"{name}: {ratio:.1f} dB"))


def _fed(case: GraphCase, batch: dict[str, Array]) -> dict[str, Array]:
    return {value.name: batch[value.name] for value in case.model.graph.input}


def _distance(exact: Array, other: Array) -> float:
    """Decibels; whole numbers may differ in some places, where two scores are equal."""
    if exact.shape != other.shape or exact.dtype != other.dtype:
        return -math.inf
    if exact.dtype.kind != "f":
        return math.inf if exact.size == 0 or np.mean(exact != other) <= 0.05 else -math.inf
    noise = float(np.square(exact.astype(np.float64) - other).sum())
    power = float(np.square(exact.astype(np.float64)).sum())
    if noise <= 1e-12 * exact.size:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def _check_file(case: GraphCase, sim: Any, path: Path, outcome: Outcome) -> None:
    model = onnx.load(path)
    names = [output.name for output in model.graph.output]
    outcome.equal = True
    for position, batch in enumerate(case.batches):
        simulated = sim.run(batch)
        if list(simulated) != names:
            outcome.problems.append(("outputs have other names", f"{names}, not {list(simulated)}"))
            return
        feeds = {value.name: batch[value.name] for value in model.graph.input}
        for level in LEVELS if position == 0 else LEVELS[:1]:
            try:
                outputs = run(model, feeds, level)
            except Exception as error:  # onnxruntime raises its own kinds
                outcome.problems.append((f"refused at {level}", str(error)))
                continue
            if any(a.shape != simulated[n].shape for n, a in zip(names, outputs, strict=True)):
                outcome.problems.append((f"another shape at {level}", f"{[a.shape for a in outputs]}"))
            elif level == "ORT_DISABLE_ALL":
                if any(
                    not np.array_equal(a, simulated[n], equal_nan=True) for n, a in zip(names, outputs, strict=True)
                ):
                    outcome.equal = False
                    why = unexplained(sim.model, model, feeds)
                    if why:
                        outcome.problems.append(("written is not simulated", why))
                    outcome.ties = True
            elif level == "ORT_ENABLE_ALL":
                pairs = [(simulated[n], a) for n, a in zip(names, outputs, strict=True)]
                floats = [_decibels(s, a) for s, a in pairs if s.dtype.kind == "f"]
                outcome.default_decibels = min(floats, default=math.inf)
                total = sum(s.size for s, _ in pairs)
                outcome.default_equal = sum(int(np.sum(s == a)) for s, a in pairs) / max(1, total)
    _run_with_precision(model, {v.name: case.batches[0][v.name] for v in model.graph.input}, outcome)


def _decibels(exact: Array, other: Array) -> float:
    noise = float(np.square(exact.astype(np.float64) - other).sum())
    power = float(np.square(exact.astype(np.float64)).sum())
    return math.inf if noise == 0 else 10 * math.log10(max(power, 1e-30) / noise)


def _run_with_precision(model: onnx.ModelProto, feeds: dict[str, Array], outcome: Outcome) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, feeds)
    except Exception as error:  # onnxruntime raises its own kinds
        outcome.problems.append(("refused at x64quantprecision", str(error)))
