"""Seconds until the kernels of a fresh process are there: compiled for the first time on a machine, and cached."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

_SCRIPT = """
import time
import numpy, isobit.statistics.statistics
start = time.perf_counter()
from isobit.statistics.count_bits import kernels
kernels()
print(time.perf_counter() - start)
"""


def first_use_seconds(repeats: int = 3) -> dict[str, float]:
    """Medians for an empty and a filled cache; numba's own import is part of both."""
    seconds: dict[str, list[float]] = {"compiled": [], "cached": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            for times in seconds.values():
                command = [sys.executable, "-c", _SCRIPT]
                times.append(float(subprocess.run(command, check=True, capture_output=True, env=environment).stdout))
    return {cache: statistics.median(times) for cache, times in seconds.items()}
