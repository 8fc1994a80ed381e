"""What `peers.py` runs in the peers' environment: time and ranges of each tool on one ONNX model; JSON out.

    python peer_tools.py model.onnx data.npz threads result.json [TOOL...]

Sources: the tools' public interfaces in their documentation.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_KEPT: list[Any] = []


def main() -> None:
    model, data, threads, out, *chosen = sys.argv[1:]
    os.environ["OMP_NUM_THREADS"] = threads
    with np.load(data) as archive:
        batches = [{"image": batch} for batch in archive["image"]]
    report: dict[str, Any] = {"fp32_seconds": fp32(model, batches, int(threads)), "tools": {}}
    for name, work in tools(model, batches).items():
        if chosen and not any(name.startswith(tool) for tool in chosen):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            ranges = work()
        except Exception as error:  # a tool that is not installed or fails says so in the table
            report["tools"][name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        report["tools"][name] = {"seconds": time.perf_counter() - start, "ranges": ranges}
    Path(out).write_text(json.dumps(report))


def fp32(model: str, batches: list[dict[str, Any]], threads: int) -> float:
    """The median of five passes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run(None, batches[0])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for batch in batches:
            session.run(None, batch)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[2]


def tools(model: str, batches: list[dict[str, Any]]) -> dict[str, Callable[[], dict[str, list[float]]]]:
    """Each tool and scheme, by name."""
    return {
        "onnxruntime minmax": lambda: onnxruntime_ranges(model, batches, "MinMax"),
        "onnxruntime entropy": lambda: onnxruntime_ranges(model, batches, "Entropy"),
        "onnxruntime percentile": lambda: onnxruntime_ranges(model, batches, "Percentile"),
        "aimet-onnx min_max": lambda: aimet_ranges(model, batches, "min_max"),
        "aimet-onnx tf_enhanced": lambda: aimet_ranges(model, batches, "tf_enhanced"),
        "aimet-torch tf_enhanced": lambda: aimet_torch(model, batches),
        "nncf": lambda: nncf(model, batches),
    }


def onnxruntime_ranges(model: str, batches: list[dict[str, Any]], method: str) -> dict[str, list[float]]:
    """`onnxruntime.quantization`'s calibrators with their defaults."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            Path(model), None, str(Path(folder) / "augmented.onnx"), calibrate_method=getattr(CalibrationMethod, method)
        )
        calibrator.collect_data(Reader())
        data = calibrator.compute_data()
    return {
        name: [float(np.min(tensor.lowest)), float(np.max(tensor.highest))]
        for name, tensor in data.items()
        if hasattr(tensor, "lowest")
    }


def aimet_ranges(model: str, batches: list[dict[str, Any]], scheme: str) -> dict[str, list[float]]:
    """aimet-onnx's simulator: construction and calibration."""
    import onnx
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.common.defs import QuantScheme

    schemes = {"min_max": QuantScheme.min_max, "tf_enhanced": QuantScheme.post_training_tf_enhanced}
    sim = QuantizationSimModel(onnx.load(model), quant_scheme=schemes[scheme])
    sim.compute_encodings(batches)
    ranges = {}
    for name in sim.activation_names:
        quantizer = sim.qc_quantize_op_dict.get(name)
        encodings = quantizer.get_encodings() if quantizer is not None and quantizer.enabled else None
        if encodings:
            ranges[name] = [float(encodings[0].min), float(encodings[0].max)]
    return ranges


def aimet_torch(model: str, batches: list[dict[str, Any]]) -> dict[str, list[float]]:
    """aimet-torch's simulator of the same network, read back from ONNX; time only."""
    import torch

    if torch.version.cuda is None:
        declare_torchvision_operators(torch)
    import onnx
    import onnx2torch
    from aimet_torch import QuantizationSimModel
    from aimet_torch.common.defs import QuantScheme

    converted = onnx.version_converter.convert_version(onnx.load(model), 18)  # onnx2torch reads no newer Flatten
    module = onnx2torch.convert(converted).eval()
    example = torch.from_numpy(batches[0]["image"])
    register_converted_modules(torch)
    sim = QuantizationSimModel(module, example, quant_scheme=QuantScheme.post_training_tf_enhanced)

    def run(simulated: Any) -> None:
        with torch.no_grad():
            for batch in batches:
                simulated(torch.from_numpy(batch["image"]))

    sim.compute_encodings(run)
    return {}


def register_converted_modules(torch: Any) -> None:
    """Tell aimet-torch how onnx2torch's own modules are quantized: every input and the output."""
    from aimet_torch.nn import QuantizationMixin
    from onnx2torch.node_converters.binary_math_operations import OnnxBinaryMathOperation
    from onnx2torch.node_converters.global_average_pool import OnnxGlobalAveragePoolWithKnownInputShape

    def quantized(cls: Any, inputs: int) -> Any:
        def init(self: Any) -> None:
            super(quantized_class, self).__quant_init__()
            self.input_quantizers = torch.nn.ModuleList([None] * inputs)
            self.output_quantizers = torch.nn.ModuleList([None])

        def forward(self: Any, *values: Any) -> Any:
            pairs = zip(self.input_quantizers, values, strict=True)
            result = cls.forward(self, *(value if rounder is None else rounder(value) for rounder, value in pairs))
            rounder = self.output_quantizers[0]
            return result if rounder is None else rounder(result)

        quantized_class = type(
            f"Quantized{cls.__name__}", (QuantizationMixin, cls), {"__quant_init__": init, "forward": forward}
        )
        return quantized_class

    for cls, inputs in ((OnnxBinaryMathOperation, 2), (OnnxGlobalAveragePoolWithKnownInputShape, 1)):
        QuantizationMixin.implements(cls)(quantized(cls, inputs))


def declare_torchvision_operators(torch: Any) -> None:
    """Let torchvision be imported beside a CPU build of torch: PyPI's has its operators, unused here, for CUDA."""
    library = torch.library.Library("torchvision", "DEF")
    pooling = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for name in ("nms", "qnms", *pooling, *(f"_{name}_backward" for name in pooling)):
        library.define(f"{name}(Tensor x) -> Tensor")
    _KEPT.append(library)  # when it is deleted, its operators go too


def nncf(model: str, batches: list[dict[str, Any]]) -> dict[str, list[float]]:
    """nncf.quantize with its defaults: statistics, bias correction and writing; time only."""
    import nncf as tool
    import onnx

    tool.quantize(onnx.load(model), tool.Dataset(batches), subset_size=len(batches))
    return {}


if __name__ == "__main__":
    main()
