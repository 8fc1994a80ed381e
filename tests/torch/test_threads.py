"""The kernel on several threads, whatever number of them the tests are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isobit.arithmetic import fake_quantize
from isobit_torch import threads


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_give_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    values = np.random.default_rng(0).standard_normal(3 * threads._PART + 17).astype(np.float32)
    found = values.copy()
    threads.run_in_parts(found, tuple(np.float32(number) for number in (0.02, 7, 0, 255)))
    np.testing.assert_array_equal(found, fake_quantize(values, np.float32(0.02), 7, 0, 255))
