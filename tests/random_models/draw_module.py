"""A random PyTorch module, its data and its settings, all of one seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from draw_settings import Settings, draw_settings
from torch import Tensor, nn
from torch_layers import ANYWHERE, IMAGES, SEQUENCES, VECTORS, Layer, Maker

#: The layers that a tensor of so many axes can go through.
_BY_RANK: dict[int, dict[str, Maker]] = {
    2: {**VECTORS, **ANYWHERE},
    3: {**SEQUENCES, **ANYWHERE},
    4: {**IMAGES, **ANYWHERE},
    5: {**IMAGES, **ANYWHERE},
}


@dataclass
class ModuleCase:
    """A module, the batches that it is calibrated on, and how it is quantized."""

    seed: int
    module: nn.Module
    batches: list[tuple[Tensor, ...]]
    settings: Settings
    kinds: list[str]


class DrawnModule(nn.Module):
    """Steps on a list of values: each reads some of them, and appends its own; `returned` are positions in it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Layer, tuple[int, ...]]] = []
        self.returned: list[int] = []

    def add(self, name: str, layer: Layer, *reads: int) -> None:
        """One more step; modules get a name of their own, unless they have one."""
        if isinstance(layer, nn.Module) and all(layer is not other for other in self.children()):
            self.add_module(name, layer)
        self.steps.append((layer, reads))

    def forward(self, *inputs: Tensor) -> Any:
        values: list[Any] = list(inputs)
        for layer, reads in self.steps:
            values.append(layer(*(values[index] for index in reads)))
        results = tuple(values[index] for index in self.returned)
        return results if len(results) > 1 else results[0]


def draw_module(seed: int) -> ModuleCase:
    """The case of a seed."""
    rng = np.random.default_rng([18, seed])
    torch.manual_seed(seed)
    while True:
        case = _drawn(rng, seed)
        if case is not None:
            return case


def _drawn(rng: np.random.Generator, seed: int) -> ModuleCase | None:
    shapes = [_shape(rng) for _ in range(2 if rng.random() < 0.2 else 1)]
    batches = [tuple(_values(rng, (size, *shape)) for shape in shapes) for size in (3, 3, 2)]
    module, kinds = DrawnModule(), []
    values: list[Tensor] = list(batches[0])
    style = int(rng.integers(4))
    for number in range(int(rng.integers(2, 9))):
        index = len(values) - 1 - min(int(rng.geometric(0.7)) - 1, len(values) - 1)
        others = [i for i, v in enumerate(values) if i != index and v.shape == values[index].shape]
        layers = [layer for layer in module.children() if not isinstance(layer, nn.BatchNorm2d)]
        if others and rng.random() < 0.3:
            kind, reads = "add", (index, others[int(rng.integers(len(others)))])
            layer: Layer = torch.add
        elif layers and rng.random() < 0.1:
            kind, layer, reads = "again", layers[int(rng.integers(len(layers)))], (index,)
        else:
            choices = _BY_RANK.get(values[index].ndim, ANYWHERE)
            kind = list(choices)[int(rng.integers(len(choices)))]
            reads = (index,)
            layer = _made(choices[kind], rng, values[index])
        value = _value(layer, [values[i] for i in reads])
        if value is None:
            continue
        module.add(_name(style, kind, number), layer, *reads)
        values.append(value)
        kinds.append(kind)
    read = {index for _, reads in module.steps for index in reads}
    module.returned = [i for i in range(len(shapes), len(values)) if i not in read]
    if not module.returned or any(i not in read for i in range(len(shapes))):
        return None
    return ModuleCase(seed, module.eval(), batches, draw_settings(rng), kinds)


def _shape(rng: np.random.Generator) -> tuple[int, ...]:
    shapes = [
        (int(rng.integers(1, 7)), 8, 8),
        (int(rng.integers(1, 5)), 6, 9),
        (int(rng.integers(3, 7)), int(rng.integers(3, 9))),
        (int(rng.integers(4, 12)),),
        (2, 4, 4, 4),
    ]
    return shapes[int(rng.integers(len(shapes)))]


def _values(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy((rng.standard_normal(shape) * 1.5).astype(np.float32))


def _made(make: Maker, rng: np.random.Generator, x: Tensor) -> Layer:
    try:
        layer = make(rng, x)
    except (ValueError, RuntimeError, TypeError, AssertionError):
        return lambda _: None
    return layer.eval() if isinstance(layer, nn.Module) else layer


def _value(layer: Layer, inputs: list[Tensor]) -> Tensor | None:
    """What a step gives, None where it does not fit or is of no use."""
    try:
        with torch.no_grad():
            value = layer(*inputs)
    except (ValueError, RuntimeError, TypeError, IndexError, AssertionError):
        return None
    if not isinstance(value, Tensor) or value.ndim > 5 or not 0 < value.numel() < 20_000 or value.ndim < 2:
        return None
    if value.shape[0] != inputs[0].shape[0]:
        return None
    return value if bool(value.isfinite().all()) and float(value.abs().max()) < 1e4 else None


def _name(style: int, kind: str, number: int) -> str:
    plain = kind.replace(" ", "_").replace(".", "_")
    return (f"{plain}{number}", str(number), f"größe {kind} {number}", f"_{plain}_weight_{number}")[style]
