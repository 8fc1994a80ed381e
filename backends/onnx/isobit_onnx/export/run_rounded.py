"""What the quantizers of a written file round, and to what, in float mode."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit_onnx.export.run_written import FLOAT_MODE, size_of
from isobit_onnx.read.initializers import PROTOBUF_LIMIT
from isobit_onnx.read.open_session import open_session


def run_rounded(
    path: Path, batch: Batch, rounds: Iterable[Sequence[str]]
) -> Iterator[dict[str, tuple[NDArray[Any], NDArray[Any]]]]:
    """For each round of names those tensors before and behind their quantizers that have one for all their readers.

    The file is read once. It ends where that is too large for a message or does not run with them as outputs.
    """
    if size_of(path) >= PROTOBUF_LIMIT:
        return
    model = onnx.load(path)
    own = [output.name for output in model.graph.output]
    for names in rounds:
        rounded = _behind(model.graph, set(names))
        wanted = list(dict.fromkeys(name for pair in rounded.items() for name in pair))
        del model.graph.output[len(own) :]
        values = _values(model, batch, wanted)
        if values is None:
            return
        yield {name: (values[name], values[after]) for name, after in rounded.items()}


def run_computed(path: Path, batch: Batch, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Those of these tensors that nodes of the file give, before a quantizer; nothing where `run_rounded` ends."""
    if size_of(path) >= PROTOBUF_LIMIT:
        return {}
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    return _values(model, batch, [name for name in dict.fromkeys(names) if name in made]) or {}


def _values(model: onnx.ModelProto, batch: Batch, wanted: list[str]) -> dict[str, NDArray[Any]] | None:
    """These tensors, which become outputs of the model; None where it does not run so."""
    if not wanted:
        return {}
    own = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in own)
    options = onnxruntime.SessionOptions()
    for key, value in FLOAT_MODE.items():
        options.add_session_config_entry(key, value)
    try:
        session = open_session(model.SerializeToString(), options)
        feeds = {value.name: batch[value.name] for value in session.get_inputs()}
        return {name: np.asarray(v) for name, v in zip(wanted, session.run(wanted, feeds), strict=True)}
    except Exception:  # onnxruntime raises its own kinds; the file itself has run before
        return None


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
