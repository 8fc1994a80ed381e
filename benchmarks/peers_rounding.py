"""Rounding techniques and peers on the digits MobileNet: SQNR of the logits, seconds, per seed, as a table and JSON.

    python benchmarks/peers_rounding.py --peers-python /path/to/python --seeds 0 --iterations 1000 10000

Every method gets the same network, calibration and held-out images (`digits_mobilenet`). The peers get it with its
batch norms folded, as aimet's folding wants biases that are initializers and the exported file computes them (Expand).
They run in an environment of their own, one process each. Seconds are those of the method's own calls, without start
and import; CPU seconds are those of its process. With ``--json`` each figure is written as soon as it is known, and a
run goes on where the last one stopped; delete the file to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import digits_mobilenet
import onnx
import onnxruntime

import isobit
from isobit.techniques import GPTQ, AdaRound, FoldBatchNorms, SequentialMse, Technique

OURS: Mapping[str, tuple[Technique, ...]] = {
    "isobit nearest": (),
    "isobit SequentialMse": (SequentialMse(),),
    "isobit GPTQ": (GPTQ(),),
    "isobit AdaRound": (AdaRound(),),
    "isobit AdaRound activation-aware": (AdaRound(activation_aware=True),),
    "isobit AdaRound sequential": (AdaRound(sequential=True),),
    "isobit AdaRound sequential, activation-aware": (AdaRound(sequential=True, activation_aware=True),),
}


Results = dict[str, dict[str, dict[str, float]]]


class Outcome(NamedTuple):
    """Logits on the held-out images, the wall and CPU seconds of the method, and further figures."""

    logits: Any
    seconds: float
    cpu_seconds: float
    extra: Mapping[str, float] = MappingProxyType({})


def run_isobit(path: Path, data: digits_mobilenet.Data, bits: int, techniques: tuple[Technique, ...]) -> Outcome:
    """The calibrated simulator, timed from the file on."""
    start, cpu = time.perf_counter(), time.process_time()
    sim = isobit.QuantSim(path, weights=f"int{bits} per-channel")
    _, *reports = sim.apply(FoldBatchNorms(), *techniques, data=data.calibration)
    sim.calibrate(data.calibration)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    extra = layer_errors(reports[0].changed) if reports else {}
    return Outcome(sim.run(data.test)["logits"], seconds, cpu_seconds, extra)


def layer_errors(changed: Sequence[str]) -> dict[str, float]:
    """Median over layers of the output's error, as a share of its power, by nearest rounding and by the technique."""
    pairs = [match.groups() for line in changed if (match := re.search(r"output (\S+) -> (\S+) of its power", line))]
    nearest, rounded = ([float(value) for value in column] for column in zip(*pairs, strict=True))
    return {"layer_error_nearest": median(nearest), "layer_error": median(rounded)}


def peer(python: str, name: str, path: Path, data: digits_mobilenet.Data, *options: str) -> Outcome:
    """A peer, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "data.npz", Path(folder) / "out.npz"
        np.savez(source, calibration=data.calibration, test=data.test)
        folded = Path(folder) / "folded.onnx"
        sim = isobit.QuantSim(path)
        sim.apply(FoldBatchNorms())
        onnx.save(sim.backend_model.to_onnx()[0], folded)
        script = Path(__file__).parent / "peers" / "rounding.py"
        command = [python, str(script), name, str(folded), str(source), str(out), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with np.load(out) as file:
            return Outcome(file["logits"], float(file["seconds"]), float(file["cpu_seconds"]))


def methods(seed: int, args: argparse.Namespace) -> dict[str, Callable[[], Outcome]]:
    """What is to be measured, by name."""
    path, data = digits_mobilenet.onnx_file(seed), digits_mobilenet.data(seed)
    runs: dict[str, Callable[[], Outcome]] = {}

    def add_peer(name: str, *options: str) -> None:
        runs[name] = partial(peer, args.peers_python, options[0], path, data, *options[1:])

    for bits in args.bits:
        for name, techniques in OURS.items():
            if "sequential" not in name or args.sequential:
                runs[f"W{bits}A8 {name}"] = partial(run_isobit, path, data, bits, techniques)
        if args.peers_python:
            width = ("--bits", str(bits))
            for method in ("nearest", "seqmse"):
                add_peer(f"W{bits}A8 aimet {method}", f"aimet-{method}", *width)
            for count in args.iterations if bits < 8 else ():
                add_peer(f"W{bits}A8 aimet AdaRound {count}", "aimet-adaround", *width, "--iterations", str(count))
            if bits == 8:
                add_peer("W8A8 nncf", "nncf")
    return runs


def measure(seed: int, args: argparse.Namespace, results: Results) -> None:
    """Adds to `results` what the seed lacks: SQNR, accuracy and seconds by method."""
    data = digits_mobilenet.data(seed)
    reference = onnxruntime.InferenceSession(digits_mobilenet.onnx_file(seed)).run(None, {"image": data.test})[0]
    measured = results.setdefault(str(seed), {})
    for name, method in methods(seed, args).items():
        if name in measured:
            continue
        logits, seconds, cpu_seconds, extra = method()
        accuracy = float((logits.argmax(1) == data.label).mean())
        sqnr = digits_mobilenet.sqnr(reference, logits)
        measured[name] = {"sqnr": sqnr, "seconds": seconds, "cpu_seconds": cpu_seconds, "accuracy": accuracy, **extra}
        print(f"seed {seed}  {name:<34} {sqnr:6.2f} dB  {100 * accuracy:6.2f} %  {cpu_seconds:7.1f} CPU s", flush=True)
        if args.json:
            write(args.json, results)


def write(path: Path, results: Results) -> None:
    """Replaces the file at once, so that a run broken off leaves the old or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(results, indent=2) + "\n")
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(digits_mobilenet.SEEDS))
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4])
    parser.add_argument("--iterations", type=int, nargs="*", default=[1000, 10_000], help="of aimet's AdaRound")
    parser.add_argument("--peers-python", help="a Python with aimet-onnx and nncf; without it the peers are left out")
    parser.add_argument("--sequential", action="store_true", help="also the exact sequential mode")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: Results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for seed in args.seeds:
        measure(seed, args, results)
    print("\nmean over the seeds that have the figure")
    for name in sorted({name for result in results.values() for name in result}):
        values = [result[name] for result in results.values() if name in result]
        sqnr, cpu_seconds = mean(v["sqnr"] for v in values), mean(v["cpu_seconds"] for v in values)
        print(f"{name:<42} {sqnr:6.2f} dB  {cpu_seconds:7.1f} CPU s  {len(values)} seeds")


if __name__ == "__main__":
    main()
