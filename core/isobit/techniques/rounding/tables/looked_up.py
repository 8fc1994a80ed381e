"""Tables that are looked up: their rows are what leaves them, so scales are chosen by the error of the table itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import Lpbq
from isobit.encodings.ranges import encode_weight, smallest_scale, snap_up
from isobit.graph.graph import Graph
from isobit.placement.plan import Placement, Plan, constant_name

#: Shrunk ranges that are tried, the widest first, and how often scales are then refitted to the integers.
_FACTORS = np.arange(20, 9, -1) / 20
_FITS = 2

#: Elements of a table that are worked on at once, where each row has scales of its own.
_ELEMENTS = 1 << 18

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """A table with the scales that were chosen; errors are shares of its power, with min-max scales and with these.

    `values` are on the grid where the table makes up for another or another for it, and None where it stays as it is.
    """

    placement: Placement
    encoding: Encoding
    plain_error: float
    error: float
    values: NDArray[np.float32] | None = None

    @classmethod
    def searched(cls, values: NDArray[np.float32], placement: Placement) -> Table:
        """The scales of least square error, each by its own values.

        Shrunk ranges are tried, then the scales are fitted to the integers by least squares, as long as that gains.
        """
        return cls(placement, *_table_encoding(values, placement))


def find_tables(graph: Graph, plan: Plan) -> dict[str, Placement]:
    """The quantized constants that are looked up by indices and not read otherwise, by name."""
    tables = {}
    for placement in plan.of_kind("weight"):
        name = constant_name(graph, placement.site)
        uses = graph.uses(name)
        is_looked_up = uses and all(use.node.op == "Gather" and use.index == 0 for use in uses)
        own_formats = len(uses) > 1 and str(placement.site) != name
        if (
            placement.spec.is_integer
            and is_looked_up
            and not own_formats
            and not isinstance(placement.spec.granularity, Lpbq)
        ):
            tables[name] = placement
    return tables


def _table_encoding(values: NDArray[np.float32], placement: Placement) -> tuple[Encoding, float, float]:
    """The encoding of a table, and the shares of its power that min-max scales lose and these."""
    axes = {"channel_axis": placement.channel_axis, "block_axis": placement.block_axis}
    whole = encode_weight(values, placement.spec, **axes)  # type: ignore[arg-type]
    by_row = whole.axis == 0 if whole.scale.ndim == 1 else whole.axis != 0 and whole.scale.shape[:1] == (len(values),)
    step = max(1, _ELEMENTS * len(values) // values.size) if by_row else len(values)
    parts = [_searched(values[start : start + step], placement) for start in range(0, len(values), step)]
    best = parts[0][0]
    if len(parts) > 1:
        scale, zero_point = (np.concatenate([getattr(p[0], key) for p in parts]) for key in ("scale", "zero_point"))
        best = replace(whole, scale=scale, zero_point=zero_point)
    power = float(np.square(values, dtype=np.float64).sum()) or 1.0
    return best, sum(p[1] for p in parts) / power, sum(p[2] for p in parts) / power


def _searched(values: NDArray[np.float32], placement: Placement) -> tuple[Encoding, float, float]:
    """The best encoding of a table, the square error of the min-max grid, and its own."""
    axes = {"channel_axis": placement.channel_axis, "block_axis": placement.block_axis}
    best = encode_weight(values, placement.spec, **axes)  # type: ignore[arg-type]
    errors = plain = _errors(values, best)
    widest, least = best, smallest_scale(placement.spec)
    for factor in _FACTORS[1:]:
        narrower = np.maximum(snap_up(widest.scale * factor), least).astype(np.float32)
        best, errors = _better(values, best, errors, replace(widest, scale=narrower))
    for _ in range(_FITS):
        best, errors = _better(values, best, errors, _fitted(values, best))
    return best, float(plain.sum()), float(errors.sum())


def _better(values: NDArray[np.float32], best: Encoding, errors: Floats, tried: Encoding) -> tuple[Encoding, Floats]:
    """Of two encodings the better one for each scale, and its errors."""
    others = _errors(values, tried)
    gains = others < errors
    scale, zero_point = np.where(gains, tried.scale, best.scale), np.where(gains, tried.zero_point, best.zero_point)
    return replace(best, scale=scale, zero_point=zero_point), np.where(gains, others, errors)


def _fitted(values: NDArray[np.float32], encoding: Encoding) -> Encoding:
    """The scales of least error for the integers that nearest rounding gives."""
    _, zero_point = encoding.broadcast(values.shape)
    steps = (encoding.quantize(values) - zero_point).astype(np.float32)
    upper, lower = _by_scale(steps * values, encoding), _by_scale(steps * steps, encoding)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = upper / lower
    useful = np.isfinite(scale) & (scale > smallest_scale(encoding.spec))
    fitted = snap_up(np.where(useful, scale, 1.0))
    return replace(encoding, scale=np.where(useful, fitted, encoding.scale).astype(np.float32))


def _errors(values: NDArray[np.float32], encoding: Encoding) -> Floats:
    """The square error of each scale's values under nearest rounding."""
    return _by_scale(np.square(encoding.fake_quantize(values) - values), encoding)


def _by_scale(values: NDArray[np.float32], encoding: Encoding) -> Floats:
    """Sums over the values of each scale, of the shape of the scales."""
    shape = encoding.scale.shape
    if len(shape) == 1:
        return np.asarray(values.sum(axis=tuple(a for a in range(values.ndim) if a != encoding.axis), dtype=np.float64))
    if not shape:
        return np.asarray(values.sum(dtype=np.float64))
    split = [size for length, count in zip(values.shape, shape, strict=True) for size in (count, length // count)]
    return np.asarray(values.reshape(split).sum(axis=tuple(range(1, 2 * values.ndim, 2)), dtype=np.float64))
