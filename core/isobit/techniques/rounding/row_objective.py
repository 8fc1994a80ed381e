"""The error of a layer with very many weights a channel, from the rows themselves instead of their second moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.rounding.curvature import Curvature, ridge
from isobit.techniques.rounding.objective import ALL, Matrix, Objective, Outputs

Rows = NDArray[np.float32]

#: Columns of a part, about: second moments are computed within parts alone, so that the cost of a layer and its memory
#: grow with its weights and not with the square of the weights a channel.
PART = 1024


@dataclass(frozen=True, eq=False)
class RowObjective:
    """The error that `isobit.techniques.rounding.Objective` states, for layers whose second moments are too large.

    ``x`` (groups, rows, columns) are inputs of the quantized model, float32; each output is to be what the float weight
    gives on them: such few rows do not say what would make up for the errors of earlier layers. Solvers go through the
    columns part after part (block coordinate descent), `width` columns each, with the outputs' errors kept up to date.
    """

    x: Rows
    weight: Matrix
    damping: float
    width: int = PART
    shapes: list[Curvature] = field(default_factory=list)  # of the parts, once they are known; of any outputs

    @classmethod
    def of(
        cls,
        weight: NDArray[np.float32],
        rows: Sequence[Rows],
        *,
        centered: bool,
        damping: float,
        multiple: int = 1,
    ) -> RowObjective:
        """From rows (rows, groups, columns) of each reader, less their means if biases take these up.

        Parts end where a multiple of `multiple` columns does, which is the size of the blocks that share a scale.
        """
        if centered:
            rows = [x - x.mean(axis=0, dtype=np.float64).astype(np.float32) for x in rows]
        x = np.ascontiguousarray(np.concatenate(rows).transpose(1, 0, 2))
        return cls(x, weight.astype(np.float64), damping, max(1, PART // multiple) * multiple)

    def outputs(self, some: slice) -> RowObjective:
        """The error of these outputs alone."""
        return replace(self, weight=self.weight[:, some])

    @cached_property
    def ridge(self) -> Matrix:
        """What a change of a weight costs for itself, (groups, 1)."""
        squares = [np.square(rows, dtype=np.float64).mean() for rows in self.x]
        return ridge(np.array(squares), self.damping)[:, None]

    @cached_property
    def linear(self) -> Matrix:
        """b of ``v H vᵀ - 2 v·b + c``, (groups, outputs, columns)."""
        return (self._wanted.transpose(0, 2, 1) @ self.x) / self._count + self.ridge[..., None] * self.weight

    @cached_property
    def constant(self) -> Matrix:
        """c: the power of the float layer's output, (groups, outputs)."""
        power = np.square(self._wanted, dtype=np.float64).mean(axis=1)
        return np.asarray(power + self.ridge * np.square(self.weight).sum(axis=-1))

    def error(self, weight: NDArray[np.floating], outputs: Outputs = ALL) -> Matrix:
        """The error of each of these output channels, (groups, outputs)."""
        errors = self._outputs(weight - self.weight[:, outputs])
        distance = np.square(weight - self.weight[:, outputs]).sum(axis=-1)
        return np.asarray(np.square(errors, dtype=np.float64).mean(axis=1) + self.ridge * distance)

    def curvature(self, weight: NDArray[np.floating]) -> Matrix:
        """``v H vᵀ`` of each output channel, (groups, outputs)."""
        power = np.square(self._outputs(weight), dtype=np.float64).mean(axis=1)
        return np.asarray(power + self.ridge * np.square(weight, dtype=np.float64).sum(axis=-1))

    def parts(self, weight: Matrix) -> Iterator[tuple[slice, Objective]]:
        """Parts of the columns, each with its error while the others are as in `weight`, which the caller changes."""
        errors = self._outputs(weight - self.weight)
        for start, shape in zip(range(0, self.weight.shape[-1], self.width), self._curvatures(), strict=True):
            part = slice(start, min(start + self.width, self.weight.shape[-1]))
            x, before = self.x[..., part], weight[..., part].copy()
            slope = errors.transpose(0, 2, 1) @ x / self._count  # half the gradient of the output's error
            slope = slope + self.ridge[..., None] * (before - self.weight[..., part])
            linear = before @ shape.hessian - slope
            yield part, Objective(shape, linear, np.zeros(linear.shape[:2]))
            errors += x @ (weight[..., part] - before).astype(np.float32).transpose(0, 2, 1)

    @property
    def _count(self) -> int:
        return int(self.x.shape[1])

    @cached_property
    def _wanted(self) -> Rows:
        """The float weight's outputs, (groups, rows, outputs)."""
        return self._outputs(self.weight)

    def _curvatures(self) -> list[Curvature]:
        for start in range(len(self.shapes) * self.width, self.weight.shape[-1], self.width):
            x = self.x[..., start : start + self.width]
            hessian = (x.transpose(0, 2, 1) @ x).astype(np.float64) / self._count
            diagonal = np.arange(hessian.shape[-1])
            hessian[:, diagonal, diagonal] += self.ridge
            self.shapes.append(Curvature(hessian))
        return self.shapes

    def _outputs(self, weight: NDArray[np.floating]) -> Rows:
        """The layer's outputs, (groups, rows, outputs)."""
        return np.asarray(self.x @ weight.astype(np.float32).transpose(0, 2, 1))
