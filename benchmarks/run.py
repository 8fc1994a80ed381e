"""Ratios of calibration and simulated forward to one FP32 pass, and the extra peak memory, as a table and JSON.

    python benchmarks/run.py --backend torch --json result.json

FP32 is the user's own float model in the backend's own runtime, over the same batches, in the same process; the runs
alternate and the medians are compared, because machines are shared and noisy. PyTorch and TensorFlow run the user's
model with its batch norms, the simulator without: ``folded`` is the float model after folding, whose ratio says how
much of a figure is that. Peak memory is that of fresh processes, one that only runs the float model and one that
calibrates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from networks import NETWORKS

from isobit.backend import Backend, BackendModel
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms
from isobit.testing.networks import Network
from isobit.wishes import Wishes

Batches = list[dict[str, Any]]


def open_network(backend: str, name: str, size: int) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """A benchmark network opened by a backend, and the FP32 run of its plain native model."""
    return OPENERS[backend](NETWORKS[name](size), registry().backend(backend))


def open_onnx(network: Network, opener: Backend) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """An ONNX file in onnxruntime."""
    import onnxruntime

    from isobit_onnx.building import build_onnx

    native = build_onnx(network)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["BENCHMARK_THREADS"])
    session = onnxruntime.InferenceSession(native.SerializeToString(), options)
    return opener.open(native), lambda batch: session.run(None, batch)


def open_torch(network: Network, opener: Backend) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """A module in eager mode, as people run it."""
    import torch

    from isobit_torch.building import build_torch

    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    module = build_torch(network)

    def run(batch: dict[str, Any]) -> Any:
        with torch.no_grad():
            return module(**{name: torch.from_numpy(array) for name, array in batch.items()})

    return opener.open(module, network.batch(2)), run


def open_tensorflow(network: Network, opener: Backend) -> tuple[BackendModel, Callable[[dict[str, Any]], Any]]:
    """A Keras model in a tf.function."""
    import tensorflow as tf

    from isobit_tensorflow.building import build_keras

    threads = int(os.environ["BENCHMARK_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    native = build_keras(network)
    function = tf.function(lambda inputs: native(inputs, training=False), reduce_retracing=True)

    def run(batch: dict[str, Any]) -> Any:
        inputs = {name: tf.convert_to_tensor(array) for name, array in batch.items()}
        return {name: output.numpy() for name, output in function(inputs).items()}

    return opener.open(native), run


OPENERS = {"onnx": open_onnx, "torch": open_torch, "tensorflow": open_tensorflow}


def make_batches(name: str, size: int, batch: int, count: int) -> Batches:
    """Standard normal images."""
    network = NETWORKS[name](size)
    return [network.batch(batch, seed=seed) for seed in range(count)]


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """All figures of one network."""
    batches = make_batches(name, arguments.size, arguments.batch, arguments.batches)
    model, float_run = open_network(arguments.backend, name, arguments.size)
    sim = QuantSim.of_backend_model(model, registry().target(arguments.target), Wishes())
    sim.apply(FoldBatchNorms())

    def fp32() -> None:
        for batch in batches:
            float_run(batch)

    def simulate() -> None:
        for batch in batches:
            model.run(batch)

    def folded() -> None:
        model.enable(list(model.encodings()), on=False)
        for batch in batches:
            model.run(batch)
        model.enable(list(model.encodings()), on=True)

    fp32()
    first = timed(lambda: sim.calibrate(batches))
    simulate()
    schemes = sorted(registry().calibrators())
    works: dict[str, Callable[[], Any]] = {"fp32": fp32, "folded": folded, "simulated": simulate}
    works |= {scheme: lambda scheme=scheme: sim.calibrate(batches, scheme) for scheme in schemes}
    seconds: dict[str, list[float]] = {what: [] for what in works}
    for repeat in range(arguments.repeats):
        first_one = repeat % len(works)  # what a run leaves behind slows the next: everything follows everything
        for what in [*works, *works][first_one : first_one + len(works)]:
            if what in ("folded", "simulated"):
                works[what]()  # the session of the new encodings is made outside the measurement
            seconds[what].append(timed(works[what]))
    with tempfile.TemporaryDirectory() as folder:
        export = timed(lambda: sim.export(folder))
    base = statistics.median(seconds["fp32"])
    ratios = {what: [value / base for value in values] for what, values in seconds.items()}
    return {
        "network": name,
        "fp32_seconds": base,
        "first_calibration_ratio": first / base,
        "calibration_ratio": {scheme: statistics.median(ratios[scheme]) for scheme in schemes},
        "simulated_forward_ratio": statistics.median(ratios["simulated"]),
        "folded_fp32_ratio": statistics.median(ratios["folded"]),
        "spread": {what: [min(values), max(values)] for what, values in ratios.items()},
        "recalibration_seconds": {scheme: timed(lambda s=scheme: sim.recalibrate(s)) for scheme in schemes},
        "export_seconds": export,
        "extra_peak_memory_mb": extra_peak_memory(arguments, name),
    }


def extra_peak_memory(arguments: argparse.Namespace, name: str) -> float:
    """Peak of a process that calibrates, less that of one that runs the float model, in MB."""
    peaks = {}
    for what in ("fp32", "calibration"):
        command = [sys.executable, __file__, "--peak-of", what, "--networks", name]
        for key in ("backend", "target", "size", "batch", "batches"):
            command += [f"--{key}", str(getattr(arguments, key))]
        peaks[what] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peaks["calibration"] - peaks["fp32"]


def print_peak(arguments: argparse.Namespace) -> None:
    """Run one kind of work and print this process's peak memory in MB."""
    name = arguments.networks[0]
    batches = make_batches(name, arguments.size, arguments.batch, arguments.batches)
    model, float_run = open_network(arguments.backend, name, arguments.size)
    for batch in batches:
        float_run(batch)
    if arguments.peak_of == "calibration":
        sim = QuantSim.of_backend_model(model, registry().target(arguments.target), Wishes())
        sim.apply(FoldBatchNorms())
        sim.calibrate(batches)
    print(peak_memory_mb())


def peak_memory_mb() -> float:
    """This process's own peak; getrusage would also count the process it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_table(results: list[dict[str, Any]]) -> None:
    """The figures as a table on standard error; standard output is JSON alone."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ratios to one FP32 pass (median)")
    columns = ("network", "FP32 s", "calibration", "simulated", "folded FP32", "export s", "extra peak MB")
    for column in columns:
        table.add_column(column)
    for result in results:
        calibration = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["calibration_ratio"].items())
        table.add_row(
            result["network"], f"{result['fp32_seconds']:.2f}", calibration,
            f"{result['simulated_forward_ratio']:.2f}", f"{result['folded_fp32_ratio']:.2f}",
            f"{result['export_seconds']:.1f}", f"{result['extra_peak_memory_mb']:.0f}",
        )  # fmt: skip
    Console(stderr=True).print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="onnx", choices=list(OPENERS))
    parser.add_argument("--networks", nargs="+", default=sorted(NETWORKS), choices=sorted(NETWORKS))
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--size", type=int, default=224, help="image edge in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images a batch")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    parser.add_argument("--peak-of", choices=["fp32", "calibration"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("BENCHMARK_THREADS", str(arguments.threads))
    np.seterr(all="ignore")
    if arguments.peak_of:
        print_peak(arguments)
        return
    results = [measure(arguments, name) for name in arguments.networks]
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "settings": {
            key: getattr(arguments, key) for key in ("backend", "target", "size", "batch", "batches", "repeats")
        },
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print_table(results)


if __name__ == "__main__":
    main()
