"""Batch norm re-estimation: the statistics of the quantized model take the place of the float model's.

Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", arXiv 1806.08342, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights, Unshare
from isobit.errors import FormatError
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Tensor
from isobit.statistics.moments import Moments
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.technique import TechniqueReport

_MEAN, _VARIANCE = 3, 4


@dataclass(frozen=True)
class ReestimateBatchNorms:
    """Set mean and variance of each batch norm to those of its input in the quantized model.

    For batch norms that are in the graph: before FoldBatchNorms, or after training. One pass calibrates, and each of
    `sweeps` more measures all batch norms behind those that the sweep before it has set.
    """

    sweeps: int = 1

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise FormatError(f"at least one sweep, not {self.sweeps}")

    @property
    def uses_data(self) -> bool:
        """Always."""
        return True

    def requests(self, context: TechniqueContext) -> Requests:
        """Moments of the inputs of batch norms in the quantized model."""
        return _requests(_norms(context.graph)[0])

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Measure on a quantized copy, set on the model."""
        norms, left = _norms(context.graph)
        if not norms:
            return _report((), left or {"model": "it has no batch norm; apply it before FoldBatchNorms"})
        context.require_passes(1 + self.sweeps)
        requests = _requests(norms)
        moments = dict(zip((str(r.site) for r in requests.quantized), context.observe(requests).quantized, strict=True))
        copy = context.quantized_copy()
        for sweep in range(self.sweeps):
            if sweep:
                sweep_requests = _requests(norms).quantized
                context.observe_copy(copy, sweep_requests)
                moments = {str(request.site): request.observer for request in sweep_requests}
            for node in norms:
                size = context.graph.weights[node.inputs[_MEAN] or ""].shape[0]
                if moments[node.inputs[0] or ""].mean.size != size:
                    left[node.name] = "its input has its channels on another axis"
            norms = [node for node in norms if node.name not in left]
            measured = {node.name: moments[node.inputs[0] or ""] for node in norms}
            for target in (copy, context.model):
                _set(target, {name: (measurement.mean, measurement.variance) for name, measurement in measured.items()})
        return _report(tuple(node.name for node in norms), left)


def _requests(norms: list[Node]) -> Requests:
    names = dict.fromkeys(node.inputs[0] or "" for node in norms)
    return Requests(quantized=[Request(Tensor(name), Moments()) for name in names])


def _report(changed: tuple[str, ...], left: dict[str, str]) -> TechniqueReport:
    return TechniqueReport("ReestimateBatchNorms", changed, left, rescaled={})


def _norms(graph: Graph) -> tuple[list[Node], dict[str, str]]:
    norms, left = [], {}
    for node in graph.nodes:
        if node.op == "BatchNormalization":
            if all(node.input(index) in graph.weights for index in (_MEAN, _VARIANCE)):
                norms.append(node)
            else:
                left[node.name] = "its statistics are computed"
    return norms, left


def _set(model: CheckedModel, statistics: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    draft = Draft(model.graph, model.weight)
    for name, values in statistics.items():
        for index, value in zip((_MEAN, _VARIANCE), values, strict=True):
            constant = draft.graph.node(name).inputs[index] or ""
            if len(draft.graph.source_readers(constant)) > 1:
                draft.apply(Unshare(constant, name))
                constant = draft.graph.node(name).inputs[index] or ""
            draft.apply(SetWeights({constant: value.astype(np.float32)}))
    if draft.edits:
        model.edit(draft)
