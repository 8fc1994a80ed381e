"""Writing the deployable QDQ model of any backend's float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import onnx_ir as ir

from isobit.backend import BackendModel, NameMap
from isobit.encodings import Encoding, Encodings
from isobit.graph import Graph, Input, Site, Weight
from isobit_onnx.export.fit_onnxruntime import fit_onnxruntime
from isobit_onnx.export.fold_at_load import fold_at_load
from isobit_onnx.export.look_up_levels import look_up_levels
from isobit_onnx.export.save_model import save_model
from isobit_onnx.qdq.check_quantized import check_complete
from isobit_onnx.qdq.float_weights import keep_float_weights
from isobit_onnx.qdq.writer import insert_quantizers
from isobit_onnx.read.opset import raise_opset
from isobit_onnx.read.pooling import crop_unread
from isobit_onnx.read.read_model import infer_shapes
from isobit_onnx.read.unused_nodes import remove_unused
from isobit_onnx.translate.sites import NativeSite, from_name_map

_SATURATION = (
    "on x86-64 processors without VNNI, run the exported model with the session option session.x64quantprecision=1: "
    "else onnxruntime's sums of uint8 x int8 products saturate there; where there is VNNI leave it out, it costs time"
)


class QdqPlan(NamedTuple):
    """A float model to change, where its quantizers go, and those of values inside neutral nodes, by name."""

    float_model: ir.Model
    placed: Sequence[tuple[NativeSite, Encoding]]
    interior: Mapping[str, Encoding]


@runtime_checkable
class PlansQdq(Protocol):
    """A model that knows more than the names of `to_onnx` say: the ONNX backend's own."""

    def qdq_plan(self, encodings: Mapping[Site, Encoding]) -> QdqPlan:
        """Where the quantizers of `encodings` go in a copy of the float model."""
        ...


def write_qdq(model: BackendModel, encodings: Encodings, path: Path, *, runs_next: bool = False) -> list[str]:
    """Write `model` with `encodings` to `path`; returns what the reader should know.

    The file is loaded by onnxruntime before it counts as written, where onnxruntime is installed. `runs_next`: what
    comes next runs it (`isobit_onnx.export.run_written`), so that no session is made for loading alone.
    """
    plan = model.qdq_plan(encodings) if isinstance(model, PlansQdq) else _plan_by_names(model, encodings)
    insert_quantizers(plan.float_model, plan.placed, plan.interior, for_every_session=True)
    look_up_levels(plan.float_model)
    fold_at_load(plan.float_model)
    remove_unused(plan.float_model)
    keep_float_weights(plan.float_model)
    fit_onnxruntime(plan.float_model)
    infer_shapes(plan.float_model)
    save_model(plan.float_model, path)
    check_complete(path, plan.placed, plan.interior)
    if find_spec("onnxruntime") is None:
        return ["the exported model was not checked: onnxruntime is not installed", _SATURATION]
    if not runs_next:
        from isobit_onnx.export.check_loads import check_loads

        check_loads(path)
    return [_SATURATION]


def _plan_by_names(model: BackendModel, encodings: Encodings) -> QdqPlan:
    """The plan for any backend's model, whose `to_onnx` says the names of its sites."""
    proto, names = model.to_onnx()
    float_model = ir.from_proto(proto)
    raise_opset(float_model, "the exported model")
    crop_unread(float_model)
    read = _readers_of_views(model.graph, names)
    sites = {site: from_name_map(names, site) for site in encodings}
    sites |= {site: replace(sites[site], readers=readers) for site, readers in read.items() if site in sites}
    placed = [(sites[site], encoding) for site, encoding in encodings.items()]
    return QdqPlan(float_model, placed, {})


def _readers_of_views(graph: Graph, names: NameMap) -> dict[Site, tuple[tuple[str, int], ...]]:
    """The readers of each constant that is a view of one in the file which others read as another view."""
    views: dict[str, list[str]] = {}
    for name in graph.weights:
        if Weight(name) in names:
            views.setdefault(names[Weight(name)].name, []).append(name)
    read: dict[Site, tuple[tuple[str, int], ...]] = {}
    for name in (name for group in views.values() if len(group) > 1 for name in group):
        uses = graph.uses(name)
        entries = [names.get(Input(use.node.name, use.index)) for use in uses]
        places = tuple((entry.name, entry.input) for entry in entries if entry and entry.input is not None)
        if places and len(places) == len(uses):
            read[Weight(name)] = places
    return read


def write_float(model: BackendModel, path: Path) -> None:
    """Write the float model, with the names that `to_onnx` says."""
    proto, _ = model.to_onnx()
    float_model = ir.from_proto(proto)
    crop_unread(float_model)
    save_model(float_model, path)
