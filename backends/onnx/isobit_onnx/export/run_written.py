"""A written QDQ model is run in every session that users may run it in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from isobit.backend import Batch, WrittenRun
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.initializers import LARGE_WEIGHTS
from isobit_onnx.run.session import SPARING

#: Session options by what they are called: computed as written, as it comes, and as the summary of an export advises.
SESSIONS: Mapping[str, Mapping[str, str]] = {
    "float mode (session.disable_quant_qdq=1)": {"session.disable_quant_qdq": "1"},
    "default session": {},
    "session.x64quantprecision=1": {"session.x64quantprecision": "1"},
}


def run_written(path: Path, batch: Batch) -> list[WrittenRun]:
    """The outputs of a file in each of SESSIONS on the CPU; an error of one of them is in its place."""
    return [_run(name, entries, path, batch) for name, entries in SESSIONS.items()]


def _run(name: str, entries: Mapping[str, str], path: Path, batch: Batch) -> WrittenRun:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    files = (path, path.with_name(f"{path.name}.data"))
    size = sum(file.stat().st_size for file in files if file.exists())
    for key, value in {**entries, **(SPARING if 4 * size > LARGE_WEIGHTS else {})}.items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = [value.name for value in session.get_inputs()]
        feeds = {key: batch[key] for key in inputs}
        values = session.run(None, feeds)
    except Exception as error:  # onnxruntime raises its own kinds
        return WrittenRun(name, error=f"it does not run: {one_line(error)}")
    outputs = {output.name: np.asarray(v) for output, v in zip(session.get_outputs(), values, strict=True)}
    return WrittenRun(name, outputs)
