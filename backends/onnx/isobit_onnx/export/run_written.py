"""A written QDQ model is run in every session that users may run it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from isobit.backend import Batch, WrittenRun
from isobit_onnx.export.check_loads import not_loaded
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.open_session import open_session
from isobit_onnx.run.deployed import EXACT_SUMS
from isobit_onnx.run.saturation import sums_saturate

_LARGE = 2**26  # bytes of integers, a quarter of what they are as floats
_FLOAT, _DEFAULT, _EXACT = "float mode (session.disable_quant_qdq=1)", "default session", f"{EXACT_SUMS}=1"

#: Session options with which a file computes as it is written.
FLOAT_MODE: Mapping[str, str] = {"session.disable_quant_qdq": "1"}

#: Session options by what they are called: computed as written, as it comes, and as the summary of an export advises.
SESSIONS: Mapping[str, Mapping[str, str]] = {
    _FLOAT: FLOAT_MODE,
    _DEFAULT: {},
    _EXACT: {EXACT_SUMS: "1"},
}


def run_written(path: Path, batch: Batch) -> list[WrittenRun]:
    """The outputs of a file in each of SESSIONS on the CPU; an error of one of them is in its place.

    Raises ModelError where the default session does not load it.
    """
    runs = {name: _run(name, entries, path, batch) for name, entries in SESSIONS.items()}
    default, exact = runs[_DEFAULT], runs[_EXACT]
    if not default.error and not exact.error and not _same(default.outputs, exact.outputs) and sums_saturate():
        remark = f"integer sums saturate on this processor, so run it with {EXACT_SUMS}=1"
        runs[_DEFAULT] = replace(default, remark=remark)
    return list(runs.values())


def _same(outputs: Mapping[str, NDArray[Any]], others: Mapping[str, NDArray[Any]]) -> bool:
    # Bytes, because NaN is not equal to itself, and strings are not numbers.
    return all(values.tobytes() == others[name].tobytes() for name, values in outputs.items())


def size_of(path: Path) -> int:
    """Bytes of a model file and of what lies beside it under its name."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _run(name: str, entries: Mapping[str, str], path: Path, batch: Batch) -> WrittenRun:
    options = onnxruntime.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    # In float mode all weights become floats before the first run; those of a large file one by one, as they are read.
    unwanted = ["ConstantFolding"] if name == _FLOAT and size_of(path) > _LARGE else None
    try:
        session = open_session(str(path), options, disabled_optimizers=unwanted)
    except Exception as error:  # onnxruntime raises its own kinds
        if name == _DEFAULT:
            raise not_loaded(error) from error
        return WrittenRun(name, error=f"it does not run: {one_line(error)}")
    try:
        inputs = [value.name for value in session.get_inputs()]
        feeds = {key: batch[key] for key in inputs}
        values = session.run(None, feeds)
    except Exception as error:  # onnxruntime raises its own kinds
        return WrittenRun(name, error=f"it does not run: {one_line(error)}")
    outputs = {output.name: np.asarray(v) for output, v in zip(session.get_outputs(), values, strict=True)}
    return WrittenRun(name, outputs)
