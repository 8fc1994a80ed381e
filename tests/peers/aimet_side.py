"""What runs in the interpreter that has aimet-onnx: `export` quantizes a model, `load` reads a file that isobit wrote.

Both write ``name -> {scale, offset, bits}`` of every enabled quantizer as JSON.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
from aimet_onnx import QuantizationSimModel, int4, int8
from aimet_onnx.quantsim import load_encodings_to_sim, set_blockwise_quantization_for_weights, set_lpbq_for_params


def simulator(path: str, kind: str) -> QuantizationSimModel:
    sim = QuantizationSimModel(onnx.load(path), param_type=int8 if kind == "channels" else int4, activation_type=int8)
    if kind == "blocks":
        set_blockwise_quantization_for_weights(sim, ["MatMul", "Gemm", "Conv"], 4, True, 2)
    if kind == "lpbq":
        set_lpbq_for_params(sim, 4, 2, op_types={"MatMul", "Gemm", "Conv"})
    return sim


def grids(sim: QuantizationSimModel) -> dict[str, dict[str, list[float] | int]]:
    found = {}
    for name, quantizer in sim.qc_quantize_op_dict.items():
        encodings = quantizer.get_encodings() if quantizer.enabled else None
        if encodings:
            scales, offsets = [e.delta for e in encodings], [e.offset for e in encodings]
            found[name] = {"scale": scales, "offset": offsets, "bits": encodings[0].bw}
    return found


def main(verb: str, model: str, kind: str, encodings: str, answer: str) -> None:
    sim = simulator(model, kind)
    shape = [d.dim_value or 1 for d in sim.model.model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal((8, *shape[1:])).astype(np.float32)
    if verb == "export":
        sim.compute_encodings([{"x": row[None]} for row in x])
        folder, _, stem = encodings.rpartition("/")
        for version in ("1.0.0", "2.0.0"):
            sim.export(folder, f"{stem}-{version}", export_model=False, encoding_version=version)
    else:
        # With strict=True aimet-onnx 2.42 refuses its own 2.0.0 files for the int32 biases in them.
        load_encodings_to_sim(sim, encodings, strict="1.0.0" in encodings)
    with open(answer, "w") as file:
        json.dump(grids(sim), file)


main(*sys.argv[1:])
