"""What was written for quantizers: values before and behind them, constants that hold grids, and switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.encodings import Encoding
from isobit.graph import to_canonical, to_native
from isobit_onnx.qdq.grids import grid_of, integer_tensor
from isobit_onnx.translate.sites import NativeSite


class Quantized(NamedTuple):
    """A value that is quantized for all who read it, and what they read instead."""

    source: ir.Value
    result: ir.Value


@dataclass(frozen=True, eq=False)
class Grid:
    """The constants that hold one quantizer: scale, zero point where it has one, and of a constant its `levels`."""

    site: NativeSite
    shape: tuple[int, ...]
    scale: str
    zero_point: str | None
    levels: str | None = None
    source: ir.TensorProtocol | None = None  # the constant in float

    def tensors(self, encoding: Encoding) -> list[ir.Tensor[Any]]:
        """What they are for another encoding of the same form."""
        grid = grid_of(encoding, self.shape, self.site.layout, activation=self.levels is None)
        found = [ir.Tensor(np.asarray(grid.scale, np.float32), name=self.scale)]
        if self.zero_point is not None:
            found.append(integer_tensor(np.asarray(grid.zero_point), grid.type, self.zero_point))
        if self.levels is not None and self.source is not None:
            found.append(levels_of(self.source.numpy(), self.site, encoding, grid.type, self.levels))
        return found


class Inserted(NamedTuple):
    """What is quantized for all its readers, by the name that it had; and what holds the grid of each site, if known.

    A site whose grid is None is written in another way for other numbers, or shares its constants. `switches` are the
    inputs, one truth value each, that say whether a quantizer is on.
    """

    quantized: dict[str, Quantized]
    grids: dict[NativeSite, Grid | None]
    switches: dict[NativeSite, str]


def levels_of(
    native: NDArray[np.float32], site: NativeSite, encoding: Encoding, kind: ir.DataType, name: str
) -> ir.Tensor[Any]:
    """The integers of a constant, in its own layout."""
    levels = encoding.quantize(to_canonical(native, site.layout))
    return integer_tensor(to_native(levels, site.layout, np.zeros(native.shape, np.int32)), kind, name)
