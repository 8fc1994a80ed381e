"""How time and memory grow with models: chains of twice the nodes, modules of twice the layers, and one of 2 GB.

Seconds are those of the processor, so that other work on the machine does not count.

python benchmarks/growth.py
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from memory import peak_memory_mb

import isobit

_WIDTH = 8


def main() -> None:
    """Measure what was asked for, each size in a process of its own, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000, help="nodes of the smaller chain")
    parser.add_argument("--layers", type=int, default=250, help="layers of the smaller module")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the large model")
    parser.add_argument("--only", choices=["chain", "module", "large"], default=None)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "SIZE"), help="one size in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        what, size = arguments.measure
        print(json.dumps(_MEASURED[what](float(size))))
        return
    for what, size, unit in (("chain", arguments.nodes, "nodes"), ("module", arguments.layers, "layers")):
        if arguments.only in (None, what):
            small, large = _child(what, size), _child(what, 2 * size)
            for step, seconds in small.items():
                ratio = large[step] / seconds
                print(f"{step}: {size} {unit} {seconds:.2f} s, {2 * size} {large[step]:.2f} s, ratio {ratio:.2f}")
    if arguments.only in (None, "large"):
        sizes = _child("large", arguments.gigabytes)
        more = (sizes["calibrate"] - sizes["opened"]) / sizes["model"]
        print(f"calibration: from {sizes['opened']:.0f} to {sizes['calibrate']:.0f} MB, by {more:.2f} times its size")
        grown = sizes["export"] - sizes["before"]
        print(
            f"export of {sizes['model']:.0f} MB of weights: from {sizes['before']:.0f} to {sizes['export']:.0f} MB",
            end="",
        )
        print(f", by {grown / sizes['model']:.2f} times its size; {sizes['seconds']:.0f} s")


def _child(what: str, size: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", what, str(size)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def measure_chain(nodes: float) -> dict[str, float]:
    """Seconds of each verb on an ONNX chain of Gemm and Relu."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "chain.onnx"
        _write_chain(path, int(nodes), _WIDTH)
        batch = {"x": np.linspace(-1, 1, 4 * _WIDTH, dtype=np.float32).reshape(4, _WIDTH)}
        sim = _timed(seconds, "open", lambda: isobit.QuantSim(path))
        _timed(seconds, "calibrate", lambda: sim.calibrate([batch]))
        _timed(seconds, "first run", lambda: sim.run(batch))
        _timed(seconds, "export", lambda: sim.export(Path(name) / "out"))
        _timed(seconds, "save", lambda: sim.save(Path(name) / "saved.isobit"))
        _timed(seconds, "load", lambda: isobit.load(Path(name) / "saved.isobit", path))
    return seconds


def measure_module(layers: float) -> dict[str, float]:
    """Seconds of opening and of the first calibration of a PyTorch module of so many Linear layers."""
    import torch

    seconds: dict[str, float] = {}
    stack = [layer for _ in range(int(layers)) for layer in (torch.nn.Linear(_WIDTH, _WIDTH), torch.nn.ReLU())]
    module, batch = torch.nn.Sequential(*stack), torch.linspace(-1, 1, 4 * _WIDTH).reshape(4, _WIDTH)
    sim = _timed(seconds, "open", lambda: isobit.QuantSim(module, example_inputs=(batch,)))
    _timed(seconds, "calibrate", lambda: sim.calibrate([batch]))
    _timed(seconds, "run", lambda: sim.run(batch))
    return seconds


def measure_large(gigabytes: float) -> dict[str, float]:
    """MB of weights, and how far the peak of memory goes while the model is calibrated and while it is exported."""
    layers = 16
    width = int((gigabytes * 1e9 / 4 / layers) ** 0.5)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "large.onnx"
        _write_chain(path, 2 * layers, width)
        sim = isobit.QuantSim(path)
        opened = _resident_mb()
        _forget_peak()
        sim.calibrate([{"x": np.ones((1, width), np.float32)}])
        calibrated = peak_memory_mb()
        before, start = _resident_mb(), time.perf_counter()
        _forget_peak()
        sim.export(Path(name) / "out")
        seconds, peak = time.perf_counter() - start, peak_memory_mb()
    model = 4 * layers * width * width / 2**20
    calibration = {"opened": opened, "calibrate": calibrated}
    return {"model": model, **calibration, "export": peak, "before": before, "seconds": seconds}


def _timed(seconds: dict[str, float], step: str, call: Callable[[], Any]) -> Any:
    start = time.process_time()
    result = call()
    # Graphs are objects in cycles: without this the next step pays for what this one leaves behind.
    gc.collect()
    seconds[step] = time.process_time() - start
    return result


def _write_chain(path: Path, nodes: int, width: int) -> None:
    """Gemm and Relu in turn; large weights go into a file beside the model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    made, weights, last = [], [], "x"
    for index in range(nodes // 2):
        weight = random.standard_normal((width, width), np.float32) / np.float32(width**0.5)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        made.append(helper.make_node("Gemm", [last, f"w{index}"], [f"h{index}"], f"gemm{index}"))
        made.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"], f"relu{index}"))
        last = f"r{index}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(made, "chain", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    large = width > 1000
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def _resident_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


_MEASURED = {"chain": measure_chain, "module": measure_module, "large": measure_large}


if __name__ == "__main__":
    main()
