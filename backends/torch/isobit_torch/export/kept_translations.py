"""What torch.onnx.export makes anew for each model and is the same each time, made once in a process.

Each export reads its translations, some 500 functions, collects the decompositions of all operators that have none, and
traces the program once more to carry these out, though one that isobit has lowered needs none. For a small network this
is half of the time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch


class _Exporter(NamedTuple):
    """Where the exporter has what is replaced: modules and a class of PyTorch that are not of its public interface."""

    registry: Any
    passes: Any
    decompositions: Any


@contextmanager
def kept_translations() -> Iterator[None]:
    """Within it torch.onnx.export works with what was made first, where this version of it has what is replaced."""
    exporter = _exporter()
    if exporter is None:
        yield
        return
    from_torchlib, decompose = vars(exporter.registry)["from_torchlib"], exporter.passes.decompose_with_registry

    def kept(*opset_version: int, **named: int) -> Any:
        return _copy(_first_registry(exporter.registry, from_torchlib.__func__, *opset_version, **named))

    def decomposed(program: torch.export.ExportedProgram, registry: Any) -> torch.export.ExportedProgram:
        return _decomposed(program, registry, exporter.decompositions, decompose)

    exporter.registry.from_torchlib = staticmethod(kept)
    exporter.passes.decompose_with_registry = decomposed
    try:
        yield
    finally:
        exporter.registry.from_torchlib = from_torchlib
        exporter.passes.decompose_with_registry = decompose


def _exporter() -> _Exporter | None:
    """The parts, or None where another version of PyTorch has others."""
    try:
        from torch.onnx._internal.exporter import _decomp, _fx_passes, _registration
    except ImportError:
        return None
    exporter = _Exporter(getattr(_registration, "ONNXRegistry", None), _fx_passes, _decomp)
    needed = (
        callable(exporter.registry) and vars(exporter.registry()).keys() == {"_opset_version", "functions"},
        isinstance(vars(exporter.registry or object).get("from_torchlib"), classmethod),
        hasattr(_fx_passes, "decompose_with_registry"),
        hasattr(_decomp, "get_onnx_implemented_overloads"),
        hasattr(_decomp, "create_onnx_friendly_decomposition_table"),
    )
    return exporter if all(needed) else None


@cache
def _first_registry(registry: Any, read: Callable[..., Any], *opset_version: int, **named: int) -> Any:
    return read(registry, *opset_version, **named)


def _copy(first: Any) -> Any:
    """A registry to which translations of one export can be added."""
    copied = type(first)()
    copied._opset_version = first._opset_version
    copied.functions = {target: list(found) for target, found in first.functions.items()}
    return copied


#: Decompositions by the names of the operators that have a translation.
_TABLES: dict[frozenset[Any], tuple[frozenset[Any], Mapping[Any, Any]]] = {}


def _decomposed(
    program: torch.export.ExportedProgram, registry: Any, parts: Any, decompose: Callable[..., Any]
) -> torch.export.ExportedProgram:
    """The program in operators that have a translation, as far as they can be; itself where it is that already.

    An operator that the kept table does not know may have come later: `decompose` makes a table anew.
    """
    key = frozenset(registry.functions)
    if key not in _TABLES:
        translated = frozenset(parts.get_onnx_implemented_overloads(registry))
        _TABLES[key] = translated, parts.create_onnx_friendly_decomposition_table(set(translated))
    translated, table = _TABLES[key]
    if all(_is_final(node, translated, table) for node in program.graph.nodes):
        return program
    is_known = all(_is_known(node, translated, table) for node in program.graph.nodes)
    decomposed: torch.export.ExportedProgram = (
        program.run_decompositions(dict(table)) if is_known else decompose(program, registry)
    )
    return decomposed


def _is_known(node: torch.fx.Node, translated: frozenset[Any], table: Mapping[Any, Any]) -> bool:
    """Whether the operator was there when the table was made; one that runs a graph of its own may hold any."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target in translated or node.target in table
    return not isinstance(node.target, torch._ops.HigherOrderOperator)


def _is_final(node: torch.fx.Node, translated: frozenset[Any], table: Mapping[Any, Any]) -> bool:
    """Whether carrying out decompositions would leave the node as it is."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return target in translated and target not in table
