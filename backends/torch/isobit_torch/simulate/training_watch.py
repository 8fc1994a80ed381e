"""What goes wrong in training without a word: an optimizer that lacks the grids, and NaN, by the tensor's name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from isobit.errors import ModelError
from isobit_torch.program.fx_nodes import NAME
from isobit_torch.simulate.arithmetic import is_recorded

#: Passes after which some weight should have moved; who sums the gradients of more has to read a warning.
_PATIENCE = 64
#: Steps of weights alone after which an optimizer of the grids should have made one, if there is one beside.
_STEPS_ALONE = 8


class TrainingWatch:
    """Looks at each pass of training of a simulator, whose grids may be learned.

    `weights` and `grids` are the parameters that train.
    """

    def __init__(self, weights: Sequence[nn.Parameter], grids: Sequence[nn.Parameter]) -> None:
        self.weights, self.grids = weights, grids
        self.passes = 0
        self._grids_move = not (weights and grids)
        self._weights_seen = 0  # their version at the last pass
        self._start: tuple[int, list[Tensor]] | None = None  # version and values of the grids at the first pass
        self._reached = False  # some grid has had a gradient
        self._alone = 0  # steps that have changed weights and no grid
        self._still: tuple[int, Tensor] | None = None  # the version of the weights at the first pass, and one of them
        self._hooks: list[RemovableHandle] = []

    def before(self) -> None:
        """Raises ModelError where steps have changed weights and left every grid as it was.

        Weights that change before a gradient has reached a grid were changed by something else: loaded, or averaged.
        """
        if self.passes in (0, _PATIENCE):
            self._look_at_weights()
        if self._grids_move:
            return
        weights, grids = (sum(p._version for p in parameters) for parameters in (self.weights, self.grids))
        if self._start is None:
            self._start = grids, [p.detach().clone() for p in self.grids]
            self._hooks = [p.register_hook(self._note) for p in self.grids]  # type: ignore[no-untyped-call]
        elif grids != self._start[0]:
            self._settle()
        elif weights != self._weights_seen and self._reached:
            if any(not torch.equal(p, value.to(p.device)) for p, value in zip(self.grids, self._start[1], strict=True)):
                self._settle()  # by a fused optimizer, which counts no version
                return
            self._alone += 1
            if self._alone >= _STEPS_ALONE:
                raise ModelError(
                    f"{_STEPS_ALONE} steps of training changed the weights, and no grid that is learned: the optimizer "
                    "was made before trainable(), or without sim.quantizer_parameters(). Make it afterwards, or say "
                    "trainable('frozen') for as long as weights alone shall train"
                )
        self._weights_seen = weights

    def _look_at_weights(self) -> None:
        """Warn where gradients have reached the weights, and after many passes none has moved."""
        if not self.weights:
            return
        version = sum(p._version for p in self.weights)
        smallest = min(self.weights, key=Tensor.numel)
        if self._still is None:
            self._still = version, smallest.detach().clone()
        elif (
            version == self._still[0]
            and all(p.grad is not None for p in self.weights)
            and torch.equal(smallest, self._still[1].to(smallest.device))  # a fused optimizer counts no version
        ):
            warnings.warn(
                f"{self.passes} passes of training have changed no weight, though gradients have reached all: does the "
                "optimizer have the parameters of another model? The simulator has its own: sim.model.parameters()",
                UserWarning,
                stacklevel=4,
            )

    def _note(self, _gradient: Tensor) -> None:
        self._reached = True

    def _settle(self) -> None:
        """The grids move: nothing is left to look for."""
        self._grids_move, self._start = True, None
        while self._hooks:
            self._hooks.pop().remove()

    def after(self, model: fx.GraphModule, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Raises ModelError that names the first tensor with NaN.

        A quantizer may give a number for NaN, so inputs are looked at beside outputs, and the smallest of the weights:
        a loss of NaN leaves no weight a number.
        """
        self.passes += 1
        looked_at = [*inputs, *outputs, *sorted(self.weights, key=Tensor.numel)[:1]]
        if any(isinstance(value, Tensor) and (is_recorded(value) or value.is_meta) for value in looked_at):
            return
        if any(_has_nan(value) for value in looked_at):
            found = _first_with_nan(model, inputs)
            raise ModelError(
                f"pass {self.passes} of training: {found}. Look at the loss and the batch, and lower the learning "
                "rate; a checkpoint from before it goes on"
            )


def _has_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.detach().isnan().any())


def _first_with_nan(model: fx.GraphModule, inputs: Sequence[Any]) -> str:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if _has_nan(value):
            return f"{name!r} holds NaN, so the step before had a loss or a gradient of NaN"
    finder = _Finder(model)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            finder.run(*inputs, enable_io_processing=False)
    finally:
        model.train(was_training)
    return "an output holds NaN" if finder.found is None else f"{finder.found!r} holds NaN"


class _Finder(fx.Interpreter):
    """Runs a graph and notes the first of its tensors that has NaN."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        """The node's result."""
        result = super().run_node(n)
        if self.found is None and _has_nan(result):
            self.found = str(n.meta.get(NAME) or n.name)
        return result
