"""`isobit.backend.Differentiable` in PyTorch: the simulator's graph, with some of its constants replaced by leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from isobit.backend import Batch
from isobit.errors import ModelError
from isobit.graph import Layout
from isobit_torch.program.convert import to_tensor
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.program.layouts import to_native
from isobit_torch.program.modules import BatchNorm
from isobit_torch.simulate.passes.module_state import fixed
from isobit_torch.translate.translate import Translation

Array = NDArray[np.float32]

#: Weights by name, and the value of a function with its gradient by each of them.
Values = Mapping[str, Array]
Derived = tuple[float, dict[str, Array]]


class Overridden(fx.Interpreter):
    """Runs a graph with `weights` in place of the module's own; `leaves` are what gradients are taken by."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, translation: Translation, weights: Mapping[str, Array]
    ) -> None:
        super().__init__(root, garbage_collect_values=True, graph=graph)
        self.leaves: dict[str, Tensor] = {}
        self._natives: dict[str, Tensor] = {}
        places = {name: _place(translation, name) for name in weights}
        for name, (path, layout) in places.items():
            own = self._natives.get(path, attribute(root, path).detach())
            leaf = to_tensor(weights[name]).to(own.device).requires_grad_()
            self.leaves[name] = leaf
            with torch.enable_grad():
                self._natives[path] = to_native(leaf, layout, own).to(own.dtype)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """An overriding weight, or the module's own."""
        own = self._natives.get(target)
        return super().get_attr(target, args, kwargs) if own is None else own

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """torch's batch norm has no gradient by its statistics; where one is asked for, this is its formula."""
        module = attribute(self.module, target)
        if not isinstance(module, BatchNorm) or not any(t is not None and t.requires_grad for t in args[3:]):
            return super().call_module(target, args, kwargs)
        x, weight, bias, mean, variance = args
        shape = (-1, *[1] * (x.ndim - 2))
        result = (x - mean.reshape(shape)) / torch.sqrt(variance.reshape(shape) + module.epsilon)
        result = result if weight is None else result * weight.reshape(shape)
        return result if bias is None else result + bias.reshape(shape)

    def run_with_gradients(self, *feeds: Tensor) -> Any:
        """The flat outputs; also where gradients are switched off outside."""
        with torch.enable_grad():
            return self.run(*feeds)

    def derive(
        self, function: Callable[[Mapping[str, Any]], Any], outputs: Mapping[str, Tensor]
    ) -> tuple[float, dict[str, Array]]:
        """The value of a function of outputs, which returns a tensor without axes, and its gradient by each leaf."""
        with torch.enable_grad():
            value = function(outputs)
        number = float(value.detach())
        if not self.leaves:
            return number, {}
        if not value.requires_grad:
            raise ModelError(
                "the function's value does not depend on the weights: compute it from the outputs by torch's own "
                "operations, without detach() and NumPy"
            )
        leaves = list(self.leaves.values())
        gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return number, {name: gradient.cpu().numpy() for name, gradient in zip(self.leaves, gradients, strict=True)}


def gradient(
    root: nn.Module,
    graph: fx.Graph,
    translation: Translation,
    weights: Mapping[str, Array],
    evaluate: Callable[[Callable[..., Any], Batch], Sequence[Any]],
    batch: Batch,
    names: Sequence[str | None],
    function: Callable[[Mapping[str, Any]], Any],
) -> tuple[float, dict[str, Array]]:
    """Value of a function of a graph's outputs, which have these names, and its gradient by `weights`, overridden.

    `evaluate` calls what it is given with the tensors of a batch.
    """
    runner = Overridden(root, graph, translation, weights)
    with fixed(root):
        flat = evaluate(runner.run_with_gradients, batch)
        outputs = {name: tensor for name, tensor in zip(names, flat, strict=True) if name is not None}
        return runner.derive(function, outputs)


def _place(translation: Translation, name: str) -> tuple[str, Layout]:
    """Where the module holds a float weight, and its layout."""
    info = translation.graph.weights[name]
    source = info.source or name
    if source not in translation.attributes:
        raise ModelError(f"constant {name!r} is a number in the code: it has no gradient")
    return str(translation.attributes[source].target), info.layout
