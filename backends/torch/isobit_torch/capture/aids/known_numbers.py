"""Numbers that code keeps in tensors though no data is in them: strides in buffers, ``torch.div`` of sizes.

While a module is captured its tensors hold no values, and what is asked of them (a branch, a size, a slice) is taken to
depend on data. `KnownNumbers` computes small tensors that come from buffers, sizes and constants beside the capture,
and answers from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

_FEW = 4096

_ASK = frozenset(("__bool__", "__int__", "__index__", "__float__", "__format__", "item", "tolist"))
_TAKE_SIZES = frozenset(
    (
        *("view", "reshape", "expand", "repeat", "arange", "zeros", "ones", "full", "empty", "narrow", "pad", "split"),
        *("__getitem__", "linspace", "new_zeros", "new_ones", "as_strided", "interpolate"),
    )
)
_MAKE = frozenset(("arange", "linspace", "zeros", "ones", "full", "empty"))  # of sizes alone: no tensor comes first
_TAKE_FLOATS = frozenset(("arange", "linspace", "full"))
_OF_SIZES = frozenset(("tensor", "as_tensor", "scalar_tensor", "div", "floor_divide", "true_divide"))
_RANDOM = ("rand", "empty", "bernoulli", "normal", "uniform", "multinomial", "dropout", "exponential")


class KnownNumbers(TorchFunctionMode):
    """Answers what code asks of tensors whose values are known without data."""

    def __init__(self, buffers: Mapping[str, torch.Tensor], module: nn.Module) -> None:
        """`buffers` are the values of those that `module`, in the middle of a capture, has by the same names."""
        super().__init__()
        self.asked: frozenset[str] = frozenset()  # the buffers whose values were answered
        self._known: dict[int, torch.Tensor] = {}
        self._buffers: dict[int, frozenset[str]] = {}  # those that a number was computed from
        self._kept: list[torch.Tensor] = []  # identities hold while the objects live
        for name, buffer in module.named_buffers():
            value = buffers.get(name)
            if value is not None and value.numel() <= _FEW:
                with _disable_current_modes():
                    self._note(buffer, value.detach().clone(), frozenset((name,)))

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the values of a tensor are known."""
        return id(tensor) in self._known

    def _note(self, tensor: torch.Tensor, value: torch.Tensor, buffers: frozenset[str]) -> None:
        self._kept.append(tensor)
        self._known[id(tensor)], self._buffers[id(tensor)] = value, buffers

    def _forget(self, target: torch.Tensor) -> None:
        """What was written, and its views and what it is a view of, are no longer known."""
        where = _storage(target)
        self._kept = [tensor for tensor in self._kept if id(tensor) in self._known]
        for tensor in self._kept:
            if tensor is target or _storage(tensor) in (where, None):
                self._known.pop(id(tensor), None)

    def _value(self, leaf: Any) -> Any:
        return self._known.get(id(leaf), leaf)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation; where it asks for a number that is known, the number."""
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _ASK and args and id(args[0]) in self._known:
            self.asked |= self._buffers[id(args[0])]
            return self._compute(func, args, named)
        if name in _TAKE_SIZES:
            first = () if name in _MAKE else args[:1]
            has_floats = name in _TAKE_FLOATS
            args = (*first, *(self._sizes(value, has_floats) for value in args[len(first) :]))
            named = {key: self._sizes(value, has_floats) for key, value in named.items()}
        given = pytree.tree_leaves((args, named))
        found = func(*args, **named)
        tensors = [leaf for leaf in given if isinstance(leaf, torch.Tensor)]
        is_known = all(id(leaf) in self._known for leaf in tensors)
        if is_known and any(map(_is_symbol, given)):  # a size that is left open is fixed where it becomes a tensor
            is_known = name in _OF_SIZES and not tensors
            args, named = pytree.tree_map_only(torch.SymInt, int, (tuple(args), named)) if is_known else (args, named)
        is_written = name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and name[:2] != "__")
        written = pytree.tree_leaves((args[:1] if is_written else (), named.get("out")))
        targets = [leaf for leaf in written if isinstance(leaf, torch.Tensor)]
        if not is_known or name.startswith(_RANDOM):
            for target in targets:
                self._forget(target)
        elif targets or _is_small(found):
            buffers = frozenset[str]().union(*(self._buffers[id(leaf)] for leaf in tensors))
            value = self._compute(func, args, named)
            for one, known in zip(pytree.tree_leaves(found), pytree.tree_leaves(value), strict=True):
                # Within torch.vmap a value stands for a row of them.
                if isinstance(one, torch.Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(known):
                    self._note(one, known, buffers)
        return found

    def _sizes(self, value: Any, has_floats: bool) -> Any:
        """Known numbers in place of tensors, where an operation takes sizes, or ends of a range."""
        if isinstance(value, slice):
            return slice(*(self._sizes(part, has_floats) for part in (value.start, value.stop, value.step)))
        if isinstance(value, tuple | list):
            return type(value)(self._sizes(part, has_floats) for part in value)
        known = self._known.get(id(value))
        if known is None or known.ndim or known.is_complex() or known.dtype == torch.bool:
            return value
        if known.is_floating_point() and not has_floats:
            return value
        self.asked |= self._buffers[id(value)]
        return known.item()

    def _compute(self, func: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        args, named = pytree.tree_map(self._value, (tuple(args), dict(named)))
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return func(*args, **named)


def _storage(tensor: torch.Tensor) -> int | None:
    """Which memory a tensor has, in the capture as well; None within torch.vmap, which does not say."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None


def _is_symbol(leaf: Any) -> bool:
    return isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool)


def _is_small(found: Any) -> bool:
    """Whether a result, or the elements of one together, are few numbers of tensors."""
    leaves = pytree.tree_leaves(found)
    counts = [leaf.numel() if isinstance(leaf, torch.Tensor) else _FEW + 1 for leaf in leaves]
    return bool(counts) and all(isinstance(count, int) for count in counts) and sum(counts) <= _FEW
