"""One quantized ONNX file, by isobit or by another tool, and what it took; for `benchmarks/peers_table.py`.

    python benchmarks/peers/quantize_file.py "nncf, default" model.onnx data.npz out.onnx

Prints JSON: CPU seconds and wall seconds of quantizing, imports and the writing of the file left out, and the process's
peak memory until then.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Batches = list[dict[str, Any]]
Write = Callable[[], object]
#: Quantizes, and returns what writes the file; onnxruntime's tool does that by itself.
Tool = Callable[[Path, Batches, Path], Write]

SCHEMES = ("minmax", "moving-average", "percentile", "entropy", "mse", "sqnr")


def isobit_with(**settings: Any) -> Tool:
    """`isobit.quantize` and its export."""
    import isobit

    def work(model: Path, batches: Batches, out: Path) -> Write:
        sim = isobit.quantize(model, batches, progress=False, **settings)
        return lambda: Path(sim.export(out.parent / out.stem, encodings_formats=())["model"]).rename(out)

    return work


def onnxruntime_with(op_types: list[str] | None) -> Tool:
    """onnxruntime's own tool: its preprocessing, QDQ, weights per channel, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, batches: Batches) -> None:
            self.left: Iterator[dict[str, Any]] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    def work(model: Path, batches: Batches, out: Path) -> Write:
        prepared = out.with_suffix(".prepared.onnx")
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=op_types,
        )
        return lambda: None

    return work


def nncf_with(**settings: Any) -> Tool:
    """nncf.quantize; its subset is all of the data."""
    import nncf
    import onnx

    def work(model: Path, batches: Batches, out: Path) -> Write:
        quantized = nncf.quantize(onnx.load(model), nncf.Dataset(batches), subset_size=len(batches), **settings)
        return lambda: onnx.save(quantized, out)

    return work


def aimet_with(scheme: str) -> Tool:
    """aimet-onnx's simulator, with batch norms folded by it, written as QDQ."""
    import aimet_onnx
    import onnx
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

    def work(model: Path, batches: Batches, out: Path) -> Write:
        loaded = onnx.load(model)
        fold_all_batch_norms_to_weight(loaded)
        sim = aimet_onnx.QuantizationSimModel(loaded, quant_scheme=scheme, dummy_input=batches[0])
        sim.compute_encodings(batches)
        return lambda: onnx.save(sim.to_onnx_qdq(), out)

    return work


#: How each tool is made, by the name of its row. Only the tool that runs is imported.
TOOLS: dict[str, Callable[[], Tool]] = {
    "isobit, default": isobit_with,
    "isobit, ptq": lambda: isobit_with(recipe="ptq"),
    **{f"isobit, {scheme}": (lambda scheme=scheme: isobit_with(method=scheme)) for scheme in SCHEMES},
    "onnxruntime, all operations": lambda: onnxruntime_with(None),
    "onnxruntime, Conv and MatMul": lambda: onnxruntime_with(["Conv", "MatMul"]),
    "nncf, default": nncf_with,
    "nncf, accurate": lambda: nncf_with(fast_bias_correction=False),
    "aimet-onnx, min-max": lambda: aimet_with("min_max"),
    "aimet-onnx, tf_enhanced": lambda: aimet_with("tf_enhanced"),
}


def read_batches(data: Path) -> Batches:
    """Batches from arrays named ``number:input``."""
    batches: dict[int, dict[str, Any]] = {}
    with np.load(data) as file:
        for key in file.files:
            number, _, name = key.partition(":")
            batches.setdefault(int(number), {})[name] = file[key]
    return [batches[number] for number in sorted(batches)]


def peak_memory_mb() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=["float", *TOOLS])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    batches = read_batches(args.data)
    cpu_seconds = seconds = 0.0
    write: Write = lambda: None  # noqa: E731
    if args.tool == "float":  # a process that only runs the model: the others' peaks are told above its own
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
        taken = []
        for _ in range(3):
            cpu = time.process_time()
            for batch in batches:
                session.run(None, batch)
            taken.append(time.process_time() - cpu)
        cpu_seconds = min(taken)
    else:
        tool = TOOLS[args.tool]()
        start, cpu = time.perf_counter(), time.process_time()
        write = tool(args.model, batches, args.out)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_memory_mb()
    write()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main()
