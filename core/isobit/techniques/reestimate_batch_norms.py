"""Batch norm re-estimation: the statistics of the quantized model take the place of the float model's.

Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", arXiv 1806.08342, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.backend import BackendModel, Request
from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.data import Dataset
from isobit.edit import SetWeights, Unshare
from isobit.edits import Draft
from isobit.errors import FormatError
from isobit.graph import Graph, Node
from isobit.plan import Plan
from isobit.plugins import registry
from isobit.simulating import simulate
from isobit.sites import Tensor
from isobit.statistics import Moments
from isobit.techniques.technique import TechniqueReport

_MEAN, _VARIANCE = 3, 4


@dataclass(frozen=True)
class ReestimateBatchNorms:
    """Set mean and variance of each batch norm to those of its input in the quantized model.

    For batch norms that are in the graph: before FoldBatchNorms, or after training. One pass calibrates by the scheme
    `calibration`, and each of `sweeps` more measures all batch norms behind those that the sweep before it has set.
    """

    sweeps: int = 1
    calibration: str | Calibrator = "minmax"

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise FormatError(f"at least one sweep, not {self.sweeps}")

    def apply(self, model: BackendModel, data: Dataset | None = None, plan: Plan | None = None) -> TechniqueReport:
        """Measure on a quantized copy, set on the model."""
        norms, left = _norms(model.graph)
        if data is None or plan is None:
            return _report((), {"model": "it needs data and a plan: apply it through QuantSim"})
        if not norms:
            return _report((), left or {"model": "it has no batch norm; apply it before FoldBatchNorms"})
        data.require_passes(1 + self.sweeps, "ReestimateBatchNorms")
        twin = simulate(model, plan, data, parse_calibrator(self.calibration, registry().calibrators()))
        for _ in range(self.sweeps):
            moments = {node.inputs[0] or "": Moments() for node in norms}
            twin.observe(data, [Request(Tensor(name), observer) for name, observer in moments.items()])
            for node in norms:
                found = moments[node.inputs[0] or ""]
                if found.mean.size != twin.graph.weights[node.inputs[_MEAN] or ""].shape[0]:
                    left[node.name] = "its input has its channels on another axis"
            norms = [node for node in norms if node.name not in left]
            statistics = {node.name: moments[node.inputs[0] or ""] for node in norms}
            for one in (twin, model):
                _set(one, {name: (found.mean, found.variance) for name, found in statistics.items()})
        return _report(tuple(node.name for node in norms), left)


def _report(changed: tuple[str, ...], left: dict[str, str]) -> TechniqueReport:
    return TechniqueReport("ReestimateBatchNorms", changed, left)


def _norms(graph: Graph) -> tuple[list[Node], dict[str, str]]:
    norms, left = [], {}
    for node in graph.nodes:
        if node.op == "BatchNormalization":
            if all(node.input(index) in graph.weights for index in (_MEAN, _VARIANCE)):
                norms.append(node)
            else:
                left[node.name] = "its statistics are computed"
    return norms, left


def _set(model: BackendModel, statistics: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    draft = Draft(model.graph, model.weight)
    for name, values in statistics.items():
        for index, value in zip((_MEAN, _VARIANCE), values, strict=True):
            constant = draft.graph.node(name).inputs[index] or ""
            if len(draft.graph.source_readers(constant)) > 1:
                draft.apply(Unshare(constant, name))
                constant = draft.graph.node(name).inputs[index] or ""
            draft.apply(SetWeights({constant: value.astype(np.float32)}))
    if draft.edits:
        model.edit(draft.edits)
