"""The float model beside its simulator, which is to come near it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from isobit.graph import to_native
from isobit.training import DistillationSettings
from isobit.training.distillation import SMALLEST
from isobit_torch.program.convert import to_array, to_tensor
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.program.program import copy_graph
from isobit_torch.program.signature import Signature
from isobit_torch.simulate.quantizers import QUANTIZERS
from isobit_torch.simulate.simulator import Simulator
from isobit_torch.translate.translate import Translation


class Teacher:
    """``loss(outputs, *inputs)`` of outputs of the simulator for the arguments that it was called with."""

    def __init__(self, model: Simulator, signature: Signature, names: Collection[str], settings: DistillationSettings):
        self.model, self.settings = model, settings
        self.names = settings.chosen(names)
        self._signature = signature

    def __call__(self, outputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, a number with a gradient by `outputs`."""
        flat = self._signature.flatten(args, kwargs)
        device = next((value.device for value in flat if isinstance(value, Tensor)), None)
        if device is not None and device != self.model.device():
            self.model.to(device)
        run: Any = self.model.run_flat
        with torch.no_grad():
            wanted = run(*flat)
        leaves = pytree.tree_leaves(outputs)
        pairs = {n: (s, t) for n, s, t in zip(self._signature.outputs, leaves, wanted, strict=True) if n in self.names}
        losses = [_loss(*pair, self.settings.temperature) for pair in pairs.values()]
        return torch.stack(losses).mean() * self.settings.weight


def _loss(student: Tensor, teacher: Tensor, temperature: float | None) -> Tensor:
    """As `isobit.training.distillation.distillation_loss`."""
    student, teacher = student.float(), teacher.float()
    if temperature is None:
        return (student - teacher).square().mean() / teacher.square().mean().clamp(min=SMALLEST)
    logs = [functional.log_softmax(values / temperature, dim=-1) for values in (student, teacher)]
    return (logs[1].exp() * (logs[1] - logs[0])).sum(-1).mean() * temperature**2


def teacher_of(
    native: Simulator,
    graph: fx.Graph,
    signature: Signature,
    translation: Translation,
    settings: DistillationSettings,
    values: Mapping[str, NDArray[Any]],
) -> Teacher:
    """A loss by which the float model, as it is now, teaches its simulator; `values` stand for constants by name."""
    constants: dict[str, Tensor] = {}
    for name, value in values.items():
        info = translation.graph.weights[name]
        path = str(translation.attributes[info.source or name].target)
        old = constants.get(path, attribute(native, path))
        constants[path] = to_tensor(to_native(value, info.layout, to_array(old)), old)
    model = float_copy(native, graph, signature, constants)
    floats = [name for name, tensor in translation.graph.outputs.items() if translation.graph.is_float(tensor)]
    return Teacher(model, signature, floats, settings)


def float_copy(native: Simulator, graph: fx.Graph, signature: Signature, values: Mapping[str, Tensor]) -> Simulator:
    """The float model in evaluation mode around the parameters that do not train, and copies of those that do.

    `values` take the place of constants by their paths.
    """
    shared = {id(p): p for name, p in native.named_parameters() if not p.requires_grad and name not in values}
    root: Any = nn.Module()
    for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        root.__dict__[name] = copy.deepcopy(native.__dict__[name], shared)
    parts = {name: part for name, part in native._modules.items() if name != QUANTIZERS}
    root.__dict__["_modules"] = copy.deepcopy(parts, shared)
    model = Simulator(root, copy_graph(graph)[0], signature)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for path, value in values.items():
            attribute(model, path).copy_(value)
    return model
