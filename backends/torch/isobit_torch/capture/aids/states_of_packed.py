"""Given states of recurrent layers on packed sequences, checked: torch's kernels read past those that are too small.

``nn.LSTM`` compares the sizes of states with what it needs for padded sequences alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isobit_torch.program.recurrent_calls import KINDS


def with_checked_states(module: nn.Module) -> AbstractContextManager[Any]:
    """A block in which `module` runs, and raises RuntimeError for states that do not fit a packed sequence."""
    return _CheckedStates() if any(isinstance(part, nn.RNNBase) for part in module.modules()) else nullcontext()


class _CheckedStates(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in KINDS and len(args) == 9 and isinstance(args[3], list | tuple):  # the weights: it is packed
            _, sizes, states, weights, _, layers, _, _, is_both = args
            cells, batch = layers * (2 if is_both else 1), int(sizes[0])
            if name == "lstm":
                _require(states[0], (cells, batch, weights[1].shape[1]))
                _require(states[1], (cells, batch, weights[0].shape[0] // 4))
            else:
                _require(states, (cells, batch, weights[1].shape[1]))
        return func(*args, **(kwargs or {}))


def _require(state: Tensor, shape: tuple[int, int, int]) -> None:
    if tuple(state.shape) != shape:
        raise RuntimeError(f"expected a state of shape {shape} for the packed sequence, got {tuple(state.shape)}")
