"""Random weights that carry a signal, as training leaves them.

Initialisations for training make poor test models: weights of standard deviation 0.02 leave attention uniform and what
a block adds at a hundredth of the residual stream, layer scales start at 1e-6, and running statistics of 0 and 1 let a
deep convolutional network fade to 1e-29. What is measured on such a network is rounding noise over no signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn


def awaken(module: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> nn.Module:
    """Scale every layer by its fan-in, spread norms, and take batch norm statistics from `batches`."""
    with torch.no_grad():
        known: set[int] = set()
        for layer in module.modules():
            known |= {id(p) for p in layer.parameters(recurse=False)} if _fill(layer) else set()
        for name, parameter in module.named_parameters():
            if id(parameter) not in known:
                _fill_other(name, parameter)
    _running_statistics(module, batches)
    return module.eval()


def _fill(layer: nn.Module) -> bool:
    """Weights of the layers that everybody uses; returns whether this is one of them."""
    if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) or type(layer).__name__ == "Conv1D":
        weight = layer.weight
        if not isinstance(weight, nn.Parameter):  # computed from others by a parametrization, which stay as they are
            return True
        conv = isinstance(layer, nn.modules.conv._ConvNd)
        fan_in = weight.shape[0] if type(layer).__name__ == "Conv1D" else weight[0].numel()
        weight.normal_(0, math.sqrt((2.0 if conv else 1.0) / fan_in))
        if isinstance(layer.bias, nn.Parameter):
            layer.bias.normal_(0, 0.1)
        return True
    if isinstance(layer, nn.Embedding):
        layer.weight.normal_(0, 1)
        return True
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
        layer.weight.uniform_(0.5, 1.5)
        if layer.bias is not None:
            layer.bias.normal_(0, 0.1)
        return True
    return False


def _fill_other(name: str, parameter: nn.Parameter) -> None:
    """Tables of positions, class tokens and biases by position; scales of layers and norms stay as they are."""
    if parameter.ndim >= 2 and parameter.is_floating_point() and "parametrizations" not in name:
        parameter.normal_(0, 1)


def _running_statistics(module: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Averages over `batches`; dropout stays off, each norm sees what the ones before it normalise."""
    norms = [m for m in module.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches:
            module(**batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
