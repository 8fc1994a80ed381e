"""What `mixed_precision.py` runs in the peers' environment: aimet-onnx's automatic mixed precision; JSON out.

    python peer_amp.py model.onnx data.npz low high result.json DECIBELS...

`data.npz` has `calibration` and `held_out`, of the model's one input. For each goal in decibels on the calibration
batch: the bits of every quantizer, how many models were evaluated, and the decibels on the held-out batch.
Source: `analyze_mixed_precision_sensitivity` and `apply_amp` of aimet-onnx 2.42, as documented.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from aimet_onnx import QuantizationSimModel
from aimet_onnx.common import defs
from aimet_onnx.mixed_precision import analyze_mixed_precision_sensitivity, apply_amp


def main() -> None:
    model, data, low, high, out, *goals = sys.argv[1:]
    exact = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = exact.get_inputs()[0].name
    with np.load(data) as archive:
        batches = {part: {name: archive[part]} for part in ("calibration", "held_out")}
    expected = {part: exact.run(None, batch)[0] for part, batch in batches.items()}
    precisions = [(getattr(defs, bits), getattr(defs, bits)) for bits in (low, high)]
    found = []
    for goal in map(float, goals):
        evaluated = []

        def decibels(session: Any, part: str = "calibration", evaluated: list[str] = evaluated) -> float:
            evaluated.append(part)
            return mean_decibels(expected[part], session.run(None, batches[part])[0])

        sim = QuantizationSimModel(onnx.load(model), quant_scheme=defs.QuantScheme.post_training_tf_enhanced)
        sim.compute_encodings([batches["calibration"]])
        sensitivity = analyze_mixed_precision_sensitivity(sim, precisions, decibels, [batches["calibration"]])
        apply_amp(sim, sensitivity, lambda session, goal=goal: decibels(session) >= goal)
        bits = {name: item.bitwidth for name, item in sim.qc_quantize_op_dict.items() if item.enabled}
        count = len(evaluated)
        found.append({"bits": bits, "evaluations": count, "decibels": decibels(sim.session, "held_out")})
    Path(out).write_text(json.dumps(found))


def mean_decibels(exact: np.ndarray, other: np.ndarray) -> float:
    """Signal to noise, the mean of the samples."""
    signal, noise = (np.square(a).reshape(len(a), -1).sum(1) for a in (exact, exact - other))
    return float(np.mean(10 * np.log10(signal / np.maximum(noise, 1e-30))))


if __name__ == "__main__":
    main()
