"""What people write in forward, by the input it takes: layers of torch.nn one by one, and functional calls.

``GROUPS`` maps a group to its operations; all of a group read one quantized tensor and are exported as one model.
``IN_FLOAT`` says which ATen calls have no ONNX meaning that the neutral graph knows, and why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

Operation = Callable[..., Any]

IN_FLOAT = {
    "aten::adaptive_avg_pool2d": "windows of different sizes",
    "aten::max_pool2d_with_indices": "ONNX numbers the places in another way",
    "aten::col2im": "adds up patches",
    "aten::im2col": "makes patches",
    "aten::unfold": "makes overlapping windows",
    "aten::argsort": "gives places alone",
    "aten::aminmax": "two results of two reductions",
    "aten::einsum": "takes a diagonal",
    "aten::expm1": "exp(x) - 1 would round exp(x)",
    "aten::erfc": "no ONNX operation",
    "aten::trunc": "no ONNX operation",
    "aten::frac": "no ONNX operation",
    "aten::exp2": "no ONNX operation",
    "aten::index.Tensor": "indices along several axes",
    "aten::diagonal": "a diagonal",
    "aten::zeros_like": "a constant of the size of a tensor",
}


class Group(nn.Module):
    """Every operation on the output of one quantized layer; results by the operation's name."""

    def __init__(self, stem: nn.Module, operations: dict[str, Operation]) -> None:
        super().__init__()
        self.stem = stem
        self.operations = operations
        self.layers = nn.ModuleDict({name: op for name, op in operations.items() if isinstance(op, nn.Module)})

    def forward(self, x: Tensor) -> dict[str, Any]:
        """All results."""
        y = self.stem(x)
        return {
            name: self.layers[name](y) if name in self.layers else operation(y)
            for name, operation in self.operations.items()
        }


def _activations() -> dict[str, Operation]:
    plain = (
        "ReLU ReLU6 ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh LeakyReLU LogSigmoid PReLU RReLU "
        "Sigmoid Softplus Softshrink Hardshrink Softsign Tanh Tanhshrink Identity Dropout Dropout2d "
        "AlphaDropout Softmax2d"
    )
    return {
        **{name: getattr(nn, name)() for name in plain.split()},
        "softmax": nn.Softmax(1),
        "log_softmax": nn.LogSoftmax(1),
        "softmin": nn.Softmin(1),
        "glu": nn.GLU(1),
        "threshold": nn.Threshold(0.1, 20.0),
        "elu_half": nn.ELU(0.5),
        "softplus_two": nn.Softplus(2.0),
        "gelu_tanh": nn.GELU("tanh"),
        "prelu_channels": nn.PReLU(4),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "gelu_written": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "hardswish_written": lambda x: x * functional.relu6(x + 3) / 6,
        "swiglu": lambda x: functional.silu(x[:, :2]) * x[:, 2:],
    }


def _windows(axes: int) -> dict[str, Operation]:
    """Layers that exist for one, two and three spatial axes."""
    of: Callable[[str], Any] = lambda name: getattr(nn, f"{name}{axes}d")  # noqa: E731
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    return {
        "conv": of("Conv")(4, 6, 3, padding=1, stride=2),
        "conv_same": of("Conv")(4, 6, 3, padding="same"),
        "conv_even": of("Conv")(4, 6, 2, padding="same"),
        "conv_valid": of("Conv")(4, 6, 2, padding="valid"),
        "conv_reflect": of("Conv")(4, 6, 3, padding=1, padding_mode="reflect"),
        "conv_replicate": of("Conv")(4, 6, 3, padding=1, padding_mode="replicate"),
        "transposed": of("ConvTranspose")(4, 6, 3, stride=2, output_padding=1),
        "transposed_groups": of("ConvTranspose")(4, 6, 3, groups=2, padding=1),
        "max_pool": of("MaxPool")(2),
        "max_pool_ceil": of("MaxPool")(3, 2, 1, ceil_mode=True),
        "average_pool": of("AvgPool")(2),
        "average_pool_padded": of("AvgPool")(3, 2, 1),
        "average_one": of("AdaptiveAvgPool")(1),
        "average_two": of("AdaptiveAvgPool")(2),
        "maximum_one": of("AdaptiveMaxPool")(1),
        "maximum_two": of("AdaptiveMaxPool")(2),
        "batch_norm": of("BatchNorm")(4),
        "instance_norm": of("InstanceNorm")(4),
        "instance_norm_affine": of("InstanceNorm")(4, affine=True),
        "instance_norm_running": of("InstanceNorm")(4, affine=True, track_running_stats=True),
        "group_norm": nn.GroupNorm(2, 4),
        "zero_pad": of("ZeroPad")(1),
        "constant_pad": of("ConstantPad")(1, 0.5),
        "reflection_pad": of("ReflectionPad")(1),
        "replication_pad": of("ReplicationPad")(1),
        "nearest": nn.Upsample(scale_factor=2),
        "linear": nn.Upsample(scale_factor=2, mode=linear),
        "nearest_exact": nn.Upsample(scale_factor=2, mode="nearest-exact"),
        "linear_aligned": nn.Upsample(size=5, mode=linear, align_corners=True),
        "dropout": of("Dropout")(),
    }


def _images() -> dict[str, Operation]:
    grid = torch.rand(2, 3, 3, 2) * 2 - 1
    return {
        "bicubic": nn.Upsample(scale_factor=2, mode="bicubic"),
        "pixel_shuffle": nn.PixelShuffle(2),
        "pixel_unshuffle": nn.PixelUnshuffle(2),
        "channel_shuffle": nn.ChannelShuffle(2),
        "average_three": nn.AdaptiveAvgPool2d(3),
        "local_response_norm": nn.LocalResponseNorm(2),
        "group_norm_plain": nn.GroupNorm(2, 4, affine=False),
        "batch_norm_plain": nn.BatchNorm2d(4, affine=False),
        "fold": lambda x: functional.fold(x.flatten(2)[:, :, :16], 8, 1, stride=2),
        "unfold": nn.Unfold(2, stride=2),
        "windows": lambda x: x.unfold(2, 2, 2),
        "places": nn.MaxPool2d(2, return_indices=True),
        "roll": lambda x: x.roll((-1, -1), (2, 3)),
        "grid_sample": lambda x: functional.grid_sample(x, grid, align_corners=False),
        "down": lambda x: functional.interpolate(x, size=5),
        "rms": lambda x: functional.normalize(x, dim=1),
        "weight_norm": weight_norm(nn.Conv2d(4, 6, 3)),
        "spectral_norm": spectral_norm(nn.Conv2d(4, 6, 3)),
        "channels_last_norm": lambda x: functional.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2),
    }


def _norms() -> dict[str, Operation]:
    return {
        "layer": nn.LayerNorm(8),
        "layer_two": nn.LayerNorm((6, 8)),
        "layer_no_bias": nn.LayerNorm(8, bias=False),
        "layer_plain": nn.LayerNorm(8, elementwise_affine=False),
        "rms": nn.RMSNorm(8),
        "rms_plain": nn.RMSNorm(8, elementwise_affine=False),
        "l2": lambda x: functional.normalize(x, dim=-1),
        "l1": lambda x: functional.normalize(x, p=1, dim=1),
        "cosine": lambda x: functional.cosine_similarity(x, x.flip(1), -1),
        "rms_written": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        "layer_written": lambda x: (
            (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
        ),
        "std": lambda x: x.std(-1),
        "var": lambda x: x.var(-1, keepdim=True),
        "var_mean": lambda x: torch.var_mean(x, -1),
        "norm": lambda x: x.norm(dim=-1),
        "norm_one": lambda x: x.norm(1, dim=-1),
        "mean": lambda x: x.mean(1),
        "mean_all": lambda x: x.mean(),
        "sum": lambda x: x.sum(-1),
        "product": lambda x: x.prod(1),
        "log_sum_exp": lambda x: x.logsumexp(-1),
        "maximum": lambda x: x.max(-1),
        "minimum": lambda x: x.min(1).values,
        "maximum_all": lambda x: x.max(),
        "largest": lambda x: x.topk(3).values,
        "sorted": lambda x: x.sort(-1).values,
        "place": lambda x: x.argmax(-1),
        "place_all": lambda x: x.argmax(),
        "running": lambda x: x.cumsum(1),
        "both_ends": lambda x: torch.aminmax(x, dim=-1).max,
        "counted": lambda x: (x > 0).sum(1),
    }


def _moves() -> dict[str, Operation]:
    return {
        "pad": lambda x: functional.pad(x, (1, 2)),
        "crop": lambda x: functional.pad(x, (-1, 2)),
        "pad_three": lambda x: functional.pad(x, (1, 2, 0, 1), value=3.0),
        "chunk": lambda x: torch.cat(x.chunk(4, 1)[::-1], 1),
        "split": lambda x: torch.cat(x.split([2, 6], -1)[::-1], -1),
        "uneven": lambda x: torch.cat(x.tensor_split(4, 1)[::-1], 1),
        "stack": lambda x: torch.stack([x, x + 1], 1),
        "hstack": lambda x: torch.hstack([x, x]),
        "vstack": lambda x: torch.vstack([x, x]),
        "flip": lambda x: x.flip(1, 2),
        "roll": lambda x: x.roll(1, 1),
        "roll_two": lambda x: x.roll((-1, 2), (1, 2)),
        "repeat": lambda x: x.repeat(1, 2, 3),
        "repeat_more": lambda x: x.repeat(2, 1, 1, 1),
        "tile": lambda x: x.tile(2),
        "interleave": lambda x: x.repeat_interleave(2, 1),
        "expand": lambda x: x[:, :1].expand(-1, 4, -1),
        "every_second": lambda x: x[:, ::2],
        "last_three": lambda x: x[:, -3:],
        "inside": lambda x: x[:, 1:-1, 2:5],
        "select": lambda x: x[:, -1],
        "new_axis": lambda x: x[:, None],
        "listed": lambda x: x[:, [0, 2, 1]],
        "gather": lambda x: x.gather(1, x.argsort(1)),
        "index_select": lambda x: x.index_select(1, torch.tensor([1, 0])),
        "narrow": lambda x: x.narrow(1, 1, 3),
        "several": lambda x: x[:, torch.tensor([0, 1]), torch.tensor([2, 3])],
        "tril": lambda x: x.tril(),
        "triu": lambda x: x.triu(1),
        "diagonal": lambda x: x.diagonal(0, 1, 2),
        "flat": lambda x: x.view(x.shape[0], -1),
        "unflatten": lambda x: x.unflatten(-1, (2, 4)),
        "swap": lambda x: x.swapaxes(1, 2),
        "move": lambda x: x.movedim(-1, 1),
        "squeeze": lambda x: x[:, :1].squeeze(1),
        "unbind": lambda x: x.unbind(1)[2],
        "half": lambda x: x.half().float(),
        "overwritten": _overwritten,
        "filled": lambda x: x.masked_fill(x < 0, 0.5),
        "chosen": lambda x: torch.where(x > 0, x, x * 0.1),
        "scattered": lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x),
    }


def _overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = x[:, :2]
    y[:, 0] = 0
    y[..., -1] *= 2
    return y


def _between_zero_and_one(function: Operation) -> Operation:
    return lambda x: function(x.sigmoid() * 0.8 + 0.1)


def _arithmetic() -> dict[str, Operation]:
    names = (
        "abs exp sin cos tan atan sinh cosh asinh erf floor ceil round sign sigmoid tanh square neg relu log1p expm1 "
        "erfc trunc frac exp2 sgn"
    )
    positive = "sqrt rsqrt log log2 reciprocal asin acos atanh"
    calls: dict[str, Operation] = {name: getattr(torch, name) for name in names.split()}
    for name in positive.split():
        calls[name] = _between_zero_and_one(getattr(torch, name))
    return calls | {
        "square_root": lambda x: (x.abs() + 0.1) ** 0.5,
        "cube": lambda x: x.pow(3),
        "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
        "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
        "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1),
        "rsub": lambda x: 1 - x,
        "sub_alpha": lambda x: torch.sub(x, x.flip(1), alpha=2),
        "floor_divide": lambda x: x // 0.1,
        "maximum": lambda x: torch.maximum(x, x.flip(1)),
        "fmax": lambda x: torch.fmax(x, x.flip(1)),
        "clamp": lambda x: x.clamp(-0.3, 0.3),
        "clamp_tensor": lambda x: torch.clamp(x, min=x.mean(-1, keepdim=True)),
        "differs": lambda x: (x != 0).float(),
        "between": lambda x: ((x >= 0) & (x < 1)).float(),
        "scaled": lambda x: x * x.shape[-1],
        "ramp": lambda x: x * torch.linspace(0, 1, 8),
        "positions": lambda x: x + torch.arange(x.shape[1])[None, :, None].float(),
        "causal": lambda x: (x @ x.mT + torch.full((6, 6), float("-inf")).triu(1)).softmax(-1),
        "causal_filled": lambda x: (x @ x.mT).masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -1e9).softmax(-1),
        "attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
    }


def _products() -> dict[str, Operation]:
    other, matrix = torch.randn(5, 8), torch.randn(8, 5)
    equations = {
        "rows": "bij,bkj->bik",
        "elementwise": "bij,bij->bij",
        "dots": "bij,bij->bi",
        "turned": "bij,bkj->kbi",
        "spread": "bij,bkl->bikjl",
        "ellipsis": "...ij,...kj->...ik",
        "summed": "bij,bkj->b",
        "two": "bij,bij->b",
    }
    calls: dict[str, Operation] = {
        f"einsum_{name}": lambda x, e=equation: torch.einsum(e, x, x) for name, equation in equations.items()
    }
    return calls | {
        "einsum_transposed": lambda x: torch.einsum("bij->bji", x),
        "einsum_sum": lambda x: torch.einsum("bij->b", x),
        "einsum_weight": lambda x: torch.einsum("bij,kj->bik", x, other),
        "einsum_implicit": lambda x: torch.einsum("bij,jk", x, matrix),
        "einsum_three": lambda x: torch.einsum("bi,bj,bk->bijk", x[:, 0], x[:, 1], x[:, 2]),
        "einsum_heads": lambda x: torch.einsum("bhid,bhjd->bhij", x.unflatten(1, (2, 3)), x.unflatten(1, (2, 3))),
        "einsum_diagonal": lambda x: torch.einsum("bii->b", x[:, :, :6]),
        "matmul": lambda x: x @ x.transpose(1, 2),
        "vector": lambda x: x @ x[0, 0],
        "addmm": lambda x: torch.addmm(x[0], x[0] @ x[0].t(), x[1], beta=0.5, alpha=2),
        "baddbmm": lambda x: torch.baddbmm(x, x @ x.mT, x, beta=0.1, alpha=0.3),
        "outer": lambda x: torch.outer(x[0, 0], x[1, 0]),
        "cosine_attention": lambda x: functional.normalize(x, dim=-1) @ functional.normalize(x, dim=-1).mT,
        "linear_weight_norm": weight_norm(nn.Linear(8, 5)),
    }


def _tokens() -> nn.Module:
    return nn.Linear(8, 8)


#: For each group: the quantized layer in front, the input, the operations, the ATen calls that stay in float.
GROUPS: dict[str, tuple[nn.Module, tuple[int, ...], Callable[[], dict[str, Operation]], str]] = {
    "activations": (nn.Conv2d(4, 4, 1), (2, 4, 8, 8), _activations, ""),
    "windows_1d": (nn.Conv1d(4, 4, 1), (2, 4, 8), lambda: _windows(1), ""),
    "windows_2d": (nn.Conv2d(4, 4, 1), (2, 4, 8, 8), lambda: _windows(2), ""),
    "windows_3d": (nn.Conv3d(4, 4, 1), (2, 4, 4, 4, 4), lambda: _windows(3), ""),
    "images": (
        nn.Conv2d(4, 4, 1),
        (2, 4, 8, 8),
        _images,
        "adaptive_avg_pool2d col2im im2col unfold max_pool2d_with_indices",
    ),
    "norms": (_tokens(), (2, 6, 8), _norms, "aminmax"),
    "moves": (_tokens(), (2, 6, 8), _moves, "index.Tensor diagonal argsort zeros_like"),
    "arithmetic": (_tokens(), (2, 6, 8), _arithmetic, "expm1 erfc trunc frac exp2"),
    "products": (_tokens(), (2, 6, 8), _products, "einsum"),
}
