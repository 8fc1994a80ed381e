"""The user's own model in onnxruntime, as it was given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit.errors import ModelError
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.open_session import open_session
from isobit_onnx.run.session import chosen_providers, own_arrays


def run_given(
    source: Any, batch: Batch, values: Mapping[str, str], providers: Sequence[str], run: int = 1
) -> dict[str, NDArray[Any]]:
    """Outputs by name; with `values`, those tensors by the name of the value that holds each, where there is one.

    `run` is which run of a session is meant, from 1: every session of a process draws the same random numbers, so that
    noise is seen from run to run alone.
    Raises ModelError where onnxruntime does not run the model, or its file is gone.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # for one run: no second copy of the weights
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as in `Session`
    try:
        model, present = _with_outputs(source, values) if values else (_serialized(source), {})
        session = open_session(model, options, chosen_providers(providers))
        feeds = {value.name: batch[value.name] for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs() if value.type.startswith("tensor")]
        for _ in range(run - 1):
            session.run(names, feeds)
        results = dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # onnxruntime and protobuf raise their own kinds
        raise ModelError(f"onnxruntime does not run it: {one_line(error)}") from error
    if values:
        results = {tensor: results[value] for tensor, value in present.items()}
    return own_arrays({name: np.asarray(result) for name, result in results.items()})


def _serialized(source: Any) -> str | bytes:
    """A path as it is, so that weights beside the file are found."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    proto = ir.to_proto(source) if isinstance(source, ir.Model) else source
    return bytes(proto.SerializeToString())


def _with_outputs(source: Any, values: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The model with further outputs, and which of the tensors it has."""
    proto = onnx.ModelProto()
    if isinstance(source, str | os.PathLike):
        proto = onnx.load(os.fspath(source))
    else:
        proto.CopyFrom(ir.to_proto(source) if isinstance(source, ir.Model) else source)
    computed = {name for node in proto.graph.node for name in node.output if name}
    outputs = {value.name for value in proto.graph.output}
    present = {tensor: value for tensor, value in values.items() if value in computed}
    for value in dict.fromkeys(present.values()):
        if value not in outputs:
            proto.graph.output.append(onnx.ValueInfoProto(name=value))
    return bytes(proto.SerializeToString()), present
