"""Train a small MobileNet-style CNN on scikit-learn's digits and export it to ONNX.

Writes three files to ``--out``: ``model.onnx`` (BatchNormalization kept as nodes, weights inside),
``calibration.npz`` (``image``) and ``test.npz`` (``image``, ``label``).
"""

from __future__ import annotations

import argparse
import math
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

TEST_IMAGES = 360
CALIBRATION_IMAGES = 256
BATCH = 64
THREADS = 2  # fixed, because the order of float sums depends on the number of threads
OPSET = 18


class Block(NamedTuple):
    """One row of the network table: output channels, expansion factor, stride."""

    channels: int
    expand: int
    stride: int


STEM_CHANNELS = 16
BLOCKS = (
    Block(16, 1, 1),
    Block(24, 4, 2),
    Block(24, 4, 1),
    Block(48, 4, 2),
    Block(48, 4, 1),
    Block(48, 4, 1),
    Block(80, 4, 1),
    Block(80, 4, 1),
)
HEAD_CHANNELS = 256


class Data(NamedTuple):
    """Images [N, 1, 32, 32] float32 in [0, 1] and labels [N] int64 in 0..9."""

    image: Tensor
    label: Tensor


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; no activation after the projection.

    [N, inputs, H, W] -> [N, block.channels, H / stride, W / stride]
    """

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        hidden = inputs * block.expand
        self.residual = block.stride == 1 and inputs == block.channels and block.expand > 1
        self.has_expand = block.expand > 1
        if self.has_expand:
            self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.expand_bn = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, block.stride, 1, groups=hidden, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(hidden)
        self.pointwise = nn.Conv2d(hidden, block.channels, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(block.channels)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.expand_bn(self.expand(x))) if self.has_expand else x
        y = self.act(self.depthwise_bn(self.depthwise(y)))
        y = self.pointwise_bn(self.pointwise(y))
        return x + y if self.residual else y


class DigitNet(nn.Module):
    """Image [N, 1, 32, 32] in [0, 1] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, STEM_CHANNELS, 3, 2, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(STEM_CHANNELS)
        widths = (STEM_CHANNELS, *(block.channels for block in BLOCKS))
        self.blocks = nn.Sequential(*(InvertedResidual(w, b) for w, b in zip(widths[:-1], BLOCKS, strict=True)))
        self.head = nn.Conv2d(widths[-1], HEAD_CHANNELS, 1, bias=False)
        self.head_bn = nn.BatchNorm2d(HEAD_CHANNELS)
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(HEAD_CHANNELS, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.stem_bn(self.stem(image)))
        x = self.act(self.head_bn(self.head(self.blocks(x))))
        return self.classifier(self.pool(x).flatten(1))


def load_images() -> Data:
    """All 1,797 digits, upsampled from 8x8 to 32x32."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] / 16  # the set stores 0..16
    image = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    # Multiples of 1/256 leave most mantissa bytes zero, so the .npz files compress well.
    return Data((image * 256).round() / 256, torch.from_numpy(digits.target).long())


def split(data: Data, seed: int) -> tuple[Data, Data, Data]:
    """Disjoint stratified parts: train, calibration, test."""

    def part(index: np.ndarray) -> Data:
        return Data(data.image[index], data.label[index])

    label = data.label.numpy()
    remaining, test = train_test_split(np.arange(len(label)), test_size=TEST_IMAGES, stratify=label, random_state=seed)
    train, calibration = train_test_split(
        remaining, test_size=CALIBRATION_IMAGES, stratify=label[remaining], random_state=seed
    )
    return part(train), part(calibration), part(test)


def augment(image: Tensor, rng: torch.Generator) -> Tensor:
    """Random rotation (+-12 degrees), scale (+-10 %), shift (+-2.5 pixels) and noise; same shape."""
    n = len(image)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(n, generator=rng) * 2 - 1) * limit

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    dx, dy = uniform(2.5 / 16), uniform(2.5 / 16)  # affine_grid spans [-1, 1], so 16 pixels are 1
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack((torch.stack((cos, -sin, dx), 1), torch.stack((sin, cos, dy), 1)), 1)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    return (moved + 0.04 * torch.randn(image.shape, generator=rng)).clamp(0, 1)


def train(model: nn.Module, data: Data, epochs: int, seed: int) -> None:
    """Train in place with AdamW and a one-cycle learning rate; the last epoch's weights are kept."""
    rng = torch.Generator().manual_seed(seed)
    steps = len(data.label) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=epochs * steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(data.label), generator=rng)
        total = 0.0
        for index in order[: steps * BATCH].split(BATCH):
            logits = model(augment(data.image[index], rng))
            loss = F.cross_entropy(logits, data.label[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0 or epoch + 1 == epochs:
            print(f"epoch {epoch + 1:3d}  loss {total / steps:.4f}", flush=True)
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Top-1 accuracy in 0..1."""
    return (model(data.image).argmax(1) == data.label).float().mean().item()


def strip_metadata(model: onnx.ModelProto) -> None:
    """Drop doc strings and metadata everywhere: the exporter puts stack traces with local paths there."""

    def clear(items: Iterable[object]) -> None:
        for item in items:
            for field in ("doc_string", "metadata_props"):
                item.ClearField(field)  # type: ignore[attr-defined]

    graph = model.graph
    clear((model, graph, *model.functions))
    clear((*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer))
    for function in model.functions:
        clear((*function.node, *function.value_info))


def export(model: nn.Module, path: Path) -> None:
    """Write `model` (in eval mode) as one ONNX file with a dynamic batch axis."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 32, 32),),
        dynamo=True,
        optimize=False,  # optimizing would fold BatchNormalization into the convolutions
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    strip_metadata(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def check_export(model: nn.Module, path: Path, image: Tensor) -> float:
    """Largest absolute difference of the logits, ONNX Runtime against torch."""
    proto = onnx.load(path)
    ops = Counter(node.op_type for node in proto.graph.node)
    print("ops:", dict(sorted(ops.items())))
    # A newer exporter may fold or decompose these; the example is about a graph that still has them.
    missing = {"BatchNormalization", "Clip", "Conv", "Add"} - set(ops)
    if missing:
        raise RuntimeError(f"the exported graph has no {sorted(missing)}")
    unnamed = {tensor.name for tensor in proto.graph.initializer} - set(model.state_dict())
    if unnamed:
        raise RuntimeError(f"initializers that are no state_dict keys: {sorted(unnamed)}")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image.numpy()})
    with torch.no_grad():
        return float(np.abs(logits - model(image).numpy()).max())


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed .npz whose bytes depend on the arrays only."""
    # np.savez_compressed uses a lower compression level than the best one.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # a fixed date, not today's
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    train_data, calibration, test = split(load_images(), args.seed)
    model = DigitNet()
    convs = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    print(f"{convs} convolutions, {sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, train_data, args.epochs, args.seed)
    for name, data in (("train", train_data), ("calibration", calibration), ("test", test)):
        print(f"{name}: {len(data.label)} images, accuracy {100 * accuracy(model, data):.2f} %")

    args.out.mkdir(parents=True, exist_ok=True)
    export(model, args.out / "model.onnx")
    difference = check_export(model, args.out / "model.onnx", test.image)
    print(f"ONNX Runtime against torch, test set: max abs difference {difference:.2e}")
    save_npz(args.out / "calibration.npz", image=calibration.image.numpy())
    save_npz(args.out / "test.npz", image=test.image.numpy(), label=test.label.numpy())
    for name in ("model.onnx", "calibration.npz", "test.npz"):
        print(f"{name}: {(args.out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
