"""isobit beside aimet-onnx, aimet-torch, nncf and onnxruntime's quantizer: same models, same data, same run.

    python benchmarks/peers.py --json peers.json

The peers get a virtual environment of their own, made on first use in `--venv`; `--python` names one that is there.
Every tool gets the same float ONNX model, batch norms folded. Two things are compared: the time of a calibration as a
ratio to one FP32 pass, and how well the ranges fit the activations: each range becomes a uint8 encoding by isobit's
rule, and the signal to quantization noise ratio of all values of the tensor is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from opening import open_network, stream_batches
from run import machine, timed

from isobit.calibration.needed_statistics import observed_sites
from isobit.encodings import QuantSpec, encode_range
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms
from networks import NETWORKS

PACKAGES = ("aimet-onnx", "aimet-torch", "nncf", "onnxruntime", "onnx2torch", "torch", "torchvision")
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"  # the same versions for all
SCHEMES = ("minmax", "moving-average", "percentile=99.999", "entropy", "mse", "sqnr")
SPEC = QuantSpec.parse("uint8 asymmetric")

Ranges = dict[str, list[float]]


def peers_python(arguments: argparse.Namespace) -> str:
    """The interpreter of the peers' environment, which is made if it is not there."""
    if arguments.python:
        return str(arguments.python)
    folder: Path = arguments.venv
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), *PACKAGES]
        subprocess.run(command, check=True)
    return str(python)


def own_figures(sim: QuantSim, batches: list[dict[str, Any]], names: dict[str, str]) -> dict[str, Any]:
    """Time and ranges of each of isobit's schemes; `names` are the ONNX names of tensors."""
    figures = {}
    sim.calibrate(batches)
    for scheme in SCHEMES:
        seconds = statistics.median(timed(lambda scheme=scheme: sim.calibrate(batches, scheme)) for _ in range(3))
        sites = [site for site in observed_sites(sim.plan) if site in sim.encodings]
        ranges = {
            names[site.name]: [float(sim.encodings[site].minimum), float(sim.encodings[site].maximum)] for site in sites
        }
        figures[f"isobit {scheme}"] = {"seconds": seconds, "ranges": ranges}
    return figures


def noise_ratios(model: Any, batches: list[dict[str, Any]], ranges: dict[str, Ranges]) -> dict[str, dict[str, float]]:
    """SQNR in dB of each tool's range of each tensor that all tools have."""
    import onnx
    import onnxruntime

    shared = set.intersection(*({*ranges_of_tool} for ranges_of_tool in ranges.values()))
    inputs = {value.name for value in model.graph.input}
    outputs = [value.name for value in model.graph.output]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(shared - inputs - {*outputs}))
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    measured = sorted(shared - inputs)
    grids = {
        tool: {name: encode_range(*ranges_of_tool[name], SPEC) for name in measured}
        for tool, ranges_of_tool in ranges.items()
    }
    signal = dict.fromkeys(measured, 0.0)
    noise = {tool: dict.fromkeys(measured, 0.0) for tool in ranges}
    for batch in batches:
        for name in measured:  # one at a time: all of them would be gigabytes
            (values,) = session.run([name], batch)
            signal[name] += float(np.sum(np.square(values, dtype=np.float64)))
            for tool, grid in grids.items():
                error = grid[name].fake_quantize(values) - values
                noise[tool][name] += float(np.sum(np.square(error, dtype=np.float64)))
    return {
        tool: {name: 10 * float(np.log10(signal[name] / max(errors[name], 1e-30))) for name in measured}
        for tool, errors in noise.items()
    }


def measure(arguments: argparse.Namespace, name: str, python: str) -> dict[str, Any]:
    """Everything about one network."""
    batches = list(stream_batches(name, arguments.size, arguments.batch, arguments.batches))
    opened, _ = open_network("onnx", name, arguments.size)
    sim = QuantSim.of_backend_model(opened, registry().target("onnxruntime-cpu"), QuantConfig())
    sim.apply(FoldBatchNorms())
    model, name_map = opened.to_onnx()
    names = {site.name: name_map[site].name for site in observed_sites(sim.plan)}
    figures = own_figures(sim, batches, names)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / file) for file in ("model.onnx", "data.npz", "result.json")]
        Path(paths[0]).write_bytes(model.SerializeToString())
        np.savez(paths[1], image=np.stack([batch["image"] for batch in batches]))
        script = str(Path(__file__).parent / "peer_tools.py")
        command = [python, script, paths[0], paths[1], str(arguments.threads), paths[2], *arguments.tools]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""}, stdout=subprocess.DEVNULL)
        peers = json.loads(Path(paths[2]).read_text())
    figures |= peers["tools"]
    ranges = {tool: entry["ranges"] for tool, entry in figures.items() if entry.get("ranges")}
    ratios = noise_ratios(model, batches, ranges)
    return {
        "network": name,
        "fp32_seconds": peers["fp32_seconds"],
        "tensors": len(next(iter(ratios.values()))),
        "tools": {
            tool: {
                "error": entry.get("error"),
                "ratio": None if "error" in entry else entry["seconds"] / peers["fp32_seconds"],
                "sqnr_mean": float(np.mean([*ratios[tool].values()])) if tool in ratios else None,
                "sqnr_worst": min(ratios[tool].values()) if tool in ratios else None,
            }
            for tool, entry in figures.items()
        },
        "compared": compared(ratios),
    }


#: Which of isobit's schemes is compared with which peer's.
PAIRS = (
    ("isobit sqnr", "aimet-onnx tf_enhanced"),
    ("isobit mse", "aimet-onnx tf_enhanced"),
    ("isobit entropy", "onnxruntime entropy"),
    ("isobit percentile=99.999", "onnxruntime percentile"),
    ("isobit mse", "onnxruntime entropy"),
    ("isobit mse", "onnxruntime percentile"),
)


def compared(ratios: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """For each pair: the difference in dB over tensors, its mean and lowest, and how many tensors are no worse."""
    comparisons = []
    for own, peer in PAIRS:
        if own in ratios and peer in ratios:
            gains = [ratios[own][name] - ratios[peer][name] for name in ratios[own]]
            no_worse = sum(gain >= -0.05 for gain in gains)  # a difference that nobody can measure in accuracy
            comparisons.append({"own": own, "peer": peer, "mean": float(np.mean(gains)), "lowest": min(gains),
                          "no_worse": no_worse, "tensors": len(gains)})  # fmt: skip
    return comparisons


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=sorted(NETWORKS), choices=sorted(NETWORKS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=2, help="onnxruntime keeps about 60 MB an image")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "isobit" / "peers")
    parser.add_argument("--python", type=Path, help="the interpreter of an environment that holds the peers")
    parser.add_argument("--tools", nargs="*", default=[], help="beginnings of tools' names; all unless said")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("BENCHMARK_THREADS", str(arguments.threads))
    python = peers_python(arguments)
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "settings": {key: getattr(arguments, key) for key in ("size", "batch", "batches", "threads")},
        "results": [],
    }
    for name in arguments.networks:
        report["results"].append(measure(arguments, name, python))
        if arguments.json:  # after each network: the peers take long, and one of them may hang
            arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
