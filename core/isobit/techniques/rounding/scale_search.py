"""Scales chosen by the error of the layer's output: among shrunk ranges, and in closed form for given integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from isobit import arithmetic
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import Lpbq, PerBlock, PerTensor
from isobit.encodings.ranges import encode_weight, smallest_scale, snap_up
from isobit.placement.plan import Placement
from isobit.statistics.layer_rows.patches import Patches
from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import OutputError

Matrix = NDArray[np.float64]


#: Shrunk ranges that are tried for each channel or block.
CANDIDATES = 20

#: A channel whose error is so many times that of its best range is not tried with narrower ones.
_HOPELESS = 4.0

#: Outputs whose blocks are fitted at once: there are the squares of their blocks to hold.
_OUTPUTS = 256


def search_scale(
    weight: NDArray[np.float32],
    placement: Placement,
    patches: Patches,
    objective: OutputError,
    candidates: int = CANDIDATES,
) -> Encoding:
    """The encoding, among `candidates` evenly shrunk min-max ranges, whose nearest rounding errs least.

    Each channel or block chooses for itself, from the widest range on until the error has become four times the least;
    blocks in order, each with the others as they are. LPBQ keeps its min-max scales. Source of the candidates: AIMET's
    sequential MSE.
    """
    spec, axes = placement.spec, {"channel_axis": placement.channel_axis, "block_axis": placement.block_axis}
    min_max = encode_weight(weight, spec, **axes)  # type: ignore[arg-type]
    if isinstance(spec.granularity, Lpbq):
        return min_max
    factors = (
        np.arange(candidates, 0, -1) / candidates
    )  # the widest first: argmin takes the first of equals, which clips least
    tried = [encode_weight(weight * np.float32(factor), spec, **axes) for factor in factors]  # type: ignore[arg-type]
    if isinstance(spec.granularity, PerBlock):
        choice = _best_blocks(weight, tried, patches, objective)
    else:
        choice = _best_channels(weight, tried, placement, patches, objective)
    scale, zero_point = (
        np.take_along_axis(np.stack([getattr(candidate, field_name) for candidate in tried]), choice[None], axis=0)[0]
        for field_name in ("scale", "zero_point")
    )
    return replace(min_max, scale=scale, zero_point=zero_point)


def fitted_scale(
    encoding: Encoding, integers: Matrix, placement: Placement, patches: Patches, objective: OutputError
) -> Encoding:
    """The encoding with the scales of least error for these integers; zero points stay.

    Least squares in one variable for each scale, for blocks in as many as a channel has blocks. The scales are snapped
    to 12 significant bits, so that the last-bit noise between frameworks stays out of them; one that comes out too
    small or negative stays, and so does all of LPBQ.
    """
    granularity = encoding.spec.granularity
    if isinstance(granularity, Lpbq):
        return encoding
    grid = Grid.of(encoding, patches)
    steps = integers - grid.zero_point
    if isinstance(granularity, PerBlock):
        scale = _fitted_blocks(steps, steps * grid.scale, encoding.scale.shape, objective)
    else:
        shape = patches.weight_shape
        upper, lower = (
            _by_scale(sums, shape, placement, patches)
            for sums in ((steps * objective.linear).sum(-1), objective.curvature(steps))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = upper / lower
    useful = np.isfinite(scale) & (scale > smallest_scale(encoding.spec))
    scale = np.where(useful, scale, 1.0)
    return replace(encoding, scale=np.where(useful, snap_up(scale), encoding.scale).astype(np.float32))


def _by_scale(values: Matrix, shape: tuple[int, ...], placement: Placement, patches: Patches) -> Matrix:
    """Values of each output, (groups, outputs), summed over the outputs that share a scale."""
    if isinstance(placement.spec.granularity, PerTensor) or placement.spec.granularity is None:
        return np.asarray(values.sum())
    outputs = shape[:1] if patches.kernel else shape[:-1]
    other_axes = tuple(axis for axis in range(len(outputs)) if axis != placement.channel_axis)
    return np.asarray(values.reshape(outputs).sum(axis=other_axes))


def _best_channels(
    weight: NDArray[np.float32],
    tried: list[Encoding],
    placement: Placement,
    patches: Patches,
    objective: OutputError,
) -> NDArray[np.intp]:
    """Which candidate each channel, or the tensor, takes, of the shape of the encodings' scales."""
    matrix, shape = patches.matrix(weight).astype(np.float32), tried[0].scale.shape
    owner = _owners(shape, placement, patches)
    errors = np.full((len(tried), *shape), np.inf)
    alive = np.ones(shape, np.bool_)
    for candidate, encoding in enumerate(tried):
        some = np.asarray(alive.reshape(-1)[owner].any(axis=0))  # outputs that are not done with in all groups
        values = _nearest(matrix[:, some], encoding, owner[:, some])
        output_errors = np.zeros(matrix.shape[:2])
        output_errors[:, some] = objective.error(values, some)
        by_scale = _by_scale(output_errors, weight.shape, placement, patches)
        errors[candidate] = np.where(alive, by_scale, np.inf)
        alive &= errors[candidate] <= _HOPELESS * errors.min(axis=0)
        if not alive.any():
            break
    return np.asarray(errors.argmin(axis=0))


def _owners(shape: tuple[int, ...], placement: Placement, patches: Patches) -> NDArray[np.intp]:
    """Which scale, of those of one tensor or of its channels, each output has, (groups, outputs)."""
    along = [1] * len(patches.weight_shape)
    if shape:
        along[placement.channel_axis] = -1
    numbers = np.arange(int(np.prod(shape))).reshape(along)
    return np.asarray(patches.matrix(np.broadcast_to(numbers, patches.weight_shape))[..., 0])


def _nearest(matrix: NDArray[np.float32], encoding: Encoding, owner: NDArray[np.intp]) -> NDArray[np.float32]:
    """A weight as a matrix rounded to nearest, where each output has one scale."""
    scale, zero_point = encoding.scale.reshape(-1)[owner, None], encoding.zero_point.reshape(-1)[owner, None]
    return arithmetic.fake_quantize(matrix, scale, zero_point, encoding.spec.q_min, encoding.spec.q_max)


def _best_blocks(
    weight: NDArray[np.float32], tried: list[Encoding], patches: Patches, objective: OutputError
) -> NDArray[np.intp]:
    """Which candidate each block takes, of the shape of the encodings' scales."""
    from isobit.techniques.rounding.kernels import best_range  # compiles on first use

    matrix = patches.matrix(weight).astype(np.float64)
    groups, outputs, columns = matrix.shape
    grids = [
        np.stack([values.reshape(groups, outputs, -1) for values in part]).astype(np.float64)
        for part in ([t.scale for t in tried], [t.zero_point for t in tried])
    ]
    width = columns // grids[0].shape[-1]
    ends = tried[0].spec.q_min, tried[0].spec.q_max
    current = Grid.of(tried[0], patches).nearest_values(matrix)
    choice = np.zeros((groups, outputs, columns // width), np.int64)
    for part, within in objective.parts(current):
        first = (part.start or 0) // width
        values = current[..., part]
        residual = values @ within.hessian - within.linear
        for start in range(0, values.shape[-1], width):
            block, number = slice(start, start + width), first + start // width
            for g in range(groups):
                scales, zeros = (np.ascontiguousarray(values[:, g, :, number].T) for values in grids)
                # Copies: the kernel leaves the change of the values in the second of them.
                wanted, changes, slopes = (
                    np.array(array[g, :, block], order="C") for array in (matrix[..., part], values, residual)
                )
                corner = np.ascontiguousarray(within.hessian[g, block, block])
                choice[g, :, number] = best_range(wanted, changes, slopes, corner, scales, zeros, *ends, _HOPELESS)
                current[g, :, part][:, block] += changes
                residual[g, :, start:] += changes @ within.hessian[g, block, start:]
    return np.asarray(choice.reshape(tried[0].scale.shape))


def _fitted_blocks(steps: Matrix, values: Matrix, shape: tuple[int, ...], objective: OutputError) -> Matrix:
    """The scales of all blocks of a channel together: the normal equations of ``sum of scale_b * steps_b``.

    Those of an objective in parts are fitted part after part, with the other parts at `values`.
    """
    groups, outputs, columns = steps.shape
    count = int(np.prod(shape)) // (groups * outputs)
    width = columns // count
    scales, values = np.empty((groups, outputs, count)), values.copy()
    for part, within in objective.parts(values):
        blocks = slice((part.start or 0) // width, None if part.stop is None else part.stop // width)
        for g in range(groups):
            for start in range(0, outputs, _OUTPUTS):
                some = slice(start, start + _OUTPUTS)
                scales[g, some, blocks] = _normal_fit(
                    steps[g, some, part], within.hessian[g], within.linear[g, some], width
                )
        fitted = np.where(scales[..., blocks] > 0, scales[..., blocks], 0.0)
        values[..., part] = steps[..., part] * np.repeat(fitted, width, axis=-1)
    return scales.reshape(shape)


def _normal_fit(steps: Matrix, hessian: Matrix, linear: Matrix, width: int) -> Matrix:
    """Least squares for the scales of the blocks of these outputs, (outputs, blocks); 0 for a block without steps."""
    outputs, columns = steps.shape
    count = columns // width
    normal = np.empty((outputs, count, count))
    for block in range(count):
        inside = slice(block * width, (block + 1) * width)
        from_here = slice(block * width, columns)  # the matrix is symmetric
        products = (steps[:, inside] @ hessian[inside, from_here]) * steps[:, from_here]
        sums = products.reshape(outputs, count - block, width).sum(axis=-1)
        normal[:, block, block:] = normal[:, block:, block] = sums
    right = (steps * linear).reshape(outputs, count, width).sum(axis=-1)
    empty = np.einsum("obb->ob", normal) <= 0
    diagonal = np.einsum("obb->ob", normal)  # a view that may be written
    diagonal[empty], right[empty] = 1.0, 0.0
    return np.asarray(np.linalg.solve(normal, right[..., None])[..., 0])
