"""A small network on digits at a share of its multiply-accumulates, made smaller here and by peers, then trained on.

    python benchmarks/pruning.py --keep 0.5 --seeds 0 1 2
    python benchmarks/pruning.py --keep 0.5 0.2 --peers aimet torch-pruning

Four convolutions with batch norm and two linear layers, trained on 1,200 digits of scikit-learn from weights that each
seed draws; accuracy is that on the other 597. Peers are wheels that must be installed. torch-pruning is asked for the
least ratio that reaches the share, of all layers together, by magnitude and by a Taylor expansion of the loss on 600 of
the images. aimet-torch selects greedily by the accuracy on the same 600, ten ratios a layer, and prunes with them as
its data. Each is followed by isobit, of the same kind and asked for what the peer really kept by PyTorch's own counter:
with the 600 images, but without a label or an evaluation. All are trained two epochs on the 1,200, alike: batch norms
as they are, Adam from 3e-4 down to nothing along a cosine, by the labels and by the outputs of the network as it came.
Several seeds end with a table of means.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from decimal import Decimal
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import isobit

#: The loss of outputs for inputs, by those of the network as it came.
Teach = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

METHODS = (
    "channel-pruning",
    "spatial-svd",
    "weight-svd",
    "tucker-2",
    "spatial-svd+weight-svd+tucker-2",
    "weight-svd+channel-pruning",
)


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


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
    """Eight epochs of plain Adam."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(8):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()


def tune(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, teach: Teach) -> None:
    """Two epochs, in evaluation mode."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-4)
    batches = [chosen for _ in range(2) for chosen in torch.randperm(len(images)).split(64)]
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for chosen in batches:
        optimizer.zero_grad()
        outputs = model(images[chosen])
        (nn.functional.cross_entropy(outputs, labels[chosen]) + teach(outputs, images[chosen])).backward()
        optimizer.step()
        decay.step()


@dataclass(frozen=True, eq=False)
class Found:
    """A smaller network: by whom, how often it was evaluated on the way, and what isobit calls the kind of method."""

    name: str
    model: nn.Module
    evaluations: int
    method: str


def flops(model: nn.Module, images: torch.Tensor) -> int:
    """Operations of one image, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter:
        model(images[:1])
    return int(counter.get_total_flops())


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """In percent."""
    model.eval()
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


def by_isobit(model: nn.Module, images: torch.Tensor, keep: float, method: str) -> Found:
    """One choice of sizes, judged by nothing."""
    batches = [images[start : start + 100].numpy() for start in range(0, 600, 100)]
    found = isobit.compress(model, batches, method=method.split("+"), keep=keep, trials=1, progress=False)
    return Found(f"isobit, {method}", found.model, 0, method)


def by_torch_pruning(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, keep: float) -> Iterator[Found]:
    """The first of 35 ratios that reaches the share; nothing where none does."""
    import torch_pruning as peer

    whole = flops(model, images)
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
            if flops(pruned, images) <= 1.01 * keep * whole:
                yield Found(f"torch-pruning, {type(importance).__name__}", pruned, 0, "channel-pruning")
                break


def by_aimet(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, keep: float) -> Iterator[Found]:
    """Spatial SVD, weight SVD and channel pruning, each with the greedy selection of AIMET."""
    from aimet_torch import defs
    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters, RankSelectScheme
    from aimet_torch.compress import ModelCompressor

    logging.disable(logging.CRITICAL)
    dataset = torch.utils.data.TensorDataset(images[:600], labels[:600])
    greedy = GreedySelectionParameters(Decimal(str(keep)), num_comp_ratio_candidates=10)
    for scheme in CompressionScheme:
        target, calls = copy.deepcopy(model), [0]

        def evaluate(pruned: nn.Module, *_: object, calls: list[int] = calls, **__: object) -> float:
            calls[0] += 1
            return accuracy(pruned, images[:600], labels[:600]) / 100

        if scheme is CompressionScheme.channel_pruning:
            kind = defs.ChannelPruningParameters
            first = [next(module for module in target.modules() if isinstance(module, nn.Conv2d))]
            auto = kind.AutoModeParams(greedy, modules_to_ignore=first)  # its channels are the image's
            wanted = kind(torch.utils.data.DataLoader(dataset, 100), 6000, True, kind.Mode.auto, auto)
        elif scheme is CompressionScheme.weight_svd:
            kind = defs.WeightSvdParameters
            wanted = kind(kind.Mode.auto, kind.AutoModeParams(RankSelectScheme.greedy, greedy))
        else:
            kind = defs.SpatialSvdParameters
            wanted = kind(kind.Mode.auto, kind.AutoModeParams(greedy))
        shape = (1, *images.shape[1:])
        with TemporaryDirectory() as folder, contextlib.chdir(folder):  # AIMET writes what it tries into ./data
            pruned, _ = ModelCompressor.compress_model(target, evaluate, None, shape, scheme, CostMetric.mac, wanted)
        yield Found(f"aimet-torch, {scheme.name}", pruned, calls[0], scheme.name.replace("_", "-"))


PEERS = {"torch-pruning": by_torch_pruning, "aimet": by_aimet}


@dataclass(frozen=True)
class Row:
    """The share of multiply-accumulates that is left, evaluations, and points below the float network."""

    kept: float
    evaluations: int
    lost_before: float
    lost_after: float


def measure(keeps: Sequence[float], peers: Sequence[str], seed: int) -> dict[tuple[float, str], Row]:
    """Print a table; rows by the share that was asked for and by whom."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = network()
    train(model, images[:1200], labels[:1200], seed)
    model.eval()  # or counting operations moves the batch norms
    whole = flops(model, images)
    test = images[1200:], labels[1200:]
    teach = isobit.compress(model, images[:2].numpy(), keep=1.0).distillation(temperature=2.0)
    print("| By | MACs kept | Evaluations | Accuracy | After two epochs |\n| --- | --- | --- | --- | --- |")
    plain = accuracy(model, *test)
    print(f"| as it is | 100 % | | {plain:.2f} % | |")
    rows: dict[tuple[float, str], Row] = {}

    def show(found: Found, beside: str = "") -> float:
        kept, before = flops(found.model, images) / whole, accuracy(found.model, *test)
        tune(found.model, images[:1200], labels[:1200], teach)
        after = accuracy(found.model, *test)
        print(f"| {found.name} | {kept:.1%} | {found.evaluations} | {before:.2f} % | {after:.2f} % |", flush=True)
        rows[keep, found.name + beside] = Row(kept, found.evaluations, plain - before, plain - after)
        return kept

    for keep in keeps:
        for peer in peers:
            for found in PEERS[peer](model, images, labels, keep):
                show(by_isobit(model, images, show(found), found.method), f", beside {found.name}")
        for method in () if peers else METHODS:
            show(by_isobit(model, images, keep, method))
    return rows


def show_means(seeds: Sequence[dict[tuple[float, str], Row]]) -> None:
    """Print means over the seeds that have a row, and the worst loss after training."""
    print("\n| Asked for | By | Seeds | MACs kept | Evaluations | Points lost | After two epochs | At worst |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for keep, name in dict.fromkeys(key for rows in seeds for key in rows):
        of_name = [rows[keep, name] for rows in seeds if (keep, name) in rows]
        kept, evaluations, before, after = np.mean([astuple(row) for row in of_name], axis=0)
        worst = max(row.lost_after for row in of_name)
        figures = f"{kept:.1%} | {evaluations:.0f} | {before:.2f} | {after:.2f} | {worst:.2f}"
        print(f"| {keep:.0%} | {name} | {len(of_name)} | {figures} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.2, 0.1], metavar="SHARE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    arguments = parser.parse_args()
    every = [measure(arguments.keep, arguments.peers, number) for number in arguments.seeds]
    if len(every) > 1:
        show_means(every)
