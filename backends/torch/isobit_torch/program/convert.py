"""Between torch tensors and NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """A NumPy array of a tensor on any device; bfloat16, which NumPy lacks, as float32."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.float()
    return tensor.numpy()


def feed(array: NDArray[Any], dtype: str, device: torch.device) -> torch.Tensor:
    """An input of a model in its type and where that is; it may share the array's memory."""
    source = np.ascontiguousarray(array)
    return torch.from_numpy(source if source.flags.writeable else source.copy()).to(device, getattr(torch, dtype))


def to_tensor(array: NDArray[Any], like: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor of its own memory, with the type and on the device of `like`."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor if like is None else tensor.to(like.device, like.dtype)
