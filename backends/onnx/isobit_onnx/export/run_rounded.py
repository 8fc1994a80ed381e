"""What the quantizers of a written file round, and to what, in float mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit_onnx.export.run_written import FLOAT_MODE, size_of
from isobit_onnx.read.initializers import PROTOBUF_LIMIT


def run_rounded(path: Path, batch: Batch, names: Sequence[str]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Tensors by name before and behind their quantizers; those that have one for all their readers.

    Nothing where the file is too large for a message or does not run with them as outputs.
    """
    if size_of(path) >= PROTOBUF_LIMIT:
        return {}
    model = onnx.load(path)
    rounded = _behind(model.graph, set(names))
    known = {output.name for output in model.graph.output}
    wanted = dict.fromkeys(name for pair in rounded.items() for name in pair)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for key, value in FLOAT_MODE.items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )  # fmt: skip
        feeds = {value.name: batch[value.name] for value in session.get_inputs()}
        values = dict(zip(wanted, session.run(list(wanted), feeds), strict=True))
    except Exception:  # onnxruntime raises its own kinds; the file itself has run before
        return {}
    return {name: (np.asarray(values[name]), np.asarray(values[after])) for name, after in rounded.items()}


def _behind(graph: onnx.GraphProto, names: set[str]) -> dict[str, str]:
    """The result of the one quantizer of each of these tensors."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            readers.setdefault(node.input[0], []).append(node)
    found = {}
    for name in names:
        rounding = readers.get(name, [])
        if len(rounding) == 1 and rounding[0].op_type == "QuantizeLinear":
            back = readers.get(rounding[0].output[0], [])
            if back:  # several readers may have one each; all give the same
                found[name] = back[0].output[0]
    return found
