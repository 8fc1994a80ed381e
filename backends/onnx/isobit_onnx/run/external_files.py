"""The files that hold the external weights of an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx


def external_files(path: Path) -> list[Path]:
    """Those that are there, by name; none where `path` is no ONNX file."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # damaged files fail in many ways, and the reader says how
        return []
    locations = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [path.parent / location for location in sorted(locations)]
    return [file for file in files if file.is_file()]
