"""Shapes and element types of every node: the graph is run twice on tensors without data, at two sizes of each symbol.

A dimension that is the same both times is fixed; one that follows a symbol has that symbol; others are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from isobit.errors import EditError, ModelError
from isobit.graph import Dimension
from isobit_torch.program.devices import device_of
from isobit_torch.program.fx_nodes import DTYPE, NAME, SHAPE, attribute, dtype_name, op_name
from isobit_torch.program.modules import Recurrent
from isobit_torch.program.recurrent_calls import KINDS
from isobit_torch.program.torch_export import quiet


@dataclass(frozen=True)
class InputInfo:
    """A model input: its dimensions, numbers or symbols, and its element type."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Symbols:
    """Two sizes for each dynamic dimension, both allowed by the model."""

    sizes: Mapping[str, tuple[int, int]]

    def shape(self, info: InputInfo, which: int) -> list[int]:
        """The shape of an input at one of the two sizes."""
        return [self.sizes[n][which] if isinstance(n, str) else n for n in info.shape]

    def dimension(self, first: int, second: int) -> Dimension:
        """The dimension that has these two sizes."""
        if first == second:
            return first
        return next((name for name, sizes in self.sizes.items() if sizes == (first, second)), None)


def read_inputs(graph: fx.Graph, program: Any) -> tuple[tuple[InputInfo, ...], Symbols]:
    """The inputs of a captured graph; axis 0 is the batch where it is dynamic.

    Sizes of token ids and masks that are equal in the example are one size, though nothing in the code may say so.
    """
    alike: dict[tuple[int, int], str] = {}
    names: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    inputs = []
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta["val"]
        shape: list[int | str] = []
        for axis, size in enumerate(value.shape):
            if not is_open(size, graph):
                shape.append(int(size))
                continue
            text = str(size)
            same = alike.setdefault((axis, int(size.node.hint)), text) if axis == 0 or is_sequence(value) else text
            text = same if is_sequence(value) else text
            if text not in names:
                names[text] = "batch" if axis == 0 and "batch" not in names.values() else f"dynamic{len(names)}"
                sizes[names[text]] = _two_sizes(size, program, len(sizes))
            shape.append(names[text])
        # by the argument's own name: fx renames one that hides a builtin, as nn.Sequential's `input` does
        inputs.append(InputInfo(node.meta[NAME], tuple(shape), dtype_name(value.dtype)))
    return tuple(inputs), Symbols(sizes)


def is_open(size: Any, graph: fx.Graph) -> bool:
    """Whether a size of a captured program is open; torch leaves a symbol where the code has fixed it to a number.

    Recurrent layers fix the length alike, for torch unrolls them to find shapes, and take any all the same.
    """
    if isinstance(size, int):
        return False
    return size.node.maybe_as_int() is None or any(op_name(node) in KINDS for node in graph.nodes)


_INTEGER = (torch.int64, torch.int32, torch.bool)


def is_sequence(value: torch.Tensor) -> bool:
    """Token ids and masks: integers of two axes, the second of which is the sequence."""
    return value.ndim == 2 and value.dtype in _INTEGER


def _two_sizes(size: torch.SymInt, program: Any, number: int) -> tuple[int, int]:
    """The example's size and a multiple of it, another multiple for each symbol, within the allowed range."""
    hint = int(size.node.hint)
    ranges = program.range_constraints
    upper = next((int(r.upper) for s, r in ranges.items() if str(s) == str(size) and str(r.upper).isdigit()), 1 << 30)
    for factor in (2 + number, 2, 3):
        if hint * factor <= upper:
            return hint, hint * factor
    return (hint, hint - 1) if hint > 2 else (hint, upper)


class _Runner(fx.Interpreter):
    """Runs the graph and keeps (shape, dtype) of every node; constants come from `values` first."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, mode: FakeTensorMode, values: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__(root, garbage_collect_values=True, graph=graph)
        self.mode, self.values, self.root = mode, values, root
        self.results: dict[fx.Node, tuple[tuple[int, ...], str]] = {}
        self.fakes: dict[str, torch.Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = self.values.get(target)
        value = attribute(self.root, target) if value is None else value
        if target not in self.fakes:
            self.fakes[target] = self.mode.from_tensor(value.detach(), static_shapes=True)
        return self.fakes[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = attribute(self.root, target)
        return module(*args) if isinstance(module, Recurrent) else torch.empty_like(args[0])  # batch norm and dropout

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.results[n] = tuple(int(size) for size in result.shape), dtype_name(result.dtype)
        return result


def propagate(
    root: nn.Module,
    graph: fx.Graph,
    inputs: tuple[InputInfo, ...],
    symbols: Symbols,
    values: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Set shape and dtype of every node of `graph`. Raises EditError where the operations do not fit together."""
    runs = []
    device = device_of(root)
    for which in (0, 1) if symbols.sizes else (0,):
        with torch.no_grad(), quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [
                torch.empty(symbols.shape(info, which), dtype=getattr(torch, info.dtype), device=device)
                for info in inputs
            ]
            runner = _Runner(root, graph, mode, values or {})
            try:
                runner.run(*fakes)
            except Exception as error:
                unrun = (n for n in graph.nodes if n not in runner.results and n.meta.get(NAME) and n.op != "get_attr")
                node = next(unrun, None)
                where = f" at {node.meta[NAME]!r}" if node is not None else ""
                raise EditError(
                    f"the operations do not fit together{where}: {str(error).splitlines()[0][:300]}"
                ) from error
        runs.append(runner.results)
    for node in graph.nodes:
        results = [run.get(node) for run in runs]
        first, last = results[0], results[-1]
        node.meta.pop("val", None)
        node.meta.pop(SHAPE, None)
        if first is None or last is None:
            node.meta.pop(DTYPE, None)
            continue
        node.meta[DTYPE] = first[1]
        same_rank = len(first[0]) == len(last[0])
        pairs = zip(first[0], last[0], strict=True) if same_rank else ()
        node.meta[SHAPE] = tuple(symbols.dimension(a, b) for a, b in pairs) if same_rank else None


def settle_sizes(
    root: nn.Module, graph: fx.Graph, inputs: tuple[InputInfo, ...], symbols: Symbols
) -> tuple[tuple[InputInfo, ...], Symbols, tuple[str, ...]]:
    """`propagate` with as many dynamic dimensions as the graph can have; returns notes on what had to be fixed.

    torch.export leaves a size open that must be equal to a fixed one elsewhere. Raises EditError.
    """
    names = list(symbols.sizes)
    inner = [name for name in names if name != "batch"]
    tries = [[], *([name] for name in inner), inner, names]
    for position, fixed in enumerate(tries):
        sizes = {name: symbols.sizes[name][0] for name in fixed}
        dynamic = Symbols({name: both for name, both in symbols.sizes.items() if name not in sizes})
        tried = tuple(replace(info, shape=tuple(_fixed(n, sizes) for n in info.shape)) for info in inputs)
        try:
            propagate(root, graph, tried, dynamic)
        except EditError:
            if position == len(tries) - 1:
                raise
            continue
        where = [f"axis {a} of {i.name!r}" for i in inputs for a, n in enumerate(i.shape) if n in fixed]
        note = f"{' and '.join(where)} cannot change: the model's code fixes the size"
        return tried, dynamic, (note,) if where else ()
    raise AssertionError("the last try returns or raises")


def _fixed(size: int | str, sizes: Mapping[str, int]) -> int | str:
    return sizes.get(size, size) if isinstance(size, str) else size


def require_float(inputs: tuple[InputInfo, ...]) -> None:
    """Refuse models that compute in complex numbers."""
    for info in inputs:
        if info.dtype.startswith("complex"):
            raise ModelError(f"input {info.name!r} is complex: isobit quantizes real numbers")
