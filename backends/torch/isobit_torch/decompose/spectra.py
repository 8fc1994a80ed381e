"""The inverse short-time Fourier transform in steps: torch checks values in it, which no graph of tensors can."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from isobit_torch.decompose.expander import Expander
from isobit_torch.program.constants import add_constant
from isobit_torch.program.fx_nodes import NAME, aten, attribute, is_constant


def decompose_istft(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Frames by the inverse transform, times the window, added where they overlap, over what the windows add up to.

    Left as it is where the number of frames is open, the window is computed, or the result is complex.
    """
    spectrum, window, size = a["self"], a["window"], int(a["n_fft"])
    shape = spectrum.meta["val"].shape
    frames, one_sided = shape[-1], a["onesided"] is not False and shape[-2] == size // 2 + 1
    known = isinstance(frames, int) and (window is None or is_constant(window))
    if not known or not one_sided or a["return_complex"] or len(shape) not in (2, 3):
        return None
    hop = int(a["hop_length"] or size // 4)
    values = _window(None if window is None else attribute(e.root, str(window.target)), size, a["win_length"])
    whole = size + hop * (frames - 1)
    start = size // 2 if a["center"] else 0
    end = start + int(a["length"]) if a["length"] is not None else whole - start
    overlap = _added(values.square()[:, None].expand(-1, frames)[None], whole, size, hop)[0, 0, 0, start:end]

    turned = e.call(aten.transpose.int, spectrum, -1, -2, part="turned", like=spectrum)
    norm = "ortho" if a["normalized"] else None
    parts = e.call(aten.fft_irfft.default, turned, size, -1, norm, part="frames")
    parts = e.call(aten.mul.Tensor, parts, _constant(e, values, "window"), part="windowed")
    if len(shape) == 2:
        parts = e.call(aten.unsqueeze.default, parts, 0, part="batched")
    parts = e.call(aten.transpose.int, parts, -1, -2, part="columns")
    added = e.call(aten.col2im.default, parts, [1, whole], [1, size], [1, 1], [0, 0], [1, hop], part="added")
    added = e.call(aten.slice.Tensor, added, -1, start, min(end, whole), part="cut")
    added = e.call(aten.squeeze.dims, added, [1, 2] if len(shape) == 3 else [0, 1, 2], part="flat")
    if end <= whole:
        return e.call(aten.div.Tensor, added, _constant(e, overlap, "overlap"))
    result = e.call(aten.div.Tensor, added, _constant(e, overlap, "overlap"), part="scaled")
    return e.call(aten.constant_pad_nd.default, result, [0, end - whole], 0.0)


def _constant(e: Expander, value: torch.Tensor, part: str) -> fx.Node:
    return add_constant(e.root, e.graph, f"{e.node.meta[NAME]}_{part}", value.clone())


def _window(window: torch.Tensor | None, size: int, length: int | None) -> torch.Tensor:
    """The window in the middle of a frame."""
    length = size if length is None else int(length)
    values = torch.ones(length) if window is None else window.detach()
    left = (size - length) // 2
    return torch.nn.functional.pad(values, (left, size - length - left))


def _added(parts: torch.Tensor, whole: int, size: int, hop: int) -> torch.Tensor:
    return torch.nn.functional.fold(parts, (1, whole), (1, size), stride=(1, hop))
