"""The user's own module, run as it was given, to compare with. It is held, not copied, and stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from isobit.errors import DataError, ModelError
from isobit_torch.capture.aids.decided_branches import Enough, TakenWays, other_way
from isobit_torch.capture.aids.states_of_packed import with_checked_states
from isobit_torch.capture.capture import Capture
from isobit_torch.capture.errors import first_line
from isobit_torch.capture.fast_path import without_fast_path
from isobit_torch.capture.own_copy.copy_module import copy_module
from isobit_torch.program.devices import device_of
from isobit_torch.program.torch_export import quiet, without_autocast

_FEW = 64


class Given:
    """A module and the way in which it was captured."""

    def __init__(self, module: nn.Module, captured: Capture) -> None:
        self.module, self._caches = module, captured.caches
        self._call, self._signature = captured.call, captured.signature
        self._state, self._decided = _state(module), captured.decided

    def run(self, feeds: Mapping[str, torch.Tensor], tensors: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """Outputs by name, or the results of those `tensors` that are modules of a single operation, by name.

        In evaluation mode, and computed in float32 as the captured copy. Raises ModelError where the module does not
        run, or has changed since.
        """
        if self._is_changed:
            raise ModelError("its parameters have changed since it was opened")
        args, kwargs = self._arguments(feeds)
        results: dict[str, torch.Tensor] = {}
        twin = self._twin()
        parts = dict(twin.named_modules())
        single = [name for name in tensors if name in parts and f"{name}#1" not in tensors]
        hooks = [parts[name].register_forward_hook(_keep(results, name)) for name in single]
        with torch.no_grad(), quiet(), without_autocast(), without_fast_path(), with_checked_states(twin):
            try:
                outputs = pytree.tree_leaves(twin(*args, **kwargs))
            except Exception as error:
                raise ModelError(f"it does not run: {type(error).__name__}: {first_line(str(error))}") from error
            finally:
                for hook in hooks:
                    hook.remove()
        if tensors:
            return results
        names = self._signature.outputs
        if len(outputs) != len(names):
            raise ModelError(f"it returns {len(outputs)} values, and returned {len(names)} when it was opened")
        pairs = zip(names, outputs, strict=True)
        return {name: value for name, value in pairs if name is not None and isinstance(value, torch.Tensor)}

    def refuse_other_ways(self, feeds: Mapping[str, torch.Tensor]) -> None:
        """Raise DataError where a branch that the example decided goes another way; the module runs up to the last.

        Nothing is tried where no branch was decided, or where parameters have changed since.
        """
        if not self._decided or self._is_changed:
            return
        args, kwargs = self._arguments(feeds)
        twin, taken = self._twin(), TakenWays(self._decided)
        failure: Exception | None = None
        with torch.no_grad(), quiet(), without_autocast(), with_checked_states(twin), suppress(Enough), taken:
            try:
                twin(*args, **kwargs)
            except Exception as error:  # an assertion, or what a branch raises: the line says more
                failure = error
        line = other_way(self._decided, taken.ways)
        if line is not None:
            raise DataError(
                f"{line} decides by values, and goes another way with this batch than with the first one, by which the "
                "model was opened: leave such batches out, or write torch.where or torch.cond there"
            ) from failure
        if failure is not None:
            reason = f"{type(failure).__name__}: {first_line(str(failure))}"
            raise DataError(f"the model as given does not run on this batch: {reason}") from failure

    @property
    def _is_changed(self) -> bool:
        return _state(self.module) != self._state

    def _twin(self) -> nn.Module:
        twin = _twin(self.module)
        self._caches.settle(twin)
        return twin

    def _arguments(self, feeds: Mapping[str, torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """The call of the example with other tensors in it."""
        device, call = device_of(self.module), self._call
        values: list[Any] = []
        for argument, example in zip(self._signature.arguments, call.by_name.values(), strict=True):
            leaves = pytree.tree_leaves(example)
            filled = [
                leaf if name is None else feeds[name].to(device).clone()
                for name, leaf in zip(argument.leaves, leaves, strict=True)
            ]
            values.append(pytree.tree_unflatten(filled, argument.spec))
        count = len(call.args)
        return values[:count], dict(zip(call.names[count:], values[count:], strict=True))


def _twin(module: nn.Module) -> nn.Module:
    """A copy of the module around the same parameters; around its own where they are of other types than float32."""
    floats = [p for p in module.parameters() if p.is_floating_point()]
    return copy_module(module, is_shared=all(p.dtype == torch.float32 for p in floats)).float()


def _state(module: nn.Module) -> dict[str, Any]:
    """What is another after a parameter was changed or replaced; a few values tell of writes through ``data``."""

    def state(value: torch.Tensor) -> tuple[Any, ...]:
        few = value.detach().reshape(-1)[:: max(1, value.numel() // _FEW)]
        few = torch.view_as_real(few) if few.is_complex() else few
        return value.data_ptr(), value._version, value.dtype, few.double().sum().item()

    return {name: state(parameter) for name, parameter in module.named_parameters()}


def _keep(results: dict[str, torch.Tensor], name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            results.setdefault(name, output.detach().clone())

    return hook
