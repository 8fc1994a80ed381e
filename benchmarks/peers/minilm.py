"""nncf's quantization of a transformer's ONNX file, for `benchmarks/minilm.py`: the file, and its seconds as JSON.

Runs with the Python of an environment of its own that holds nncf, and imports nothing of isobit. nncf's defaults for a
transformer: SmoothQuant, min-max, fast bias correction.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx


def main() -> None:
    model, source, out = map(Path, sys.argv[1:])
    batches: dict[str, dict[str, Any]] = {}
    with np.load(source) as file:
        for key in file.files:
            name, _, batch = key.partition(":")
            batches.setdefault(batch, {})[name] = file[key]
    network = onnx.load(model)
    wall, cpu = time.perf_counter(), time.process_time()
    quantized = nncf.quantize(
        network, nncf.Dataset(list(batches.values())), subset_size=len(batches), model_type=nncf.ModelType.TRANSFORMER
    )
    figures = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    onnx.save(quantized, out)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
