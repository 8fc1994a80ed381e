"""The modules that a simulator is made of: containers under the user's names, and what follows train() and eval()."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Container(nn.Module):
    """Holds the parameters of one of the user's modules; the computation is in the simulator's graph."""

    def forward(self) -> None:
        """A container computes nothing."""
        raise RuntimeError("this module only holds parameters: call the simulator itself")


class BatchNorm(Container):
    """Batch normalisation; its parameters come as arguments, so that they can be edited like any other."""

    def __init__(self, momentum: float | None = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.is_frozen = False  # in training too

    def forward(  # type: ignore[override]
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None
    ) -> Tensor:
        """Normalise by running statistics; in training, unless frozen, by the batch's, which update them."""
        training = mean is None or (self.training and not self.is_frozen)
        momentum = 0.0 if self.momentum is None else self.momentum
        counter = self._buffers.get("num_batches_tracked")
        if training and counter is not None:
            counter.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(counter)
        return functional.batch_norm(x, mean, variance, weight, bias, training, momentum, self.epsilon)

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"epsilon={self.epsilon}, momentum={self.momentum}"


def batches_seen(root: nn.Module) -> dict[str, int]:
    """How many batches each batch norm has trained on, by its path."""
    return {path: int(counter) for path, counter in _counters(root).items()}


def set_batches_seen(root: nn.Module, counts: Mapping[str, int]) -> None:
    """Let batch norms go on counting from there."""
    for path, counter in _counters(root).items():
        if path in counts:
            counter.fill_(counts[path])


def _counters(root: nn.Module) -> dict[str, Tensor]:
    norms = {path: module for path, module in root.named_modules() if isinstance(module, BatchNorm)}
    counters = {path: norm._buffers.get("num_batches_tracked") for path, norm in norms.items()}
    return {path: counter for path, counter in counters.items() if counter is not None}


class Dropout(Container):
    """Dropout in training, nothing in evaluation; `kind` is the name of the function in torch.nn.functional."""

    def __init__(self, probability: float = 0.5, kind: str = "dropout") -> None:
        super().__init__()
        self.probability, self.kind = probability, kind

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Drop values in training."""
        if not self.training or self.probability == 0:
            return x
        function = getattr(functional, self.kind)
        result: Tensor = function(x, self.probability, True)
        return result

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"probability={self.probability}"


class Recurrent(Container):
    """One layer and direction of an LSTM, GRU or RNN; its parameters come as arguments, as those of batch norm."""

    def __init__(self, kind: str, activation: str = "", *, reverse: bool = False) -> None:
        super().__init__()
        self.kind, self.activation, self.reverse = kind, activation, reverse

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        weight: Tensor,
        recurrent_weight: Tensor,
        bias: Tensor | None,
        recurrent_bias: Tensor | None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """(time, 1, batch, hidden) of (time, batch, features), and the last states (1, batch, hidden), as in ONNX."""
        x = x.flip(0) if self.reverse else x
        initial = (hidden, cell) if self.kind == "LSTM" else (hidden,)
        zeros = (1, x.shape[1], recurrent_weight.shape[1])
        state = [x.new_zeros(zeros) if value is None else value for value in initial]
        weights = [weight, recurrent_weight, *(t for t in (bias, recurrent_bias) if t is not None)]
        settings = (bias is not None, 1, 0.0, self.training, False, False)
        if self.kind == "LSTM":
            y, *states = torch.lstm(x, state, weights, *settings)
        else:
            name = "gru" if self.kind == "GRU" else f"rnn_{self.activation.lower()}"
            y, *states = getattr(torch, name)(x, state[0], weights, *settings)
        y = y.flip(0) if self.reverse else y
        return (y.unsqueeze(1), *states)

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return ", ".join(filter(None, (self.kind, self.activation, "reverse" if self.reverse else "")))


def add_functional(root: nn.Module, module: nn.Module) -> str:
    """The path of a module for a call, outside of the user's names; it holds no state."""
    holder = root._modules.get("isobit_functional")
    if holder is None:
        root.add_module("isobit_functional", holder := nn.Module())
    name = f"call{len(holder._modules)}"
    holder.add_module(name, module)
    return f"isobit_functional.{name}"


def container_path(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, made of containers where it does not exist."""
    module = root
    for part in path.split(".") if path else ():
        if part not in module._modules:
            module.add_module(part, Container())
        module = module._modules[part]  # type: ignore[assignment]
    return module


def set_tensor(root: nn.Module, path: str, value: Tensor, *, parameter: bool, persistent: bool = True) -> None:
    """Put a parameter or buffer at a dotted path, in place of what was there."""
    parent, _, name = path.rpartition(".")
    module = container_path(root, parent)
    delete_tensor(root, path)
    if parameter:
        trainable = isinstance(value, nn.Parameter)
        new_parameter = value if trainable else nn.Parameter(value, requires_grad=value.is_floating_point())
        module.register_parameter(name, new_parameter)  # type: ignore[arg-type]
    else:
        module.register_buffer(name, value, persistent)


def delete_tensor(root: nn.Module, path: str) -> None:
    """Remove a parameter or buffer, if it is there."""
    parent, _, name = path.rpartition(".")
    module: nn.Module | None = root
    for part in parent.split(".") if parent else ():
        module = module._modules.get(part) if module is not None else None
    if module is None:
        return
    module._parameters.pop(name, None)
    module._buffers.pop(name, None)
    module._non_persistent_buffers_set.discard(name)
