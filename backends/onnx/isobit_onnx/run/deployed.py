"""A model file in the session that a user deploys it in on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit.errors import ModelError
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.open_session import open_session
from isobit_onnx.run.saturation import sums_saturate

#: What makes integer sums exact where they saturate. Elsewhere it would only cost time.
EXACT_SUMS = "session.x64quantprecision"


class DeployedFile:
    """onnxruntime's session of a file on the CPU: all optimisations, and exact sums where they would saturate."""

    #: With one thread onnxruntime starts none of its own.
    computes_in_caller = True

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.runtime = f"onnxruntime {onnxruntime.__version__}, CPU"
        if sums_saturate():
            options.add_session_config_entry(EXACT_SUMS, "1")
            self.runtime += f", {EXACT_SUMS}=1 (no VNNI)"
        try:
            self._session = open_session(str(path), options)
        except Exception as error:  # onnxruntime raises its own kinds
            raise ModelError(f"onnxruntime cannot load {path}: {one_line(error)}") from error
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        try:
            values = self._session.run(self._names, dict(batch))
        except Exception as error:
            raise ModelError(f"onnxruntime failed on a batch: {one_line(error)}") from error
        return dict(zip(self._names, values, strict=True))
