"""One peer's quantization of an ONNX file, for `benchmarks/peers_rounding.py`: logits and seconds to an .npz file.

Runs with the Python of an environment of its own that holds aimet-onnx and nncf, and imports nothing of isobit.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

BATCH = 32


def aimet(model: Any, batches: list[dict[str, Any]], method: str, bits: int, iterations: int) -> Any:
    """A calibrated aimet simulator, per-channel weights; keep it, for its session reads memory that it owns."""
    import aimet_onnx

    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=aimet_onnx.int4 if bits == 4 else aimet_onnx.int8,
        activation_type=aimet_onnx.int8,
        quant_scheme="min_max",
    )
    if method == "seqmse":
        aimet_onnx.apply_seq_mse(sim, batches)
    elif method == "adaround":
        aimet_onnx.apply_adaround(sim, batches, num_iterations=iterations)
    sim.compute_encodings(batches)
    return sim


def nncf(model: Any, batches: list[dict[str, Any]]) -> Any:
    """A session of nncf's INT8 model, its defaults; run with float arithmetic, as the simulators are."""
    import nncf as peer
    import onnxruntime

    quantized = peer.quantize(model, peer.Dataset(batches), subset_size=len(batches))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(quantized.SerializeToString(), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["aimet-nearest", "aimet-seqmse", "aimet-adaround", "nncf"])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10_000)
    args = parser.parse_args()
    with np.load(args.data) as file:
        calibration, test = file["calibration"], file["test"]
    batches = [{"image": calibration[i : i + BATCH]} for i in range(0, len(calibration), BATCH)]
    model = onnx.load(args.model)
    start, cpu = time.perf_counter(), time.process_time()
    if args.peer == "nncf":
        session = nncf(model, batches)
    else:
        sim = aimet(model, batches, args.peer.removeprefix("aimet-"), args.bits, args.iterations)
        session = sim.session
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    logits = session.run(None, {"image": test})[0]
    np.savez(args.out, logits=logits, seconds=seconds, cpu_seconds=cpu_seconds)
    print(f"{args.peer}: {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
