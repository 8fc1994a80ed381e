"""What an operation, and a conversion between formats, costs: in bit operations, bytes, milliseconds, or as told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from isobit.errors import FormatError, did_you_mean
from isobit.graph.ops import RECURRENT, WEIGHTED
from isobit.search.formats import Candidate
from isobit.targets.costs import Costs
from isobit.targets.target import Target

#: Multiply-adds that take the time in which one element is converted: it is read, scaled, rounded and written.
CONVERSION = 16

#: Layers whose integer kernels round what they compute: with a result in float they run in float.
_ROUND = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class Work:
    """One operation for one sample: `multiply_adds`, and the elements of its largest tensor and of its result.

    `in_float`: it computes in float on weights that are integers for their size alone.
    """

    op: str
    multiply_adds: int
    largest: int
    inputs: int
    result: int
    in_float: bool = False

    @property
    def amount(self) -> int:
        """Multiply-adds; elements where there are none."""
        return self.multiply_adds or self.largest


class CostTable(Protocol):
    """Costs of one kind, in `unit`."""

    unit: str

    def kernel(self, work: Work, read: Candidate, written: Candidate) -> float:
        """Of an operation that reads one format and whose result is in another, without conversions."""
        ...

    def conversion(self, elements: int, source: Candidate, result: Candidate) -> float:
        """Of a tensor."""
        ...

    def weight(self, elements: int, candidate: Candidate) -> float:
        """Of keeping a weight."""
        ...


class Bits:
    """Multiply-adds times the bits of both operands (bit operations, as van Baalen et al., 2020, count them)."""

    unit = "bit operations"

    def kernel(self, work: Work, read: Candidate, written: Candidate) -> float:
        """Float counts as 32 bits."""
        if work.in_float:
            return 32.0 * read.weight_bits * work.amount
        if work.op in _ROUND and written.is_float:
            return 32.0 * 32.0 * work.amount
        weights = read.weight_bits if work.op in WEIGHTED | RECURRENT else read.activation_bits
        return float(work.amount) * read.activation_bits * weights

    def conversion(self, elements: int, source: Candidate, result: Candidate) -> float:
        """As so many multiply-adds of the two formats."""
        same = source.activations == result.activations
        return 0.0 if same else float(CONVERSION * elements) * source.activation_bits * result.activation_bits

    def weight(self, elements: int, candidate: Candidate) -> float:
        """Nothing: it is in the operation."""
        return 0.0


class Bytes:
    """Bytes of the weights, scales left out."""

    unit = "bytes"

    def kernel(self, work: Work, read: Candidate, written: Candidate) -> float:
        """Nothing."""
        return 0.0

    def conversion(self, elements: int, source: Candidate, result: Candidate) -> float:
        """Nothing."""
        return 0.0

    def weight(self, elements: int, candidate: Candidate) -> float:
        """Its size."""
        return elements * candidate.weight_bits / 8


class Milliseconds:
    """What the target's table of costs says of one processor; formats that it has no kernels for run in float."""

    unit = "ms"

    def __init__(self, costs: Costs) -> None:
        self._costs = costs

    def kernel(self, work: Work, read: Candidate, written: Candidate) -> float:
        """With the conversions of operands and result where the format has no kernel."""
        costs = self._costs
        in_float = read.is_float or work.in_float or (work.op in _ROUND and written.is_float)
        is_fast = not in_float and self._has_kernels(read)
        if work.multiply_adds:
            table = {**costs.multiply, **costs.integer_multiply} if is_fast else costs.multiply
            time = work.multiply_adds * table.get(work.op, max(costs.multiply.values()))
        else:
            table = {**costs.floats, **costs.integers} if is_fast else costs.floats  # no gain where none was measured
            time = work.largest * table.get(work.op, 0.0)
        if not in_float and not is_fast:
            time += work.inputs * costs.dequantize + work.result * costs.quantize
        return time * 1e-6

    def conversion(self, elements: int, source: Candidate, result: Candidate) -> float:
        """From integers, to integers, or both."""
        if source.activations == result.activations:
            return 0.0
        time = 0.0 if source.is_float else self._costs.dequantize
        time += 0.0 if result.is_float else self._costs.quantize
        return elements * time * 1e-6

    def weight(self, elements: int, candidate: Candidate) -> float:
        """Nothing: it is in the operation."""
        return 0.0

    @staticmethod
    def _has_kernels(candidate: Candidate) -> bool:
        return candidate.activation_bits == 8 and candidate.weight_bits <= 8


class Told:
    """A user's own table: what a multiply-add, or an element, costs in each format, and what a converted element."""

    unit = "of your table"

    def __init__(self, table: Mapping[str, float]) -> None:
        self._table = table

    def kernel(self, work: Work, read: Candidate, written: Candidate) -> float:
        """By the format that is read."""
        in_float = work.in_float or (work.op in _ROUND and written.is_float)
        return work.amount * self._table["float" if in_float and "float" in self._table else read.name]

    def conversion(self, elements: int, source: Candidate, result: Candidate) -> float:
        """By element."""
        return 0.0 if source.activations == result.activations else elements * self._table["conversion"]

    def weight(self, elements: int, candidate: Candidate) -> float:
        """Nothing: it is in the operation."""
        return 0.0


def cost_table(cost: str | Mapping[str, float], target: Target, candidates: Sequence[Candidate]) -> CostTable:
    """The table that was asked for. Raises FormatError for one that is unknown, or that lacks a format."""
    if isinstance(cost, Mapping):
        return Told(_checked(cost, candidates))
    if cost == "bits":
        return Bits()
    if cost == "bytes":
        return Bytes()
    if cost != "milliseconds":
        known = ("bits", "bytes", "milliseconds")
        raise FormatError(
            f"unknown cost {cost!r}{did_you_mean(str(cost), known)}; known are {', '.join(known)}, or a table such as "
            "{'int8': 1, 'int16': 2, 'float': 4, 'conversion': 16}"
        )
    measured = next((table for table in target.costs if table.multiply and table.integer_multiply), None)
    if measured is None:
        raise FormatError(
            f"target {target.name!r} has no times of multiply-adds ([[costs]] multiply, integer_multiply): take "
            "cost='bits', or pass a table such as {'int8': 1, 'int16': 2, 'float': 4, 'conversion': 16}"
        )
    return Milliseconds(measured)


def _checked(table: Mapping[Any, Any], candidates: Sequence[Candidate]) -> Mapping[str, float]:
    needed = [*(candidate.name for candidate in candidates), "conversion"]
    for name in needed:
        if name not in table:
            raise FormatError(f"the table of costs has no {name!r}: it needs {', '.join(needed)}, each a number")
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise FormatError(f"the table of costs: {name!r} must be a number from 0, not {value!r}")
    return {str(name): float(value) for name, value in table.items()}
