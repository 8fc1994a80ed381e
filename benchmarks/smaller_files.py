"""A network made smaller, quantized and exported from each framework: what its files take in onnxruntime.

    python benchmarks/smaller_files.py --backend onnx torch tensorflow --networks resnet18 --method spatial-svd

Four files of each: in float and in INT8, of the network as it is and of the smaller one. They run turn about, batch 1,
one thread, whose processor time is taken, and the least of each counts, since machines are shared. Weights are random:
this is about time alone. Seconds are the processor time of `isobit.compress`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parent))

import isobit
from isobit.compression.compress import DEFAULT_METHOD
from isobit.testing.networks import Network
from networks import NETWORKS

BACKENDS = ("onnx", "torch", "tensorflow")


def native(backend: str, network: Network) -> Any:
    """The network as a model of a framework."""
    if backend == "onnx":
        from isobit_onnx.reference_networks import build_onnx

        return build_onnx(network)
    if backend == "torch":
        from isobit_torch.reference_networks import build_torch

        return build_torch(network)
    from isobit_tensorflow.reference_networks import build_keras

    return build_keras(network)


def files(model: Any, data: Sequence[Mapping[str, Any]], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The four files in a folder, and what was found on the way: paths by what they are, and figures."""
    whole = isobit.compress(model, data, keep=1.0, progress=False)
    start = time.process_time()
    small = isobit.compress(
        model,
        data,
        method=tuple(arguments.method) or DEFAULT_METHOD,
        keep=arguments.keep,
        cost=arguments.cost,
        multiple=arguments.multiple,
        trials=1,
        progress=False,
    )
    spent = time.process_time() - start
    paths = {}
    for name, result in (("whole", whole), ("small", small)):
        paths[name] = result.export(folder / name)["model"]
        sim = isobit.quantize(result.model, data, recipe="basic", method="minmax", progress=False)
        paths[f"{name} INT8"] = sim.export(folder / f"{name}-int8")["model"]
    before, after = small.report.before, small.report.after
    return {
        "paths": paths,
        "seconds": spent,
        "macs": after.macs / before.macs,
        "parameters": after.parameters / before.parameters,
        "predicted": after.milliseconds / before.milliseconds if before.milliseconds else None,
        "notes": list(small.report.notes),
    }


def latencies(paths: Mapping[str, Path], feeds: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """The least milliseconds of processor time of one run of each file, turn about."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {name: onnxruntime.InferenceSession(str(path), options) for name, path in paths.items()}
    # a Keras model's file may have other names for its inputs than its arrays have
    fed = {n: dict(zip([i.name for i in s.get_inputs()], feeds.values(), strict=True)) for n, s in sessions.items()}
    least = dict.fromkeys(sessions, float("inf"))
    for _ in range(rounds):
        for name, session in sessions.items():
            for _ in range(3):
                start = time.thread_time()  # with one thread onnxruntime computes in the one that calls it
                session.run(None, fed[name])
                least[name] = min(least[name], 1e3 * (time.thread_time() - start))
    return least


def measure(backend: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one network of one framework."""
    network = NETWORKS[name](arguments.size)
    data = [network.batch(8, seed=seed) for seed in range(arguments.images // 8)]
    with tempfile.TemporaryDirectory() as folder:
        found = files(native(backend, network), data, Path(folder), arguments)
        paths = found.pop("paths")
        found["megabytes"] = {what: path.stat().st_size / 1e6 for what, path in paths.items()}
        found["milliseconds"] = latencies(paths, network.batch(1), arguments.rounds)
    return {
        "backend": backend,
        "network": name,
        "method": list(arguments.method),
        "multiple": arguments.multiple,
        **found,
    }


def main() -> None:
    """Measure and print, a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--networks", nargs="+", default=["resnet18"], choices=sorted(NETWORKS))
    parser.add_argument("--method", nargs="+", default=[], help="methods of isobit.compress; its default unless said")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--cost", default="macs")
    parser.add_argument("--multiple", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="image edge in pixels")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    np.seterr(all="ignore")
    for name in arguments.networks:
        for backend in arguments.backend:
            print(json.dumps(measure(backend, name, arguments)), flush=True)


if __name__ == "__main__":
    main()
