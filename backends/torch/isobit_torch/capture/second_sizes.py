"""Whether a program follows the batch size, and any other open size, as the module does: both run at a second one.

Code that keeps something for the last shape (anchors, masks) is captured with the size of the example in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.capture.capture import Capture
from isobit_torch.capture.given import Given
from isobit_torch.program.program import Program
from isobit_torch.program.shapes import InputInfo
from isobit_torch.program.torch_export import quiet


def follows_sizes(given: Given, captured: Capture, program: Program, run: Callable[..., Sequence[Any]]) -> bool:
    """Whether `run`, the captured `program`, gives what the module gives at another size of each open dimension.

    True as well where the model itself runs at no other size, or gives other values each time.
    """
    return all(_follows(name, given, captured, program, run) for name in program.symbols.sizes)


def _follows(symbol: str, given: Given, captured: Capture, program: Program, run: Callable[..., Sequence[Any]]) -> bool:
    sizes = program.symbols.sizes[symbol]
    leaves = pytree.tree_leaves((captured.call.args, captured.call.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if len(tensors) != len(program.inputs):
        return True
    second = [_at(leaf, info, symbol, sizes) for leaf, info in zip(tensors, program.inputs, strict=True)]
    feeds = {info.name: tensor for info, tensor in zip(program.inputs, second, strict=True)}

    def outputs() -> list[Any]:
        return list(given.run(feeds).values())

    with torch.no_grad(), quiet():
        try:
            expected = outputs()
        except ModelError:
            return True
        try:
            found = list(run(*(tensor.clone() for tensor in second)))
        except Exception:
            return False
        names = captured.signature.outputs
        found = [value for value, name in zip(found, names, strict=True) if name is not None]
        return _agree(found, expected) or not _agree(outputs(), expected)


def _at(leaf: torch.Tensor, info: InputInfo, symbol: str, sizes: tuple[int, int]) -> torch.Tensor:
    """The tensor of the example at the second size of a symbol, its values repeated."""
    for axis, size in enumerate(info.shape):
        if size == symbol:
            leaf = leaf.index_select(axis, torch.arange(sizes[1], device=leaf.device) % sizes[0])
    return leaf


def _agree(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    pairs = [
        (a, b)
        for a, b in zip(found, expected, strict=False)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    ]
    return all(a.shape == b.shape and _near(a, b) for a, b in pairs)


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not (a.is_floating_point() and b.is_floating_point()):
        return True  # an index may flip where two values are nearly equal
    finite = b[torch.isfinite(b)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-2 * scale + 1e-6, equal_nan=True)
