"""Scales and zero points as a file has them, and the format that they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.encodings import PerBlock, PerChannel, PerTensor, QuantSpec

#: Formats by the types that store them.
TYPES = {
    ir.DataType.INT4: "int4", ir.DataType.INT8: "int8", ir.DataType.INT16: "int16", ir.DataType.INT32: "int32",
    ir.DataType.UINT4: "uint4", ir.DataType.UINT8: "uint8", ir.DataType.UINT16: "uint16",
    ir.DataType.FLOAT8E4M3FN: "float8e4m3", ir.DataType.FLOAT8E5M2: "float8e5m2",
    ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FileGrid:
    """Scale and zero point of a DequantizeLinear in the layout of the file; `spec` says its granularity."""

    spec: QuantSpec
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int | None = None


def file_grid(
    kind: ir.DataType, scale: NDArray[np.float32], zeros: NDArray[np.int32], axis: int | None, block: int | None
) -> FileGrid:
    """Numbers of a type on these scales: one for all, one for each place along `axis`, or for blocks along it."""
    granularity = PerTensor() if axis is None else PerChannel() if block is None else PerBlock(block)
    if axis is None:
        scale, zeros = scale.reshape(()), zeros.reshape(())
    spec = QuantSpec.parse(TYPES[kind]).with_granularity(granularity)
    if spec.dtype == "int" and np.any(zeros):
        spec = QuantSpec(spec.dtype, spec.bits, False, granularity=granularity)
    return FileGrid(spec, scale, zeros, axis)


def by_row(grid: FileGrid) -> FileGrid:
    """The grid of a table with a scale for each row, of which the file makes one block."""
    if not isinstance(grid.spec.granularity, PerBlock) or grid.scale.shape[-1] != 1:
        return grid
    spec = grid.spec.with_granularity(PerChannel())
    return FileGrid(spec, grid.scale[:, 0], grid.zero_point[:, 0], 0)
