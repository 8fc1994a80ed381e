"""The MobileNet of `examples/digits` (25 convolutions, batch norms, 32x32), trained with five seeds, and its data.

Weights and the ONNX files are made once and cached in ``~/.cache/isobit/benchmarks``. Every technique and every peer is
measured on the same file, the same 512 calibration images and the same held-out images, slightly distorted.

    python benchmarks/digits_mobilenet.py            # train what is missing
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

import train as digits

CACHE = Path.home() / ".cache" / "isobit" / "benchmarks"
SEEDS = range(5)
EPOCHS = 40
CALIBRATION_IMAGES = 512

Images = NDArray[np.float32]


class Data(NamedTuple):
    """Images [N, 1, 32, 32]: for calibration, and held-out ones with their labels."""

    calibration: Images
    test: Images
    label: NDArray[np.int64]


def data(seed: int) -> Data:
    """512 training images and 360 held-out ones, both distorted a little; the same for the same seed."""
    train_data, held_out = split(seed)
    rng = torch.Generator().manual_seed(1000 + seed)
    calibration = digits.augment(train_data.image[:CALIBRATION_IMAGES], rng)
    return Data(calibration.numpy(), digits.augment(held_out.image, rng).numpy(), held_out.label.numpy())


def split(seed: int) -> tuple[digits.Data, digits.Data]:
    """Training images in a random order, and held-out images; no calibration part is taken out of the training."""
    train_data, calibration, test = digits.split(digits.load_images(), seed)
    joined = digits.Data(*(torch.cat(parts) for parts in zip(train_data, calibration, strict=True)))
    order = torch.randperm(len(joined.label), generator=torch.Generator().manual_seed(seed))
    return digits.Data(joined.image[order], joined.label[order]), test


def module(seed: int) -> torch.nn.Module:
    """The trained network in evaluation mode."""
    path = CACHE / f"digits-{seed}-{EPOCHS}.npz"
    torch.manual_seed(seed)
    net = digits.DigitNet()
    if path.exists():
        with np.load(path) as file:
            net.load_state_dict({name: torch.from_numpy(file[name]) for name in file.files})
        return net.eval()
    train_data, held_out = split(seed)
    digits.train(net, train_data, EPOCHS, seed)
    print(f"seed {seed}: held-out accuracy {100 * digits.accuracy(net, held_out):.2f} %", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    digits.save_npz(path, **{name: value.numpy() for name, value in net.state_dict().items()})
    return net


def onnx_file(seed: int) -> Path:
    """The trained network as an ONNX file, its batch norms kept as nodes."""
    path = CACHE / f"digits-{seed}-{EPOCHS}.onnx"
    if not path.exists():
        digits.export(module(seed), path)
    return path


def sqnr(reference: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """Signal to quantization noise ratio in dB, over all elements."""
    noise = np.square(approximation.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / noise))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    for seed in parser.parse_args().seeds:
        print(onnx_file(seed))


if __name__ == "__main__":
    main()
