"""The in-place kernel on as many threads as torch uses; each value is computed alone, so the bits are the same."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from isobit.kernels import fake_quantize_in_place

#: Smaller tensors are done before another thread has woken up.
_PART = 1 << 16


def run_in_parts(flat: NDArray[np.float32], numbers: tuple[np.float32, ...]) -> None:
    """Fake-quantize a flat array in place; `numbers` are the kernel's scale, zero point and bounds."""
    count = min(torch.get_num_threads(), flat.size // _PART)
    if count < 2:
        fake_quantize_in_place(flat, *numbers)
        return
    edges = [flat.size * i // count for i in range(count + 1)]
    others = [_pool(os.getpid()).submit(fake_quantize_in_place, flat[a:b], *numbers) for a, b in pairwise(edges[1:])]
    fake_quantize_in_place(flat[: edges[1]], *numbers)
    for other in others:
        other.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "isobit")
