"""What convolutions cost on a processor by their shape: the ``[[convolutions]]`` tables of a target file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from isobit.errors import TargetError, did_you_mean


@dataclass(frozen=True)
class ConvolutionCosts:
    """What was measured on one processor, in nanoseconds.

    A float kernel computes blocks of `channel_block` channels and takes `multiply` for each multiply-accumulate and
    `element` for each element that it reads or writes; elements enter and leave its layout for `reorder` each. A kernel
    of integers takes `integer_multiply` and `integer_element`, the latter for what it writes, and `integer_tap` for
    each position and tap that it gathers one by one: in a depthwise layer, in each group, and where channels do not
    fill a block. An element is converted for `quantize` or `dequantize`, and a node that converts or reorders takes
    `node` besides. `curves` are operations that a float convolution computes along with its own, with what an element
    of them takes alone.
    """

    processor: str
    channel_block: int
    multiply: float
    integer_multiply: float
    element: float
    integer_element: float
    integer_tap: float
    reorder: float
    quantize: float
    dequantize: float
    node: float
    curves: Mapping[str, float]


def read_convolution_costs(data: Any, where: str) -> tuple[ConvolutionCosts, ...]:
    """The tables of a target file. Raises TargetError that starts with the file, `where`, and the key."""
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise TargetError(f"{where}: convolutions: must be tables written [[convolutions]], one a processor")
    return tuple(_table(entry, f"{where}: convolutions[{index}]") for index, entry in enumerate(data))


def _table(entry: Mapping[str, Any], key: str) -> ConvolutionCosts:
    known = [field.name for field in fields(ConvolutionCosts)]
    for name in entry:
        if name not in known:
            raise TargetError(f"{key}.{name}: unknown key{did_you_mean(name, known)}; known are {', '.join(known)}")
    for name in known:
        if name not in entry:
            raise TargetError(f"{key}.{name}: this key is missing")
    processor, block, curves = entry["processor"], entry["channel_block"], entry["curves"]
    if not isinstance(processor, str) or not processor:
        raise TargetError(f"{key}.processor: must be a text that names the processor, found {processor!r}")
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise TargetError(f"{key}.channel_block: must be a whole number of at least 1, found {block!r}")
    if not isinstance(curves, dict):
        raise TargetError(f"{key}.curves: must be a table of costs by operation, found {curves!r}")
    times = {name: _nanoseconds(entry[name], f"{key}.{name}") for name in known[2:-1]}
    by_op = {op: _nanoseconds(cost, f"{key}.curves.{op}") for op, cost in curves.items()}
    return ConvolutionCosts(processor, block, **times, curves=by_op)


def _nanoseconds(value: Any, key: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1e6:
        raise TargetError(f"{key}: must be nanoseconds, from 0 to 1e6, found {value!r}")
    return float(value)
