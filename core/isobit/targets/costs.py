"""What operations cost on a processor, in float and in integers: the ``[[costs]]`` tables of a target file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isobit.errors import TargetError, did_you_mean
from isobit.graph.ops import RECURRENT, WEIGHTED

#: The last one may be left out.
_KEYS = ("processor", "quantize", "dequantize", "float", "integer", "multiply_add")


@dataclass(frozen=True)
class Costs:
    """What was measured on one processor, in nanoseconds for an element of the largest tensor of an operation.

    `quantize` and `dequantize` are what a conversion costs where a tensor is handed from float to integers and back.
    Operations of `integers` are those that may stay in float; each has a cost in `floats` too.
    `multiply_add` has the nanoseconds of one of a layer with weights, as ``float`` and as ``integer``, where they were
    measured: they decide nothing in a plan, and are what mixed precision counts.
    """

    processor: str
    quantize: float
    dequantize: float
    floats: Mapping[str, float]
    integers: Mapping[str, float]
    multiply_add: Mapping[str, float] = field(default_factory=dict)


def read_costs(data: Any, where: str) -> tuple[Costs, ...]:
    """The tables of a target file. Raises TargetError that starts with the file, `where`, and the key."""
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise TargetError(f"{where}: costs: must be tables written [[costs]], one a processor")
    tables = tuple(_table(entry, where, f"costs[{index}]") for index, entry in enumerate(data))
    for index, table in enumerate(tables[1:], 1):
        differing = sorted(set(table.integers) ^ set(tables[0].integers))
        if differing:
            raise TargetError(
                f"{where}: costs[{index}].integer: {', '.join(differing)} must be in every table of costs or in none, "
                "since one plan serves all processors"
            )
    return tables


def _table(entry: Mapping[str, Any], where: str, key: str) -> Costs:
    for name in entry:
        if name not in _KEYS:
            raise TargetError(
                f"{where}: {key}.{name}: unknown key{did_you_mean(name, _KEYS)}; known are {', '.join(_KEYS)}"
            )
    for name in _KEYS[:-1]:
        if name not in entry:
            raise TargetError(f"{where}: {key}.{name}: this key is missing")
    processor = entry["processor"]
    if not isinstance(processor, str) or not processor:
        raise TargetError(f"{where}: {key}.processor: must be a text that names the processor, found {processor!r}")
    floats, integers = (_by_op(entry[name], where, f"{key}.{name}") for name in ("float", "integer"))
    for op in integers:
        if op not in floats:
            raise TargetError(f"{where}: {key}.integer.{op}: needs the cost in float beside it, as {key}.float.{op}")
    quantize, dequantize = (_nanoseconds(entry[name], where, f"{key}.{name}") for name in ("quantize", "dequantize"))
    times = _multiply_add(entry["multiply_add"], where, f"{key}.multiply_add") if "multiply_add" in entry else {}
    return Costs(processor, quantize, dequantize, floats, integers, times)


def _multiply_add(table: Any, where: str, key: str) -> dict[str, float]:
    if not isinstance(table, dict) or set(table) != {"float", "integer"}:
        raise TargetError(f"{where}: {key}: must be a table with float and integer, found {table!r}")
    return {name: _nanoseconds(value, where, f"{key}.{name}") for name, value in table.items()}


def _by_op(table: Any, where: str, key: str) -> dict[str, float]:
    if not isinstance(table, dict):
        raise TargetError(f"{where}: {key}: must be a table of costs by operation, found {table!r}")
    for op in table:
        if op in WEIGHTED | RECURRENT:
            raise TargetError(
                f"{where}: {key}.{op}: {op} has weights, which are quantized for their size too: its time decides "
                "nothing; leave it in float with quantize.except"
            )
    return {op: _nanoseconds(cost, where, f"{key}.{op}") for op, cost in table.items()}


def _nanoseconds(value: Any, where: str, key: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1e6 or math.isnan(value):
        raise TargetError(f"{where}: {key}: must be nanoseconds for an element, from 0 to 1e6, found {value!r}")
    return float(value)
