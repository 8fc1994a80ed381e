"""Scales chosen by the error of the layer's output: among shrunk ranges, and in closed form for given integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import Lpbq, PerBlock, PerTensor
from isobit.encodings.ranges import encode_weight, smallest_scale, snap_up
from isobit.placement.plan import Placement
from isobit.statistics.layer_rows.patches import Patches
from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import Objective

Matrix = NDArray[np.float64]


#: Shrunk ranges that are tried for each channel or block.
CANDIDATES = 20


def search_scale(
    weight: NDArray[np.float32],
    placement: Placement,
    patches: Patches,
    objective: Objective,
    candidates: int = CANDIDATES,
) -> Encoding:
    """The encoding, among `candidates` evenly shrunk min-max ranges, whose nearest rounding errs least.

    Each channel or block chooses for itself, blocks in order, each with the others as they are. LPBQ keeps its min-max
    scales. Source of the candidates: AIMET's sequential MSE.
    """
    spec, axes = placement.spec, {"channel_axis": placement.channel_axis, "block_axis": placement.block_axis}
    min_max = encode_weight(weight, spec, **axes)  # type: ignore[arg-type]
    if isinstance(spec.granularity, Lpbq):
        return min_max
    factors = (
        np.arange(candidates, 0, -1) / candidates
    )  # the widest first: argmin takes the first of equals, which clips least
    tried = [encode_weight(weight * np.float32(factor), spec, **axes) for factor in factors]  # type: ignore[arg-type]
    values = [_nearest(weight, encoding, patches) for encoding in tried]
    if isinstance(spec.granularity, PerBlock):
        choice = _best_blocks(values, min_max, patches, objective)
    else:
        errors = np.stack([_by_scale(objective.error(v), weight.shape, placement, patches) for v in values])
        choice = errors.argmin(axis=0)
    scale, zero_point = (
        np.take_along_axis(np.stack([getattr(candidate, field_name) for candidate in tried]), choice[None], axis=0)[0]
        for field_name in ("scale", "zero_point")
    )
    return replace(min_max, scale=scale, zero_point=zero_point)


def fitted_scale(
    encoding: Encoding, integers: Matrix, placement: Placement, patches: Patches, objective: Objective
) -> Encoding:
    """The encoding with the scales of least error for these integers; zero points stay.

    Least squares in one variable for each scale, for blocks in as many as a channel has blocks. The scales are snapped
    to 12 significant bits, so that the last-bit noise between frameworks stays out of them; one that comes out too
    small or negative stays, and so does all of LPBQ.
    """
    granularity = encoding.spec.granularity
    if isinstance(granularity, Lpbq):
        return encoding
    steps = integers - Grid.of(encoding, patches).zero_point
    if isinstance(granularity, PerBlock):
        scale = _fitted_blocks(steps, encoding.scale.shape, objective)
    else:
        shape = patches.weight_shape
        upper, lower = (
            _by_scale(sums, shape, placement, patches)
            for sums in ((steps * objective.linear).sum(-1), ((steps @ objective.hessian) * steps).sum(-1))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = upper / lower
    useful = np.isfinite(scale) & (scale > smallest_scale(encoding.spec))
    scale = np.where(useful, scale, 1.0)
    return replace(encoding, scale=np.where(useful, snap_up(scale), encoding.scale).astype(np.float32))


def _nearest(weight: NDArray[np.float32], encoding: Encoding, patches: Patches) -> Matrix:
    return patches.matrix(encoding.fake_quantize(weight)).astype(np.float64)


def _by_scale(values: Matrix, shape: tuple[int, ...], placement: Placement, patches: Patches) -> Matrix:
    """Values of each output, (groups, outputs), summed over the outputs that share a scale."""
    if isinstance(placement.spec.granularity, PerTensor) or placement.spec.granularity is None:
        return np.asarray(values.sum())
    outputs = shape[:1] if patches.kernel else shape[:-1]
    other_axes = tuple(axis for axis in range(len(outputs)) if axis != placement.channel_axis)
    return np.asarray(values.reshape(outputs).sum(axis=other_axes))


def _best_blocks(values: list[Matrix], encoding: Encoding, patches: Patches, objective: Objective) -> NDArray[np.intp]:
    """Which candidate each block takes, of the shape of the encoding's scale."""
    current = values[0].copy()
    residual = current @ objective.hessian - objective.linear
    count = encoding.scale.shape[encoding.axis or 0]
    width = patches.columns // count
    chosen = []
    for start in range(0, patches.columns, width):
        block = slice(start, start + width)
        changes = np.stack([v[..., block] for v in values]) - current[..., block]
        inside = changes @ objective.hessian[:, block, block]
        best_candidate = ((inside + 2 * residual[..., block]) * changes).sum(axis=-1).argmin(axis=0)
        change = np.take_along_axis(changes, best_candidate[None, ..., None], axis=0)[0]
        current[..., block] += change
        residual += change @ objective.hessian[:, block, :]
        chosen.append(best_candidate)
    return np.stack(chosen, axis=-1).reshape(encoding.scale.shape)


def _fitted_blocks(steps: Matrix, shape: tuple[int, ...], objective: Objective) -> Matrix:
    """The scales of all blocks of a channel together: the normal equations of ``sum of scale_b * steps_b``."""
    groups, outputs, columns = steps.shape
    count = int(np.prod(shape)) // (groups * outputs)
    scales = np.empty((groups, outputs, count))
    for g in range(groups):
        for o in range(outputs):
            apart = np.zeros((count, columns))
            apart.reshape(count, count, -1)[np.arange(count), np.arange(count)] = steps[g, o].reshape(count, -1)
            normal = apart @ objective.hessian[g] @ apart.T
            scales[g, o] = np.linalg.lstsq(normal, apart @ objective.linear[g, o])[0]
    return scales.reshape(shape)
