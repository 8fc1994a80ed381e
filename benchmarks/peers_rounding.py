"""Rounding techniques and peers on the digits MobileNet: SQNR of the logits, seconds, per seed, as a table and JSON.

    python benchmarks/peers_rounding.py --peers-python /path/to/python --seeds 0 --iterations 1000 10000

Every method gets the same network, calibration and held-out images (`digits_mobilenet`). The peers get it with its
batch norms folded (aimet's folding fails on the file), and run in an environment of their own, one process each; their
seconds are those of their own calls, without start and import.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

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
    "isobit AdaRound sequential": (AdaRound(sequential=True),),
}


def ours(path: Path, data: digits_mobilenet.Data, bits: int, techniques: tuple[Technique, ...]) -> tuple[Any, float]:
    """Logits of the calibrated simulator, and the seconds from the file to it."""
    start = time.perf_counter()
    sim = isobit.QuantSim(path, weights=f"int{bits} per-channel")
    sim.apply(FoldBatchNorms(), *techniques, data=data.calibration)
    sim.calibrate(data.calibration)
    seconds = time.perf_counter() - start
    return sim.run(data.test)["logits"], seconds


def peer(python: str, name: str, path: Path, data: digits_mobilenet.Data, options: Sequence[str]) -> tuple[Any, float]:
    """Logits and seconds of a peer."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "data.npz", Path(folder) / "out.npz"
        np.savez(source, calibration=data.calibration, test=data.test)
        folded = Path(folder) / "folded.onnx"
        sim = isobit.QuantSim(path)
        sim.apply(FoldBatchNorms())
        onnx.save(sim.backend_model.to_onnx()[0], folded)
        script = Path(__file__).parent / "peers" / "rounding.py"
        command = [python, str(script), name, str(folded), str(source), str(out), *options]
        subprocess.run(command, check=True, capture_output=True, text=True)
        with np.load(out) as file:
            return file["logits"], float(file["seconds"])


def works(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path, digits_mobilenet.Data], tuple[Any, float]]]]:
    """What is measured, by name; the slow ones last."""
    for bits in args.bits:
        for name, techniques in OURS.items():
            if "sequential" not in name or args.sequential:
                yield f"W{bits}A8 {name}", partial(ours, bits=bits, techniques=techniques)
    if not args.peers_python:
        return
    aimet = partial(peer, args.peers_python)
    for bits in args.bits:
        for method in ("nearest", "seqmse"):
            yield f"W{bits}A8 aimet {method}", partial(aimet, f"aimet-{method}", options=("--bits", str(bits)))
        if bits == 8:
            yield "W8A8 nncf", partial(aimet, "nncf", options=())
    for count, bits in product(args.iterations, [bits for bits in args.bits if bits < 8]):
        options = ("--bits", str(bits), "--iterations", str(count))
        yield f"W{bits}A8 aimet AdaRound {count}", partial(aimet, "aimet-adaround", options=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(digits_mobilenet.SEEDS))
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4])
    parser.add_argument("--iterations", type=int, nargs="*", default=[1000, 10_000], help="of aimet's AdaRound")
    parser.add_argument("--peers-python", help="a Python with aimet-onnx and nncf; without it the peers are left out")
    parser.add_argument("--sequential", action="store_true", help="also the exact sequential mode")
    parser.add_argument(
        "--json", type=Path, help="written after every measurement; what it holds is not measured again"
    )
    args = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    if args.json and args.json.exists():
        results = json.loads(args.json.read_text())
    for name, work in works(args):
        for seed in args.seeds:
            if name in results.setdefault(str(seed), {}):
                continue
            path, data = digits_mobilenet.onnx_file(seed), digits_mobilenet.data(seed)
            reference = onnxruntime.InferenceSession(path).run(None, {"image": data.test})[0]
            try:
                logits, seconds = work(path, data)
            except subprocess.CalledProcessError as error:
                print(f"seed {seed}  {name}: failed\n{error.stderr[-2000:]}", flush=True)
                continue
            accuracy = float((logits.argmax(1) == data.label).mean())
            sqnr = digits_mobilenet.sqnr(reference, logits)
            results[str(seed)][name] = {"sqnr": sqnr, "seconds": seconds, "accuracy": accuracy}
            print(f"seed {seed}  {name:<34} {sqnr:6.2f} dB  {100 * accuracy:6.2f} %  {seconds:7.1f} s", flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=2) + "\n")
    print("\nmean over the seeds that each was measured on")
    for name in dict.fromkeys(name for found in results.values() for name in found):
        values = [found[name] for found in results.values() if name in found]
        sqnr, seconds = (mean(v[key] for v in values) for key in ("sqnr", "seconds"))
        print(f"{name:<42} {sqnr:6.2f} dB  {seconds:7.1f} s  {len(values)} seeds")


if __name__ == "__main__":
    main()
