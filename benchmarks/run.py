"""Ratios of calibration and simulated forward to one FP32 pass, and the extra peak memory, as a table and JSON.

    python benchmarks/run.py --backend onnx torch --json result.json

Each backend is measured in a process of its own.
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

from first_use import first_use_seconds
from memory import extra_peak_memory, print_peak
from opening import OPENERS, open_network, stream_batches
from processor import processor

from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms
from networks import NETWORKS


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """All figures of one network."""
    batches = list(stream_batches(name, arguments.size, arguments.batch, arguments.batches))
    model, float_run = open_network(arguments.backend, name, arguments.size)
    sim = QuantSim.of_backend_model(model, registry().target(arguments.target), QuantConfig())
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
        first_one = repeat % len(works)  # a run slows the next one down, so each kind of run follows each other kind
        for what in [*works, *works][first_one : first_one + len(works)]:
            if what in ("folded", "simulated"):
                works[what]()  # the session of the new encodings is made outside the measurement
            seconds[what].append(timed(works[what]))
    with tempfile.TemporaryDirectory() as folder:
        export = timed(lambda: sim.export(folder))
    base = statistics.median(seconds["fp32"])
    ratios = {what: [value / base for value in values] for what, values in seconds.items()}
    return {
        "backend": arguments.backend,
        "network": name,
        "fp32_seconds": base,
        "first_calibration_ratio": first / base,
        "calibration_ratio": {scheme: statistics.median(ratios[scheme]) for scheme in schemes},
        "simulated_forward_ratio": statistics.median(ratios["simulated"]),
        "folded_fp32_ratio": statistics.median(ratios["folded"]),
        "spread": {what: [min(values), max(values)] for what, values in ratios.items()},
        "recalibration_seconds": {scheme: timed(lambda s=scheme: sim.recalibrate(s)) for scheme in schemes},
        "export_seconds": export,
        "extra_peak_memory_mb": {str(n): extra_peak_memory(arguments, name, n) for n in arguments.memory_images},
    }


def print_table(results: list[dict[str, Any]]) -> None:
    """The figures as a table on standard error; standard output is JSON alone."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ratios to one FP32 pass (median)")
    columns = ("backend", "network", "FP32 s", "calibration", "simulated", "folded FP32", "export s", "extra peak MB")
    for column in columns:
        table.add_column(column)
    for result in results:
        calibration = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["calibration_ratio"].items())
        table.add_row(
            result["backend"], result["network"], f"{result['fp32_seconds']:.2f}", calibration,
            f"{result['simulated_forward_ratio']:.2f}", f"{result['folded_fp32_ratio']:.2f}",
            f"{result['export_seconds']:.1f}", ", ".join(f"{mb:.0f}" for mb in result["extra_peak_memory_mb"].values()),
        )  # fmt: skip
    Console(stderr=True).print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", default=["onnx"], choices=list(OPENERS))
    parser.add_argument("--networks", nargs="+", default=sorted(NETWORKS), choices=sorted(NETWORKS))
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--size", type=int, default=224, help="image edge in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images a batch")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-images", type=int, nargs="*", default=[64, 1024], help="peak memory at these counts")
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    parser.add_argument("--peak-of", choices=["fp32", "calibration"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("BENCHMARK_THREADS", str(arguments.threads))
    np.seterr(all="ignore")
    backends = arguments.backend
    if len(backends) > 1:
        results = [result for backend in backends for result in in_own_process(backend)]
    else:
        (arguments.backend,) = backends
        if arguments.peak_of:
            print_peak(arguments)
            return
        results = [measure(arguments, name) for name in arguments.networks]
    report = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "settings": {
            key: getattr(arguments, key) for key in ("target", "size", "batch", "batches", "repeats", "threads")
        },
        "kernels_first_use_seconds": first_use_seconds() if len(backends) == 1 else None,
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    if len(backends) == 1:
        print_table(results)


def in_own_process(backend: str) -> list[dict[str, Any]]:
    """The results of one backend; frameworks do not share a process."""
    arguments, skip = [], False
    for word in sys.argv[1:]:
        skip = word == "--backend" or (skip and not word.startswith("--"))
        if not skip:
            arguments.append(word)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, __file__, *arguments, "--backend", backend, "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results: list[dict[str, Any]] = json.loads(path.read_text())["results"]
    return results


def machine() -> str:
    """What the figures were measured on."""
    return f"{processor()}; {os.cpu_count()} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
