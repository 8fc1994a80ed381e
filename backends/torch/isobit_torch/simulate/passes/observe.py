"""Observation: each tensor is reduced as it is produced, where it is, and let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from isobit.statistics import observe_tensor
from isobit_torch.program.convert import to_array
from isobit_torch.simulate.device_histogram import DeviceHistograms
from isobit_torch.simulate.fed_observer import FedObserver


class _AllSeen(Exception):  # noqa: N818  (no error)
    """Nothing more is watched."""


class ObservingRunner(fx.Interpreter):
    """Runs a graph and feeds the observers of the nodes in `watched`; `in_place` counts on devices where that helps."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, watched: Mapping[fx.Node, Sequence[FedObserver]], in_place: bool = True
    ) -> None:
        super().__init__(root, garbage_collect_values=True, graph=graph)
        self.extra_traceback = False  # of an error, the user is shown the first line alone
        self._watched = watched
        self._last = next((node for node in reversed(graph.nodes) if node in watched), None)
        self._device = DeviceHistograms() if in_place else None

    def run_node(self, n: fx.Node) -> Any:
        """Compute one node, and reduce its result where it is watched."""
        result = super().run_node(n)
        for item in self._watched.get(n, ()):
            tensor = result.detach()
            if item.observer.wants == "means" and tensor.numel():
                item.observer.add_means(*_means(tensor, item.channel_axis))
            elif item.observer.wants == "moments" and tensor.numel() and item.channel_axis:
                item.observer.add_moments(*_moments(tensor, item.channel_axis))
            elif self._device is None or not self._device.take(item, tensor):
                observe_tensor(item.observer, tensor, item.channel_axis, _bounds, to_array)
        if n is self._last:
            raise _AllSeen
        return result

    def observe(self, *feeds: torch.Tensor) -> tuple[()]:
        """Run one batch as far as something is watched.

        What held NaN or infinity on a device is computed again, and reduced as a whole.
        """
        with suppress(_AllSeen):
            self.run(*feeds)
        again = self._device.settle() if self._device is not None else []
        if again:
            watched = {node: [item for item in items if item in again] for node, items in self._watched.items()}
            ObservingRunner(self.module, self.graph, watched, in_place=False).observe(*feeds)
        return ()

    def finish(self) -> None:
        """End the pass: counts that are on devices go into their observers."""
        if self._device is not None:
            self._device.finish()


def _means(tensor: torch.Tensor, channel_axis: int | None) -> tuple[NDArray[np.float64], int]:
    """The mean of each channel, and how many elements a channel has."""
    axes = [axis for axis in range(tensor.ndim) if axis != channel_axis]
    means = (tensor.mean(axes, dtype=torch.float64) if axes else tensor.double()).reshape(-1)
    return means.cpu().numpy(), tensor.numel() // means.numel()


def _moments(tensor: torch.Tensor, channel_axis: int) -> tuple[NDArray[np.float64], int]:
    """Minimum, maximum, mean and mean square of each channel (4, channels), and how many elements a channel has."""
    axes = [axis for axis in range(tensor.ndim) if axis != channel_axis]
    ends = (tensor.amin(axes).double(), tensor.amax(axes).double())
    squares = tensor.square().mean(axes, dtype=torch.float64)
    moments = torch.stack([*ends, tensor.mean(axes, dtype=torch.float64), squares])
    return moments.cpu().numpy(), tensor.numel() // moments.shape[1]


def _bounds(tensor: torch.Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(tensor)
    return float(low), float(high)
