"""What operations cost on a processor, in float and in integers: the ``[[costs]]`` tables of a target file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isobit.errors import TargetError, did_you_mean
from isobit.graph.ops import RECURRENT, WEIGHTED

_KEYS = ("processor", "quantize", "dequantize", "float", "integer")
_OPTIONAL = ("multiply", "integer_multiply", "layer_element", "channel_block")


@dataclass(frozen=True)
class Costs:
    """What was measured on one processor, in nanoseconds for an element of the largest tensor of an operation.

    `quantize` and `dequantize` are what a conversion costs where a tensor is handed from float to integers and back.
    Operations of `integers` are those that may stay in float; each has a cost in `floats` too. `multiply` and
    `integer_multiply` are what one multiply-accumulate of a layer with weights takes, by op, `layer_element` what each
    element does besides that such a layer reads or writes, in float: they decide nothing in a plan, and are for
    estimates of the time of a whole network. Convolutions are computed in blocks of `channel_block` channels, others
    more slowly.
    """

    processor: str
    quantize: float
    dequantize: float
    floats: Mapping[str, float]
    integers: Mapping[str, float]
    multiply: Mapping[str, float] = field(default_factory=dict)
    integer_multiply: Mapping[str, float] = field(default_factory=dict)
    layer_element: float = 0.0
    channel_block: int = 1


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
        if name not in (*_KEYS, *_OPTIONAL):
            known = (*_KEYS, *_OPTIONAL)
            raise TargetError(
                f"{where}: {key}.{name}: unknown key{did_you_mean(name, known)}; known are {', '.join(known)}"
            )
    for name in _KEYS:
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
    multiply, integer_multiply = (_multiply(entry.get(name, {}), where, f"{key}.{name}") for name in _OPTIONAL[:2])
    element = _nanoseconds(entry.get("layer_element", 0.0), where, f"{key}.layer_element")
    block = entry.get("channel_block", 1)
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise TargetError(f"{where}: {key}.channel_block: must be a whole number of at least 1, found {block!r}")
    for op in integer_multiply:
        if op not in multiply:
            problem = f"needs the cost in float beside it, as {key}.multiply.{op}"
            raise TargetError(f"{where}: {key}.integer_multiply.{op}: {problem}")
    return Costs(processor, quantize, dequantize, floats, integers, multiply, integer_multiply, element, block)


def _multiply(table: Any, where: str, key: str) -> dict[str, float]:
    if not isinstance(table, dict):
        raise TargetError(f"{where}: {key}: must be a table of costs by operation, found {table!r}")
    for op in table:
        if op not in WEIGHTED | RECURRENT:
            known = ", ".join(sorted(WEIGHTED | RECURRENT))
            raise TargetError(f"{where}: {key}.{op}: only operations with weights multiply: {known}")
    return {op: _nanoseconds(cost, where, f"{key}.{op}") for op, cost in table.items()}


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
