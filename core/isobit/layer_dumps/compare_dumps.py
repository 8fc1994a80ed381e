"""How far the tensors of two layer dumps are apart: in steps of their grid, and in dB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.layer_dumps.layer_dump import DumpedTensor, LayerDump
from isobit.quantsim.checks.quality import decibels


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of dump A against that of dump B.

    `equal` is the share of equal values, `largest` the largest difference, `steps` that in steps of the grid of B, or
    of A where B has none, None where neither is on a grid. `decibels` is the power of A over that of the difference,
    infinite where all are equal. `problem` says why nothing was compared, and is empty otherwise.
    """

    name: str
    equal: float = 0.0
    largest: float = 0.0
    steps: float | None = None
    decibels: float = 0.0
    problem: str = ""


def compare_dumps(a: LayerDump, b: LayerDump) -> list[TensorDifference]:
    """Every tensor of `a`, in the order in which it is computed, then those that only `b` has.

    Tensors are the same where their names are, else where their names in ONNX are, so that dumps of two frameworks can
    be compared.
    """
    by_onnx = {tensor.onnx: name for name, tensor in b.tensors.items() if tensor.onnx}
    differences, matched = [], set()
    for name, tensor in a.tensors.items():
        other = name if name in b.tensors else by_onnx.get(tensor.onnx)
        if other is None:
            differences.append(TensorDifference(name, problem="only in A"))
            continue
        matched.add(other)
        differences.append(_difference(name, tensor, b.tensors[other]))
    only_b = [TensorDifference(name, problem="only in B") for name in b.tensors if name not in matched]
    return [*differences, *only_b]


def _difference(name: str, a: DumpedTensor, b: DumpedTensor) -> TensorDifference:
    if a.values.shape != b.values.shape:
        return TensorDifference(name, problem=f"shapes {a.values.shape} and {b.values.shape}")
    same = (a.values == b.values) | ((a.values != a.values) & (b.values != b.values))
    if np.all(same):
        return TensorDifference(name, 1.0, 0.0, 0.0 if _grid(a, b) is not None else None, np.inf)
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a.values.astype(np.float64) - b.values))
    apart = np.where(np.isnan(apart), np.inf, apart)  # NaN or infinity in one of them alone
    grid = _grid(a, b)
    steps = None if grid is None else float((apart / grid).max())
    return TensorDifference(name, float(same.mean()), float(apart.max()), steps, decibels(a.values, b.values))


def _grid(a: DumpedTensor, b: DumpedTensor) -> NDArray[np.float64] | None:
    """The steps of either grid, as they lie along the values."""
    tensor = b if b.scale is not None else a
    if tensor.scale is None:
        return None
    scale = tensor.scale.astype(np.float64)
    if scale.size == 1 or tensor.channel_axis is None or not tensor.values.ndim:
        return np.array([scale.max()])
    shape = [1] * tensor.values.ndim
    shape[tensor.channel_axis] = -1
    return scale.reshape(shape)
