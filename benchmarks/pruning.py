"""A small network on digits at a share of its multiply-accumulates, pruned here and by torch-pruning, then trained on.

    python benchmarks/pruning.py --keep 0.5 0.2 0.1

Four convolutions with batch norm and two linear layers, trained on 1,200 digits of scikit-learn; accuracy is that on
the other 597. torch-pruning (a wheel that must be installed) is asked for the least ratio that reaches the share, of
all layers together, by magnitude and by a Taylor expansion of the loss on the same 600 images. Both are trained two
epochs.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import isobit


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [1797, 1, 8, 8] in [0, 1] and labels, shuffled."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return torch.tensor(images[order].reshape(-1, 1, 8, 8) / 16, dtype=torch.float32), torch.tensor(labels[order])


def network() -> nn.Sequential:
    """Untrained."""

    def convolution(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    first = [*convolution(1, 32), *convolution(32, 64), nn.MaxPool2d(2), *convolution(64, 64), *convolution(64, 128)]
    return nn.Sequential(
        *first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> None:
    """Plain Adam, in the mode that the model is in."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()


def by_isobit(model: nn.Module, images: torch.Tensor, keep: float) -> tuple[str, nn.Module, float]:
    """Channels by exact least squares, all groups together."""
    batches = [images[start : start + 100].numpy() for start in range(0, 600, 100)]
    found = isobit.compress(model, batches, method="channel-pruning", keep=keep, trials=1, progress=False)
    return "isobit", found.model, found.report.kept


def by_torch_pruning(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, keep: float
) -> Iterator[tuple[str, nn.Module, float]]:
    """The first of 35 ratios that reaches the share; nothing where none does, or the wheel is not there."""
    try:
        import torch_pruning as peer
    except ImportError:
        return
    whole = peer.utils.count_ops_and_params(model, images[:2])[0]
    for importance in (peer.importance.MagnitudeImportance(p=2), peer.importance.TaylorImportance()):
        for ratio in np.linspace(0.05, 0.9, 35):
            pruned = copy.deepcopy(model)
            last = [module for module in pruned.modules() if isinstance(module, nn.Linear)][-1:]
            pruner = peer.pruner.MetaPruner(
                pruned,
                images[:2],
                importance=importance,
                pruning_ratio=float(ratio),
                global_pruning=True,
                ignored_layers=last,
            )
            nn.functional.cross_entropy(pruned(images[:600]), labels[:600]).backward()
            pruner.step()
            kept = peer.utils.count_ops_and_params(pruned, images[:2])[0] / whole
            if kept <= 1.01 * keep:
                yield f"torch-pruning, {type(importance).__name__}", pruned, kept
                break


def measure(keeps: Sequence[float]) -> None:
    """Print a table."""
    images, labels = digits()
    model = network()
    torch.manual_seed(0)
    train(model, images[:1200], labels[:1200], 8, 2e-3)
    model.eval()

    def accuracy(pruned: nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((pruned(images[1200:]).argmax(1) == labels[1200:]).float().mean())

    print(f"| float | 100 % | {accuracy(model):.2f} % | |")
    for keep in keeps:
        found = [by_isobit(model, images, keep), *by_torch_pruning(model, images, labels, keep)]
        for name, pruned, kept in found:
            before = accuracy(pruned)
            train(pruned, images[:1200], labels[:1200], 2, 1e-3)
            print(f"| {name} | {100 * kept:.1f} % | {before:.2f} % | {accuracy(pruned):.2f} % |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.2, 0.1], metavar="SHARE")
    measure(parser.parse_args().keep)
