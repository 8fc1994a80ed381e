"""docs/benchmarks.md from the JSON of `run.py`, `peers.py` and `peers_table.py`.

python benchmarks/page.py run-onnx.json run-torch.json --peers peers.json --table table.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
NETWORKS = {"resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(columns) + " |"
    yield "| " + " | ".join("---" for _ in columns) + " |"
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def where(report: dict[str, Any]) -> str:
    """The caption of one JSON file."""
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items())
    return f"Measured on {report['date']}: {report['machine']}. Settings: {settings}."


def own_lines(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Ratios of each backend to its FP32 pass."""
    yield "## Ratios to one FP32 pass"
    yield ""
    yield (
        "FP32 is the float model in the backend's own runtime over the same batches, in the same process; runs "
        "alternate and medians are compared. *Folded* is the float model after batch norm folding. Memory is the "
        "peak of a process that calibrates, less that of one that runs the float model, by the number of images."
    )
    for report in reports:
        yield ""
        yield where(report)
        yield ""
        schemes = list(report["results"][0]["calibration_ratio"])
        columns = ["backend", "network", *schemes, "simulated", "folded", "export, s", "memory, MB"]
        rows = []
        for result in report["results"]:
            memory = ", ".join(f"{images}: {mb:.0f}" for images, mb in result["extra_peak_memory_mb"].items())
            ratios = [*(result["calibration_ratio"][s] for s in schemes), result["simulated_forward_ratio"]]
            rows.append([
                result["backend"], NETWORKS[result["network"]], *(f"{ratio:.2f}" for ratio in ratios),
                f"{result['folded_fp32_ratio']:.2f}", f"{result['export_seconds']:.1f}", memory,
            ])  # fmt: skip
        yield from table(columns, rows)
    yield ""
    yield "Another scheme from the same statistics (`sim.recalibrate`), all tensors, in seconds:"
    yield ""
    rows = [
        [
            result["backend"],
            NETWORKS[result["network"]],
            *(f"{s:.2f}" for s in result["recalibration_seconds"].values()),
        ]
        for report in reports
        for result in report["results"]
    ]
    yield from table(["backend", "network", *reports[0]["results"][0]["recalibration_seconds"]], rows)
    first_use = next((seconds for report in reports if (seconds := report["kernels_first_use_seconds"])), None)
    if first_use:
        yield ""
        yield (
            f"The kernels' first use on a machine takes {first_use['compiled']:.1f} s, compiling them, and "
            f"{first_use['cached']:.1f} s in every later process, numba's import included."
        )


def peer_lines(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    """isobit beside other tools."""
    yield "## Other tools"
    yield ""
    yield (
        "Every tool gets the same ONNX model with folded batch norms and the same images. *Ratio* is the time to one "
        "pass of onnxruntime in FP32. aimet-onnx's and nncf's times include making their simulator. *SQNR* is that of "
        "uint8 activations under the tool's ranges, over all values of each tensor that every tool has a range for."
    )
    for report in reports:
        yield ""
        yield where(report)
        for result in report["results"]:
            yield from network_lines(result)


def trained_lines(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Trained networks by isobit and by other tools."""
    yield "## Trained networks"
    yield ""
    yield (
        "One ONNX file and the same data for all; `python benchmarks/peers_table.py`. *Task* is the score in percent "
        "(`docs/zoo.md` says of what), *dB* the logits' on data that nobody calibrated on, from which a last Softmax "
        "or Sigmoid is undone, and beside it that of the outputs as they are; *passes* are CPU seconds over those of "
        "one float pass over the calibration data, *MB* the peak above that of a process that runs the float model, "
        "the tool's own code included, *time* that of the file over the float file, in turns. All files run with "
        "`session.x64quantprecision=1`: without it sums of integers saturate on processors that have no VNNI, and no "
        "tool's decibels are those of its model. A dash was not measured."
    )
    for report in reports:
        for result in report["results"]:
            yield ""
            yield f"### {result['network']}"
            yield ""
            yield f"{result['task'][:1].upper()}{result['task'][1:]}; {report['date']}, {report['machine']}."
            yield ""
            failed, rows = [], []
            for tool, row in result["rows"].items():
                if "error" in row:
                    failed.append(f"{tool} has no file that runs: `{row['error'].splitlines()[0][:120]}`")
                    continue
                rows.append([tool, *(_number(row.get(key), digits) for key, digits in _FIGURES)])
            yield from table(["tool", "task", "dB", "dB, outputs", "passes", "MB", "time"], rows)
            for line in failed:
                yield ""
                yield line


_FIGURES = (("figure", 1), ("decibels", 1), ("output_decibels", 1), ("passes", 0), ("memory_mb", 0), ("time", 2))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def network_lines(result: dict[str, Any]) -> Iterator[str]:
    """The two tables of one network: each tool, and isobit's schemes against those of peers."""
    yield ""
    yield f"### {NETWORKS[result['network']]}, {result['tensors']} tensors"
    yield ""
    rows, failed = [], []
    for tool, entry in result["tools"].items():
        if entry["error"]:
            failed.append(f"{tool} did not run: {entry['error'].splitlines()[0]}")
            continue
        ratios = ("–" if entry[key] is None else f"{entry[key]:.1f}" for key in ("sqnr_mean", "sqnr_worst"))
        rows.append([tool, f"{entry['ratio']:.2f}", *ratios])
    yield from table(["tool", "ratio", "SQNR, mean, dB", "SQNR, worst tensor, dB"], rows)
    for line in failed:
        yield ""
        yield line
    yield ""
    rows = []
    for pair in result["compared"]:
        share = f"{pair['no_worse']} of {pair['tensors']}"
        rows.append([pair["own"], pair["peer"], f"{pair['mean']:+.2f}", f"{pair['lowest']:+.2f}", share])
    yield from table(["isobit", "peer", "mean gain, dB", "lowest gain, dB", "no worse by 0.05 dB"], rows)


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="*", type=Path, help="JSON of run.py")
    parser.add_argument("--peers", nargs="*", type=Path, default=[], help="JSON of peers.py")
    parser.add_argument("--table", nargs="*", type=Path, default=[], help="JSON of peers_table.py")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by benchmarks/page.py from the JSON of run.py, peers.py and peers_table.py. -->",
        "",
    ]
    if arguments.run:
        lines += [*own_lines([json.loads(path.read_text()) for path in arguments.run]), ""]
    if arguments.peers:
        lines += [*peer_lines([json.loads(path.read_text()) for path in arguments.peers]), ""]
    if arguments.table:
        lines += trained_lines([json.loads(path.read_text()) for path in arguments.table])
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
