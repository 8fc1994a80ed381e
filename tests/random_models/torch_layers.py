"""Layers and functional calls of PyTorch by the tensor that they read: images, sequences, vectors, or anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = Callable[..., Any]
Maker = Callable[[np.random.Generator, Tensor], Layer]


def _one_of(rng: np.random.Generator, choices: list[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _conv(rng: np.random.Generator, x: Tensor) -> Layer:
    channels, axes = x.shape[1], x.ndim - 2
    group = _one_of(rng, [g for g in (1, 1, 2, channels) if channels % g == 0])
    out = group * int(rng.integers(1, 4))
    kernel = int(rng.integers(1, min(3, *x.shape[2:]) + 1))
    settings: dict[str, Any] = {"groups": group, "bias": bool(rng.random() < 0.7)}
    if kernel % 2:
        settings["padding"] = _one_of(rng, [0, kernel // 2, "same"])
        settings["padding_mode"] = _one_of(rng, ["zeros", "zeros", "replicate"])
    if settings.get("padding") != "same":
        settings["stride"] = int(rng.integers(1, 3))
    return getattr(nn, f"Conv{axes}d")(channels, out, kernel, **settings)  # type: ignore[no-any-return]


def _transposed(rng: np.random.Generator, x: Tensor) -> Layer:
    channels, axes = x.shape[1], x.ndim - 2
    stride = int(rng.integers(1, 3))
    layer = getattr(nn, f"ConvTranspose{axes}d")
    return layer(channels, int(rng.integers(1, 5)), 3, stride=stride, output_padding=stride - 1)  # type: ignore[no-any-return]


def _sizes(rng: np.random.Generator, x: Tensor) -> Layer:
    return nn.Upsample(
        scale_factor=2, mode=_one_of(rng, ["nearest", "bilinear", "bicubic"] if x.ndim == 4 else ["nearest", "linear"])
    )


def _drawn_norm(kind: str) -> Maker:
    def make(rng: np.random.Generator, x: Tensor) -> Layer:
        layer = getattr(nn, f"{kind}{max(1, x.ndim - 2)}d")(x.shape[1], affine=bool(rng.random() < 0.8))
        for name, values in [*layer.named_buffers(), *layer.named_parameters()]:
            if values.dtype.is_floating_point:
                low = 0.5 if name in ("running_var", "weight") else -0.5
                values.data.copy_(torch.from_numpy(rng.uniform(low, 1.5, values.shape)))
        return layer  # type: ignore[no-any-return]

    return make


def _pooled(kind: str, *arguments: Any, **settings: Any) -> Maker:
    return lambda _, x: getattr(nn, f"{kind}{x.ndim - 2}d")(*arguments, **settings)  # type: ignore[no-any-return]


def _last(x: Tensor) -> int:
    return x.shape[-1]


class _Recurrent(nn.Module):
    """The sequence of a recurrent layer, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


def _recurrent(rng: np.random.Generator, x: Tensor) -> Layer:
    kind = _one_of(rng, [nn.LSTM, nn.GRU, nn.RNN])
    return _Recurrent(kind(_last(x), int(rng.integers(2, 5)), batch_first=True, bidirectional=bool(rng.random() < 0.3)))


class _Attention(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(size, 2 if size % 2 == 0 else 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


def _encoder(_: np.random.Generator, x: Tensor) -> Layer:
    return nn.TransformerEncoderLayer(_last(x), 1, 8, batch_first=True, activation="gelu")


def _linear_forms(rng: np.random.Generator, x: Tensor) -> Layer:
    weight = torch.from_numpy(rng.standard_normal((_last(x), 5)).astype(np.float32) * 0.5)
    forms: list[Layer] = [
        lambda y: y @ weight,
        lambda y: functional.linear(y, weight.T.contiguous()),
        lambda y: torch.einsum("...i,io->...o", y, weight),
        lambda y: torch.matmul(y, weight) + 0.5,
    ]
    return _one_of(rng, forms)  # type: ignore[no-any-return]


IMAGES: dict[str, Maker] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "BatchNorm": _drawn_norm("BatchNorm"),
    "InstanceNorm": _drawn_norm("InstanceNorm"),
    "GroupNorm": lambda _, x: nn.GroupNorm(2 if x.shape[1] % 2 == 0 else 1, x.shape[1]),
    "MaxPool": _pooled("MaxPool", 2),
    "MaxPool up": _pooled("MaxPool", 2, stride=2, padding=1, ceil_mode=True),
    "AvgPool": _pooled("AvgPool", 2),
    "AvgPool padded": _pooled("AvgPool", 3, stride=2, padding=1, count_include_pad=False),
    "AdaptiveAvgPool": _pooled("AdaptiveAvgPool", 1),
    "AdaptiveMaxPool": _pooled("AdaptiveMaxPool", 1),
    "Upsample": _sizes,
    "ConstantPad": _pooled("ConstantPad", 1, 0.5),
    "ReplicationPad": _pooled("ReplicationPad", 1),
    "Dropout": lambda _, x: nn.Dropout(),
    "PReLU": lambda _, x: nn.PReLU(x.shape[1], 0.2),
    "mean of places": lambda _, x: lambda y: y.mean((2, *range(3, y.ndim))),
    "flatten": lambda _, x: lambda y: y.flatten(1),
    "gate": lambda _, x: lambda y: y * y.mean(tuple(range(2, y.ndim)), keepdim=True).sigmoid(),
    "chunk": lambda _, x: lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "to the last": lambda _, x: lambda y: y.flatten(2).transpose(1, 2),
    "shuffle": lambda _, x: nn.PixelShuffle(2),
    "unshuffle": lambda _, x: nn.PixelUnshuffle(2),
}
SEQUENCES: dict[str, Maker] = {
    "Linear": lambda rng, x: nn.Linear(_last(x), int(rng.integers(2, 9)), bias=bool(rng.random() < 0.7)),
    "products": _linear_forms,
    "recurrent": _recurrent,
    "MultiheadAttention": lambda _, x: _Attention(_last(x)),
    "TransformerEncoderLayer": _encoder,
    "LayerNorm": lambda rng, x: nn.LayerNorm(_last(x), bias=bool(rng.random() < 0.7)),
    "RMSNorm": lambda _, x: nn.RMSNorm(_last(x)),
    "Conv": _conv,
    "attention": lambda _, x: lambda y: functional.scaled_dot_product_attention(y, y, y),
    "scores": lambda _, x: lambda y: (y @ y.mT / math.sqrt(_last(y))).softmax(-1) @ y,
    "mean of steps": lambda _, x: lambda y: y.mean(1),
    "last step": lambda _, x: lambda y: y[:, -1],
    "transpose": lambda _, x: lambda y: y.transpose(1, 2),
    "cumsum": lambda _, x: lambda y: y.cumsum(1),
    "add positions": lambda _, x: lambda y: y + torch.arange(y.shape[1])[None, :, None] * 0.1,
}
VECTORS: dict[str, Maker] = {
    "Linear": SEQUENCES["Linear"],
    "products": _linear_forms,
    "BatchNorm": _drawn_norm("BatchNorm"),
    "LayerNorm": SEQUENCES["LayerNorm"],
    "normalize": lambda _, x: lambda y: functional.normalize(y, dim=-1),
    "unsqueeze": lambda _, x: lambda y: y[:, None],
    "outer": lambda _, x: lambda y: y[:, :, None] * y[:, None],
    "glu": lambda _, x: lambda y: functional.glu(torch.cat([y, y.flip(1)], 1), 1),
}
_ACTIVATIONS = (
    "ReLU ReLU ReLU6 SiLU GELU Hardswish Hardsigmoid LeakyReLU ELU Mish Sigmoid Tanh Softplus Softsign Identity"
)
ANYWHERE: dict[str, Maker] = {
    **{name: lambda _, x, name=name: getattr(nn, name)() for name in _ACTIVATIONS.split()},
    "softmax": lambda _, x: nn.Softmax(-1),
    "log_softmax": lambda _, x: nn.LogSoftmax(1),
    "clamp": lambda _, x: lambda y: y.clamp(-1, 1.5),
    "where": lambda _, x: lambda y: torch.where(y > 0, y, y * 0.1),
    "quick gelu": lambda _, x: lambda y: y * torch.sigmoid(1.702 * y),
    "residual": lambda _, x: lambda y: y + y.tanh(),
    "square root": lambda _, x: lambda y: (y.abs() + 0.1).sqrt(),
    "square": lambda _, x: lambda y: y.square() * 0.1,
    "slice": lambda _, x: lambda y: y[:, : max(1, y.shape[1] // 2)],
    "repeat": lambda _, x: lambda y: torch.cat([y, y], -1),
    "view": lambda _, x: lambda y: y.reshape(y.shape[0], -1, y.shape[-1]),
    "amax": lambda _, x: lambda y: y - y.amax(-1, keepdim=True),
}
