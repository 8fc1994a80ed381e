"""A user's program, for type checkers: `mypy` checks it with the rest, `basedpyright` it alone; it is never run."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import isobit
from isobit import Encoding, Encodings, QuantSim, QuantSpec
from isobit.backend import Backend, CheckedModel
from isobit.plugins import PluginRecord, hookimpl, registry
from isobit.quantsim import ExportResult


def quantized(model: Path, data: list[NDArray[np.float32]]) -> QuantSim:
    """The whole way, by the names that the README shows."""
    sim = isobit.quantize(
        model, data, method="percentile=99.9", weights=QuantSpec.parse("int8"), target="onnxruntime-cpu"
    )
    assert_type(sim, QuantSim)
    sim.recalibrate("minmax")
    assert_type(sim.encodings, Encodings)
    assert_type(sim.encodings["conv.weight"], Encoding)
    assert_type(sim.export("out/"), ExportResult)
    assert_type(sim.export("out/")["model"], Path)
    sim.save("model.isobit")
    return isobit.load("model.isobit", model)


def contracts(backend: Backend) -> CheckedModel:
    """Plug-ins: a hook, the registry, and a backend by its contract."""
    assert_type(registry().records["onnx"], PluginRecord)
    assert_type(registry().backends()["onnx"], Backend)
    return registry().open("model.onnx", backend=backend)


@hookimpl
def isobit_targets() -> list[Path]:
    """A hook keeps its type."""
    return [Path("npu.toml")]


def handled(model: Path) -> str:
    """Every error on purpose is an IsobitError."""
    try:
        return str(isobit.QuantSim(model).report)
    except isobit.IsobitError as error:
        return str(error)
