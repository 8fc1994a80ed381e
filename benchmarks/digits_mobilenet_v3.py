"""A small MobileNetV3 on scikit-learn's digits: HardSwish, squeeze-and-excitation, depthwise layers, batch norms.

What long training leaves in networks of this kind, channels of very different sizes, a minute of training does not:
the scales of batch norms are drawn with a spread of `SPREAD` octaves before it. Weights and ONNX files are made once
and cached in ``~/.cache/isobit/benchmarks``; data are those of `digits_mobilenet`.
Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 5.

    python benchmarks/digits_mobilenet_v3.py                  # train what is missing, and measure the recipes on it
    python benchmarks/digits_mobilenet_v3.py --spread 0       # with batch norms as usual
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

import digits_mobilenet
import train as digits

import isobit
from isobit.quantsim.checks.quality import sample_decibels

EPOCHS = 12
SPREAD = 1.3


class Block(NamedTuple):
    """One row of the network table; `gate` is squeeze-and-excitation, `curve` HardSwish in place of ReLU."""

    channels: int
    hidden: int
    stride: int
    kernel: int
    gate: bool
    curve: bool


STEM_CHANNELS, HEAD_CHANNELS, LAST_CHANNELS = 16, 96, 128
BLOCKS = (
    Block(16, 32, 1, 3, True, False),
    Block(24, 64, 2, 3, False, True),
    Block(24, 72, 1, 5, True, True),
    Block(32, 96, 2, 5, True, True),
    Block(32, 96, 1, 5, True, True),
)


def layer(inputs: int, outputs: int, kernel: int, stride: int, groups: int, spread: float) -> nn.Sequential:
    """A convolution without a bias and its batch norm, whose scales differ by `spread` octaves."""
    norm = nn.BatchNorm2d(outputs)
    with torch.no_grad():
        norm.weight.mul_(torch.exp2(spread * torch.randn(outputs)))
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), norm)


class Gate(nn.Module):
    """Squeeze-and-excitation: [N, C, H, W] -> the same, each channel times a number from 0 to 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * nn.functional.hardsigmoid(self.excite(nn.functional.relu(self.squeeze(mean))))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, gate, project 1x1; [N, inputs, H, W] -> [N, channels, H / stride, W / stride]."""

    def __init__(self, inputs: int, block: Block, spread: float) -> None:
        super().__init__()
        act = nn.Hardswish if block.curve else nn.ReLU
        hidden = block.hidden
        self.expand = nn.Sequential(layer(inputs, hidden, 1, 1, 1, spread), act())
        depthwise = layer(hidden, hidden, block.kernel, block.stride, hidden, spread)
        self.depthwise = nn.Sequential(depthwise, act())
        self.gate = Gate(hidden) if block.gate else nn.Identity()
        self.project = layer(hidden, block.channels, 1, 1, 1, 0)
        self.residual = block.stride == 1 and inputs == block.channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class DigitNetV3(nn.Module):
    """Image [N, 1, 32, 32] in [0, 1] -> logits [N, 10]."""

    def __init__(self, spread: float = SPREAD) -> None:
        super().__init__()
        self.stem = nn.Sequential(layer(1, STEM_CHANNELS, 3, 2, 1, spread), nn.Hardswish())
        widths = (STEM_CHANNELS, *(block.channels for block in BLOCKS))
        pairs = zip(widths[:-1], BLOCKS, strict=True)
        self.blocks = nn.Sequential(*(InvertedResidual(width, block, spread) for width, block in pairs))
        self.head = nn.Sequential(layer(widths[-1], HEAD_CHANNELS, 1, 1, 1, spread), nn.Hardswish())
        self.last = nn.Sequential(nn.Linear(HEAD_CHANNELS, LAST_CHANNELS), nn.Hardswish())
        self.classifier = nn.Linear(LAST_CHANNELS, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(image)))
        return self.classifier(self.last(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)))


def module(seed: int = 0, spread: float = SPREAD) -> nn.Module:
    """The trained network in evaluation mode."""
    torch.manual_seed(seed)
    net = DigitNetV3(spread)
    path = digits_mobilenet.CACHE / f"digits-v3-{seed}-{spread:g}-{EPOCHS}.npz"
    if path.exists():
        with np.load(path) as file:
            net.load_state_dict({name: torch.from_numpy(file[name]) for name in file.files})
        return net.eval()
    train_data, held_out = digits_mobilenet.split(seed)
    digits.train(net, train_data, EPOCHS, seed)
    print(f"seed {seed}: held-out accuracy {100 * digits.accuracy(net, held_out):.2f} %", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    digits.save_npz(path, **{name: value.numpy() for name, value in net.state_dict().items()})
    return net


def onnx_file(seed: int = 0, spread: float = SPREAD) -> Path:
    """The trained network as an ONNX file, its batch norms kept as nodes."""
    path = digits_mobilenet.CACHE / f"digits-v3-{seed}-{spread:g}-{EPOCHS}.onnx"
    if not path.exists():
        digits.export(module(seed, spread), path)
    return path


def measure(path: Path, data: digits_mobilenet.Data, samples: int, recipe: str, target: str) -> str:
    """Decibels of the logits of held-out images, by recipe, as a line of a table."""
    start = time.perf_counter()
    sim = isobit.quantize(path, data.calibration[:samples], recipe=recipe, target=target, progress=False)
    seconds = time.perf_counter() - start
    ratio = float(np.mean(sample_decibels(sim.run_float(data.test), sim.run(data.test))))
    muls = sum(node.op == "Mul" for node in sim.graph.nodes) - sum(block.gate for block in BLOCKS)
    return f"| {path.stem} | {samples} | {target} | {recipe} | {ratio:.1f} dB | {muls} | {seconds:.1f} s |"


def main() -> None:
    """Measure every recipe on every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--spread", type=float, default=SPREAD)
    parser.add_argument("--samples", type=int, nargs="*", default=[64, 512])
    parser.add_argument("--targets", nargs="*", default=["onnxruntime-cpu"])
    args = parser.parse_args()
    print("| network | images | target | recipe | logits | Muls | time |\n| --- | --- | --- | --- | --- | --- | --- |")
    for seed in args.seeds:
        path, data = onnx_file(seed, args.spread), digits_mobilenet.data(seed)
        for samples in args.samples:
            for target in args.targets:
                for recipe in ("basic", "fast", "ptq"):
                    print(measure(path, data, samples, recipe, target), flush=True)


if __name__ == "__main__":
    main()
