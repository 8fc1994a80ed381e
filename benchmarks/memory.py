"""Peak memory of calibration over that of the float model, each in a fresh process."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from opening import open_network, stream_batches

from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms

_SETTINGS = ("backend", "target", "size", "batch", "threads")


def extra_peak_memory(arguments: argparse.Namespace, name: str, images: int) -> float:
    """Peak of a process that calibrates on `images`, less that of one that runs the float model on them, in MB."""
    peaks = {}
    batches = -(-images // arguments.batch)
    for what in ("fp32", "calibration"):
        command = [sys.executable, str(Path(__file__).parent / "run.py"), "--peak-of", what, "--networks", name]
        for key in _SETTINGS:
            command += [f"--{key}", str(getattr(arguments, key))]
        command += ["--batches", str(batches)]
        peaks[what] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peaks["calibration"] - peaks["fp32"]


def print_peak(arguments: argparse.Namespace) -> None:
    """Run one kind of work and print this process's peak memory in MB."""
    name = arguments.networks[0]
    model, float_run = open_network(arguments.backend, name, arguments.size)
    settings = name, arguments.size, arguments.batch, arguments.batches
    if arguments.peak_of == "fp32":
        for batch in stream_batches(*settings):
            float_run(batch)
    else:
        float_run(next(stream_batches(*settings)))
        sim = QuantSim.of_backend_model(model, registry().target(arguments.target), QuantConfig())
        sim.apply(FoldBatchNorms())
        sim.calibrate(lambda: stream_batches(*settings))
    print(peak_memory_mb())


def peak_memory_mb() -> float:
    """This process's own peak; getrusage would also count the process it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
