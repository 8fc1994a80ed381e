"""Which values of a weighted node's input its weight multiplies: one row for each position of the output (im2col).

A row times the weight as a matrix is the node's output at that position, without the bias:
``output[group, o] = weight_matrix[group, o] @ row[group]``.
Source: Chellapilla et al. 2006, "High Performance Convolutional Neural Networks for Document Processing" (unrolling);
ONNX operator specification (Conv, ConvTranspose, MatMul).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError, ModelError
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import WEIGHTED

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Patches:
    """The geometry of a weighted node.

    A row is of shape ``(groups, columns)``, columns running over the group's input channels and, within each, over the
    taps of the kernel: the order of the weight in canonical layout. ``weight_shape`` is the canonical weight's.
    """

    op: str
    weight_shape: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, graph: Graph, node: Node) -> Patches:
        """The geometry of a node of the graph. Raises ModelError that says why it has none."""
        weight = node.input(1)
        if node.op not in WEIGHTED or weight is None or weight not in graph.weights:
            raise ModelError(f"{node.name!r} ({node.op}) does not multiply its input with a constant weight")
        shape = graph.weights[weight].shape
        if node.op == "Linear":
            return cls(node.op, shape)
        if node.op == "MatMul":
            return cls(node.op, shape, prod(shape[:-2]))
        attributes: Mapping[str, Any] = node.attributes
        if "auto_pad" in attributes or "output_shape" in attributes:
            raise ModelError(f"the padding of {node.name!r} depends on the size of its input")
        n = len(shape) - 2
        return cls(
            node.op,
            shape,
            int(attributes.get("group", 1)),
            tuple(attributes.get("strides", (1,) * n)),
            tuple(attributes.get("dilations", (1,) * n)),
            tuple(attributes.get("pads", (0,) * (2 * n))),
            tuple(attributes.get("output_padding", (0,) * n)),
        )

    @property
    def columns(self) -> int:
        """Length of a row of one group: weights of one output channel."""
        return self.weight_shape[-1] if not self.kernel else prod(self.weight_shape[1:])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Size of the kernel; empty for a matrix product."""
        return self.weight_shape[2:] if self.op in ("Conv", "ConvTranspose") else ()

    @property
    def channels(self) -> int:
        """Input channels in all."""
        return self.weight_shape[1] * self.groups if self.kernel else self.weight_shape[-1]

    def matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The canonical weight, or anything of its shape, as (groups, outputs of a group, columns)."""
        return weight.reshape(self.groups, -1, self.columns)

    def samples(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The node's input with the samples on axis 0, then for matrix products (positions, groups, columns).

        Raises DataError for a tensor that this geometry cannot read.
        """
        if self.kernel:
            if batch.ndim != 2 + len(self.kernel) or batch.shape[1] != self.channels:
                raise DataError(f"a {self.op} of {self.channels} channels cannot read a tensor of shape {batch.shape}")
            return batch
        if batch.ndim == 0 or batch.shape[-1] != self.columns:
            raise DataError(f"a {self.op} of {self.columns} inputs cannot read a tensor of shape {batch.shape}")
        if self.groups == 1:
            return batch.reshape(batch.shape[0] if batch.ndim > 1 else 1, -1, 1, self.columns)
        stack = self.weight_shape[:-2]  # x (..., *stack, m, in) with weight (*stack, out, in)
        first = batch.ndim - 2 - len(stack)
        if first < 0 or batch.shape[first:-2] != stack:
            raise DataError(f"a stack {stack} of matrices cannot read a tensor of shape {batch.shape}")
        count = batch.shape[0] if first else 1  # without axes before the stack the batch is one sample
        split = batch.reshape(count, -1, self.groups, batch.shape[-2], self.columns)
        return split.swapaxes(2, 3).reshape(count, -1, self.groups, self.columns)

    def output_size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Positions of one sample along each axis, for samples as `samples` gives them."""
        if not self.kernel:
            return (shape[1],)
        n = len(self.kernel)
        sizes = []
        for i, size in enumerate(shape[2:]):
            extent, padding = (self.kernel[i] - 1) * self.dilations[i] + 1, self.pads[i] + self.pads[i + n]
            if self.op == "ConvTranspose":
                sizes.append((size - 1) * self.strides[i] + extent - padding + self.output_padding[i])
            else:
                sizes.append((size + padding - extent) // self.strides[i] + 1)
        return tuple(sizes)

    def gather(self, samples: NDArray[np.float32], sample: Indices, position: Indices) -> NDArray[np.float32]:
        """The rows at these positions (flat, in row-major order) of these samples: (rows, groups, columns)."""
        if not self.kernel:
            return np.asarray(samples[sample, position], np.float32)
        place = np.unravel_index(position, self.output_size(samples.shape))
        rows = np.zeros((len(sample), self.channels, prod(self.kernel)), np.float32)
        for tap, where, inside in self._taps(place, samples.shape[2:]):
            index: tuple[Any, ...] = (sample[inside], slice(None), *(axis[inside] for axis in where))
            rows[inside, :, tap] = samples[index]
        return rows.reshape(len(sample), self.groups, self.columns)

    def _taps(
        self, place: tuple[NDArray[np.intp], ...], size: tuple[int, ...]
    ) -> Iterator[tuple[int, list[NDArray[np.intp]], NDArray[np.bool_]]]:
        """For each tap of the kernel the input position that it reads, and whether there is one."""
        for tap, offset in enumerate(product(*map(range, self.kernel))):
            where, inside = [], np.ones(len(place[0]), np.bool_)
            for i, at in enumerate(place):
                if self.op == "ConvTranspose":  # output = input * stride + offset * dilation - pad
                    input_position, remainder = np.divmod(
                        at + self.pads[i] - offset[i] * self.dilations[i], self.strides[i]
                    )
                    inside &= remainder == 0
                else:
                    input_position = at * self.strides[i] + offset[i] * self.dilations[i] - self.pads[i]
                inside &= (input_position >= 0) & (input_position < size[i])
                where.append(input_position)
            yield tap, where, inside

    def record(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Patches:
        """The inverse of `record`."""
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return cls(**settings)
