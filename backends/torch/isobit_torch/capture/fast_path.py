"""torch's fast path of Transformer layers, which computes no padded position in evaluation: here all are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from isobit_torch.capture.aids.picked_rows import agree
from isobit_torch.program.torch_export import ONE_THREAD


@contextmanager
def without_fast_path() -> Iterator[None]:
    """The layers as they are trained and exported."""
    with ONE_THREAD:
        was_enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(was_enabled)


def padding_notes(module: nn.Module, outputs: Any, run: Callable[[], Any]) -> list[str]:
    """What is to be said where the `outputs` that `run` gives have the zeros of the fast path at padded positions."""
    if not any(isinstance(part, nn.TransformerEncoder) and part.use_nested_tensor for part in module.modules()):
        return []
    with without_fast_path():
        computed = run()
    found, all_computed = (
        [x for x in pytree.tree_leaves(o) if isinstance(x, torch.Tensor)] for o in (outputs, computed)
    )
    if agree(found, all_computed):
        return []
    return [
        "torch's fast path of nn.TransformerEncoder gives zeros at padded positions in evaluation; here they are "
        "computed as in training: leave them out where the outputs are read"
    ]
