"""Keras' MobileNetV2 rebuilt in PyTorch: the ONNX export's encodings, carried over, and both simulators run.

Usage: mobilenet_v2_torch.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import isobit
from isobit.formats.isobit_json import IsobitJson
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms

EPSILON = 1e-3


class Normed(nn.Module):
    """Convolution and batch norm, padded as Keras pads: one row less at the start where the stride is 2."""

    def __init__(
        self, weights: dict[str, np.ndarray], conv: str, norm: str, *, stride: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        depthwise = f"{conv}/kernel" in weights and weights[f"{conv}/kernel"].shape[-1] == 1 and "depthwise" in conv
        kernel = torch.from_numpy(weights[f"{conv}/kernel"]).permute(*((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)))
        out, per_group, size, _ = kernel.shape
        groups = out if depthwise else 1
        edge = size // 2 if stride == 1 else 0
        self.pad = nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()
        self.conv = nn.Conv2d(per_group * groups, out, size, stride, edge, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out, EPSILON)
        self.act = nn.ReLU6() if act else nn.Identity()
        parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        state = {name: torch.from_numpy(weights[f"{norm}/{keras_name}"]) for name, keras_name in parts.items()}
        self.norm.load_state_dict(state, strict=False)
        self.conv.load_state_dict({"weight": kernel})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(self.pad(x))))


class Block(nn.Module):
    """Expand, depthwise, project, and a sum where the shape stays: Sandler et al., CVPR 2018."""

    def __init__(self, weights: dict[str, np.ndarray], name: str, stride: int) -> None:
        super().__init__()
        expands = f"{name}_expand/kernel" in weights
        self.expand = Normed(weights, f"{name}_expand", f"{name}_expand_BN") if expands else nn.Identity()
        self.depthwise = Normed(weights, f"{name}_depthwise", f"{name}_depthwise_BN", stride=stride)
        self.project = Normed(weights, f"{name}_project", f"{name}_project_BN", act=False)
        entry = self.expand.conv.in_channels if expands else self.depthwise.conv.in_channels
        self.sums = stride == 1 and entry == self.project.conv.out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.sums else y


class MobileNetV2(nn.Module):
    """Keras' variant, of Keras' weights."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        repeats = ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))
        strides = [stride if i == 0 else 1 for count, stride in repeats for i in range(count)]
        names = ["expanded_conv", *(f"block_{i}" for i in range(1, len(strides)))]
        self.stem = Normed(weights, "Conv1", "bn_Conv1", stride=2)
        self.blocks = nn.Sequential(*(Block(weights, n, s) for n, s in zip(names, strides, strict=True)))
        self.head = Normed(weights, "Conv_1", "Conv_1_bn")
        kernel, bias = (torch.from_numpy(weights[f"predictions/{part}"]) for part in ("kernel", "bias"))
        self.fc = nn.Linear(*kernel.shape)
        self.fc.load_state_dict({"weight": kernel.T, "bias": bias})

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.head(self.blocks(self.stem(image))).mean((2, 3)))


def simulate(sim: QuantSim, encodings: isobit.Encodings, batch: np.ndarray) -> np.ndarray:
    placements = sim.plan.placements
    sim.backend_model.set_quantizers(
        {s: e for s, e in encodings.items() if s in placements and placements[s].simulated}
    )
    return next(iter(sim.run(batch).values()))


def main(folder: Path) -> None:
    model = MobileNetV2(load_file(folder / "weights.safetensors")).eval()
    batch = load_file(folder / "keras.safetensors")["image"]
    channels_first = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    simulator = isobit.QuantSim(model, torch.from_numpy(channels_first[:2]))
    exported = isobit.QuantSim(folder / "model.onnx")
    for sim in (simulator, exported):
        sim.apply(FoldBatchNorms())
    encodings = IsobitJson().read(folder / "onnx.json")
    transferred = isobit.transfer(encodings, folder / "model.onnx", simulator)
    outputs = {
        "torch": simulate(simulator, transferred.encodings, channels_first),
        "onnx": simulate(exported, encodings, batch),
    }
    save_file(outputs, folder / "torch.safetensors")
    report = {
        "encodings": len(transferred.encodings),
        "unmapped": [f"{site}: {why}" for site, why in transferred.unmapped.items()],
        "missing": [f"{site}: {why}" for site, why in transferred.missing.items()],
        "missing in onnx": [str(site) for site in exported.plan.placements if site not in encodings],
    }
    (folder / "torch.json").write_text(json.dumps(report), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
