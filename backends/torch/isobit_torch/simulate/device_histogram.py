"""Histograms of tensors that stay on their device: one transfer a batch, one table at the end.

A table of counts by the top 16 bits of the float32 patterns lies beside the tensors, int32 x 65,536 = 256 KiB for each
observer (52 MB for 200). The bounds of all tensors of a batch come to the host together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from isobit.statistics.observer import SampleObserver
from isobit.statistics.sampling import strided
from isobit_torch.simulate.fed_observer import FedObserver

#: Where tensors are counted in place.
DEVICES = frozenset({"cuda"})

_BINS = 1 << 16
_FULL = (1 << 31) - 1  # what a bin holds
_PART = 1 << 24  # elements counted at once: what counting needs beside the tensor is 12 bytes for each
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class DeviceHistograms:
    """Takes the tensors of a batch, `settle` ends the batch, `finish` ends the pass."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, torch.device], _Table] = {}
        self._batch: dict[torch.device, list[tuple[FedObserver, int, Tensor]]] = {}

    def take(self, item: FedObserver, tensor: Tensor) -> bool:
        """Reduce a tensor where it is; False, and nothing done, where that is not for it. Waits for nothing."""
        observer, device = item.observer, tensor.device
        if device.type not in DEVICES or observer.wants in ("means", "moments", "tensor"):
            return False
        if tensor.dtype not in _FLOATS or not 0 < tensor.numel() <= _FULL:
            return False
        bounds = torch.stack(torch.aminmax(tensor)).to(torch.float32)  # NaN where there is one
        self._batch.setdefault(device, []).append((item, tensor.numel(), bounds))
        if observer.wants == "sample":
            key = id(observer), device
            if key not in self._tables:
                self._tables[key] = _Table(observer, device)
            is_finite = torch.isfinite(bounds).all()
            self._tables[key].count(strided(tensor, item.channel_axis, observer.limit), is_finite)
        return True

    def settle(self) -> list[FedObserver]:
        """Bring the bounds of the batch to the host. Returns what held NaN or infinity: it counts as not taken yet."""
        not_finite = []
        for taken in self._batch.values():
            pairs = torch.stack([bounds for _, _, bounds in taken]).cpu().numpy()
            for (item, elements, _), pair in zip(taken, pairs, strict=True):
                observer = item.observer
                if observer.wants == "bounds":
                    observer.update(pair)
                elif not np.isfinite(pair).all():
                    not_finite.append(item)
                elif observer.wants == "sample":
                    observer.absorb(float(pair[0]), float(pair[1]), np.zeros(0, np.float32), elements)
        self._batch.clear()
        return not_finite

    def finish(self) -> None:
        """Add the counts to the histograms."""
        for table in self._tables.values():
            table.flush()


class _Table:
    def __init__(self, histogram: SampleObserver, device: torch.device) -> None:
        self._histogram = histogram
        self._counts = torch.zeros(_BINS, dtype=torch.int32, device=device)
        self._counted = 0

    def count(self, values: Tensor, is_finite: Tensor) -> None:
        """Count values, or none of them where `is_finite` (a boolean on the device) is false."""
        if self._counted + values.numel() > _FULL:
            self.flush()
        self._counted += values.numel()
        increment = is_finite.to(torch.int32)
        for part in torch.split(values.reshape(-1), _PART):
            bits = part.to(torch.float32).contiguous().view(torch.int32)
            self._counts.index_add_(0, (bits >> 16) & 0xFFFF, increment.expand(bits.shape))

    def flush(self) -> None:
        """Move the counts to the host."""
        self._histogram.add_counts(self._counts.cpu().numpy().astype(np.int64))
        self._counts.zero_()
        self._counted = 0
