"""Observation: each tensor is reduced as it is produced, where it is, and let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from isobit.backend import Request
from isobit.sampling import sampling_of
from isobit.statistics import Histogram, MinMax
from isobit_torch.convert import to_array


@dataclass(frozen=True)
class Watched:
    """One request, and the channel axis of its tensor."""

    request: Request
    channel_axis: int | None


class ObservingRunner(fx.Interpreter):
    """Runs a graph and feeds the observers of the nodes in `watched`."""

    def __init__(self, root: nn.Module, graph: fx.Graph, watched: Mapping[fx.Node, Sequence[Watched]]) -> None:
        super().__init__(root, garbage_collect_values=True, graph=graph)
        self._watched = watched

    def run_node(self, n: fx.Node) -> Any:
        """Compute one node, and reduce its result where it is watched."""
        result = super().run_node(n)
        for item in self._watched.get(n, ()):
            _feed(item, result.detach())
        return result


def _feed(item: Watched, tensor: torch.Tensor) -> None:
    observer = item.request.observer
    if not isinstance(observer, Histogram | MinMax) or tensor.numel() == 0 or tensor.dtype == torch.bool:
        observer.update(np.asarray(to_array(tensor), np.float32), item.channel_axis)
        return
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    if not (np.isfinite(low) and np.isfinite(high)):  # rare: the whole tensor says how many, and the finite bounds
        observer.update(np.asarray(to_array(tensor), np.float32), item.channel_axis)
    elif isinstance(observer, MinMax):
        observer.update(np.array([low, high], np.float32))
    else:
        observer.absorb(low, high, _sample(tensor, item.channel_axis, observer.limit), tensor.numel())


def _sample(tensor: torch.Tensor, channel_axis: int | None, limit: int | None) -> NDArray[Any]:
    """`isobit.sampling.sample` on the tensor's own device: only what is counted leaves it."""
    if tensor.ndim < 2:
        tensor = tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)
    chosen = sampling_of(tuple(tensor.shape), channel_axis, limit)
    if chosen.step == 1:
        return to_array(tensor)
    if chosen.spatial:
        return to_array(tensor.reshape(*tensor.shape[:2], -1)[:, :, :: chosen.step])
    return to_array(tensor.reshape(tensor.shape[0], -1)[:, :: chosen.step])
