"""Packed sequences (``pack_padded_sequence``): computed padded, with what the lengths of the sequences decide.

How many values a packed sequence has only the data knows, and no graph of fixed sizes can hold it. A layer that reads
sequences of several lengths gives the same on padded ones, where the direction from the end starts at each one's own,
its last state is that of its last step, and padding is filled in anew: `PaddedSequences` has torch's operations do that
while a module runs or is captured, and `why_not_padded` tells by trying whether the module is of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from isobit_torch.capture.errors import first_line
from isobit_torch.program.recurrent_calls import KINDS
from isobit_torch.program.signature import Call


@dataclass(frozen=True)
class Lengths:
    """What stands for the sizes of a packed sequence's steps.

    The masks are made where sequences are packed: torch fixes the number of steps where it unrolls a recurrent layer.
    """

    of_each: Tensor  # (batch)
    time: Any
    batch: Any
    is_there: Tensor  # (time, batch): whether a step is one of the sequence's own
    backward: Tensor  # (time, batch): the steps of each sequence from its end to its start, its padding where it was

    @classmethod
    def of(cls, of_each: Tensor, time: Any, batch: Any, device: torch.device) -> Lengths:
        """Those of sequences of so many steps each."""
        steps, each = torch.arange(time, device=device)[:, None], of_each.reshape(1, batch).to(device)
        is_there = steps < each
        return cls(of_each, time, batch, is_there, torch.where(is_there, each - 1 - steps, steps))


class PaddedSequences(TorchFunctionMode):
    """Packing does nothing but note the lengths; recurrent layers and unpacking heed them.

    For trying (`is_tried`), the sequences get other lengths than theirs, all below that of the padding, and where
    `is_packing` they are packed. What is unpacked has then the length of the padding where `is_whole`.
    """

    def __init__(self, *, is_tried: bool = False, is_packing: bool = False, is_whole: bool = False) -> None:
        super().__init__()
        self.is_tried, self.is_packing, self.is_whole = is_tried, is_packing, is_whole
        self.given: list[tuple[Tensor, int]] = []  # lengths as the code has them, and the length of the padding
        self._times: dict[int, int] = {}  # by the identity of the sizes of what was packed
        self.has_packed = False
        self._lengths: dict[int, Lengths] = {}  # by the identity of the sizes of steps
        self._kept: list[Tensor] = []  # identities hold while the objects live
        self._checks: list[tuple[type[nn.RNNBase], Any]] = []

    def __enter__(self) -> PaddedSequences:
        """Recurrent layers compare the batch of a packed sequence as a number, which would fix it."""
        for kind in (nn.RNNBase, nn.LSTM):
            self._checks.append((kind, kind.check_forward_args))
            kind.check_forward_args = self._check(kind.check_forward_args)  # type: ignore[method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Everything as it was."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for kind, check in self._checks:
            kind.check_forward_args = check  # type: ignore[method-assign]
        self._checks.clear()

    def _check(self, plain: Callable[..., None]) -> Callable[..., None]:
        def check(module: nn.RNNBase, x: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
            if id(batch_sizes) not in self._lengths:
                plain(module, x, hidden, batch_sizes)

        return check

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation, or what it is of padded sequences."""
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        if name == "_pack_padded_sequence":
            return self._pack(func, *args, **named)
        second = args[1] if len(args) > 1 else None
        lengths = self._lengths.get(id(second))
        if lengths is not None and name == "_pad_packed_sequence":
            return self._unpack(lengths, args[0], *args[2:], **named)
        if lengths is not None and name in KINDS:
            return _Network(func, lengths, args, is_lstm=name == "lstm").run()
        if self.is_whole and name == "_pad_packed_sequence" and id(second) in self._times:
            x, sizes, batch_first, value, total = args
            return func(x, sizes, batch_first, value, max(total, self._times[id(sizes)]))
        if name == "__getitem__" and id(args[0]) in self._lengths and args[1] == 0:
            return self._lengths[id(args[0])].batch
        return func(*args, **named)

    def _pack(self, func: Callable[..., Any], x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        self.has_packed = True
        x = x.transpose(0, 1) if batch_first else x
        time, batch = x.shape[:2]
        if self.is_packing:
            self.given.append((lengths, int(time)))
        if self.is_tried:
            lengths = _shorter(time, batch)
        if self.is_packing:
            packed: tuple[Tensor, Tensor] = func(x, lengths, False)
            self._kept.append(packed[1])
            self._times[id(packed[1])] = int(time)
            return packed
        sizes = torch.full((time,), batch)
        self._kept.append(sizes)
        self._lengths[id(sizes)] = Lengths.of(lengths, time, batch, x.device)
        return x.reshape(-1, *x.shape[2:]), sizes

    def _unpack(
        self, lengths: Lengths, data: Tensor, batch_first: bool, padding_value: float, total_length: Any
    ) -> tuple[Tensor, Tensor]:
        y = data.reshape(-1, lengths.batch, *data.shape[1:])
        y = torch.where(_beside(lengths.is_there, y.ndim), y, padding_value)
        if total_length > lengths.time:
            y = torch.cat((y, y.new_full((total_length - lengths.time, *y.shape[1:]), padding_value)))
        return y.transpose(0, 1) if batch_first else y, lengths.of_each


class _Network:
    """One call of a recurrent network on a packed sequence."""

    def __init__(self, func: Callable[..., Any], lengths: Lengths, args: Sequence[Any], *, is_lstm: bool) -> None:
        self.func, self.lengths, self.is_lstm = func, lengths, is_lstm
        self.data, _, states, self.weights, self.has_biases, self.layers, self.dropout, self.training, both = args
        self.states: list[Tensor] = list(states) if is_lstm else [states]
        self.directions = 2 if both else 1
        self.count = len(self.weights) // (self.layers * self.directions)

    def run(self) -> tuple[Tensor, ...]:
        """The sequence, flat as it came, and the last states."""
        x = self.data.reshape(-1, self.lengths.batch, *self.data.shape[1:])
        lasts = []
        for layer in range(self.layers):
            if layer and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            results = [self._direction(x, layer * self.directions + i, i) for i in range(self.directions)]
            lasts += [last for _, last in results]
            x = torch.cat([y for y, _ in results], -1)
        last = torch.cat(lasts)
        if not self.is_lstm:
            return x.reshape(-1, *x.shape[2:]), last
        # Only the layer itself knows its cells behind the last step of a short sequence: who reads them gets no number.
        return x.reshape(-1, *x.shape[2:]), last, torch.full_like(self.states[1], torch.nan)

    def _direction(self, x: Tensor, cell: int, reverse: int) -> tuple[Tensor, Tensor]:
        """The sequence (time, batch, hidden) of one layer and direction, and its last state (1, batch, hidden)."""
        weights = self.weights[cell * self.count : (cell + 1) * self.count]
        states = [state[cell : cell + 1] for state in self.states]
        order = self.lengths.backward if reverse else None
        x = x if order is None else _taken(x, order)
        settings = (self.has_biases, 1, 0.0, self.training, False, False)
        y = self.func(x, tuple(states) if self.is_lstm else states[0], weights, *settings)[0]
        last = _taken(y, (self.lengths.of_each.to(x.device) - 1)[None])
        return y if order is None else _taken(y, order), last


def _taken(x: Tensor, steps: Tensor) -> Tensor:
    """The steps of each sequence: those of (time, batch, features) at (other time, batch)."""
    return x.gather(0, steps[..., None].expand(-1, -1, x.shape[-1]))


def _beside(mask: Tensor, ndim: int) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (ndim - mask.ndim))


def _shorter(time: Any, batch: Any) -> Tensor:
    """Falling lengths of so many sequences, at most half of the steps: what takes padding for values sees much."""
    lengths: Tensor = time // 2 - torch.arange(batch)
    return lengths.clamp(min=1)


_LONGEST = (
    "write pad_packed_sequence(..., total_length=x.shape[1]), or give a batch whose longest sequence has no padding"
)


def why_not_padded(module: nn.Module, call: Call) -> str | None:
    """Why padded sequences do not give what packed ones do, also of other lengths than here; None where they do."""
    own = PaddedSequences(is_packing=True)
    try:
        found, padded = _outputs(module, call, own), _outputs(module, call, PaddedSequences())
        tried = _at_other_lengths(call, own.given)
        whole, short, wanted = (
            _outputs(module, tried, PaddedSequences(is_tried=True, is_packing=is_packing, is_whole=is_whole))
            for is_packing, is_whole in ((True, True), (True, False), (False, False))
        )
    except _NotRunError as error:
        return (
            "it packs sequences, which are computed padded here, and its code does not run so for other lengths: "
            f"{error}; give the layer padded sequences, and mask its results"
        )
    if not _agree(whole, wanted):
        return (
            "it packs sequences, which are computed padded here, and that gives other values: it reads the last state "
            "of cells of an LSTM (its hidden state is there), or computes across the values of a packed sequence; give "
            "the layer padded sequences, and mask its results"
        )
    if not _agree(found, padded):
        return (
            "it packs sequences that are all shorter than their padding, and its results have the length of the "
            f"longest, which only the data knows: {_LONGEST}"
        )
    if not _agree(short, wanted, may_end=True):
        return (
            "it unpacks sequences to the length of the longest, which only the data knows, and computes across their "
            "steps: write pad_packed_sequence(..., total_length=x.shape[1])"
        )
    return None


def _at_other_lengths(call: Call, given: Sequence[tuple[Tensor, int]]) -> Call:
    """The call with the lengths that are tried where it has lengths that were packed: masks may be made of them."""

    def other(leaf: Tensor) -> Tensor:
        for lengths, time in given:
            if leaf.shape != lengths.shape or leaf.is_floating_point():
                continue
            if torch.equal(leaf.cpu().sort().values, lengths.cpu().to(leaf.dtype).sort().values):
                return _shorter(time, len(leaf)).to(leaf)
        return leaf

    args, kwargs = pytree.tree_map_only(Tensor, other, (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


class _NotRunError(Exception):
    """The module's own code does not run in a way that it was not written for."""


def _outputs(module: nn.Module, call: Call, mode: PaddedSequences) -> list[Tensor]:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (call.args, call.kwargs))
    try:
        with torch.no_grad(), mode:
            outputs = module(*args, **kwargs)
    except Exception as error:
        raise _NotRunError(f"{type(error).__name__}: {first_line(str(error))}") from error
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _agree(found: Sequence[Tensor], wanted: Sequence[Tensor], *, may_end: bool = False) -> bool:
    """Whether values are the same; where they `may_end`, those found may lack the last ones of a single axis."""
    if len(found) != len(wanted):
        return False
    for a, b in zip(found, wanted, strict=True):
        if may_end and a.ndim == b.ndim:
            axes = [axis for axis in range(a.ndim) if a.shape[axis] < b.shape[axis]]
            b = b.narrow(axes[0], 0, a.shape[axes[0]]) if len(axes) == 1 else b
        if a.shape != b.shape or not torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5, equal_nan=True):
            return False
    return True
