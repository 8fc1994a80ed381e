"""Edits as data: JSON for their structure, arrays beside it. What `QuantSim.save` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.edits.edit import (
    AddBias,
    Edit,
    Insert,
    NewNode,
    Replace,
    SetWeights,
    Slice,
    SliceTogether,
    TrainedWeights,
    Unshare,
)
from isobit.errors import EditError
from isobit.graph.sites import Input, Tensor, site_key, site_of

Array = NDArray[Any]


class Arrays(dict[str, Array]):
    """Arrays by the names that records have for them."""

    def keep(self, array: Array) -> str:
        """Add an array; returns its name."""
        name = f"array{len(self)}"
        self[name] = np.ascontiguousarray(array)
        return name


def edits_to_records(edits: Sequence[Edit]) -> tuple[list[dict[str, Any]], Arrays]:
    """JSON-ready records of `edits`, and the arrays they refer to by name."""
    arrays = Arrays()
    return [_record(edit, arrays.keep) for edit in edits], arrays


def _record(edit: Edit, keep: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"edit": type(edit).__name__}
    if isinstance(edit, Replace | Insert):
        if isinstance(edit, Replace):
            record["node"] = edit.node
        else:
            record["site"] = list(site_key(edit.site))
        record["nodes"] = [
            {"op": node.op, "operands": list(node.operands), "attributes": dict(node.attributes)} for node in edit.nodes
        ]
        record["weights"] = {name: keep(value) for name, value in edit.weights.items()}
    elif isinstance(edit, SetWeights):
        record["weights"] = {name: keep(value) for name, value in edit.weights.items()}
        record["compensates"] = edit.compensates
    elif isinstance(edit, TrainedWeights):
        record["weights"] = {name: keep(value) for name, value in edit.weights.items()}
    elif isinstance(edit, AddBias):
        record |= {"node": edit.node, "value": keep(edit.value), "compensates": edit.compensates}
    elif isinstance(edit, Unshare):
        record |= {"weight": edit.weight, "node": edit.node}
    elif isinstance(edit, SliceTogether):
        record["slices"] = [_sliced(part) for part in edit.slices]
    else:
        record |= _sliced(edit)
    return record


def _sliced(edit: Slice) -> dict[str, Any]:
    return {"tensor": edit.tensor, "keep": list(edit.keep)}


def edits_from_records(records: Sequence[Mapping[str, Any]], arrays: Mapping[str, Array]) -> list[Edit]:
    """The inverse of `edits_to_records`. Raises EditError for a record that is none."""
    try:
        return [_edit(record, arrays) for record in records]
    except (KeyError, TypeError, AttributeError) as error:
        raise EditError(f"not a record of an edit: {error}") from error


def _edit(record: Mapping[str, Any], arrays: Mapping[str, Array]) -> Edit:
    kind = record["edit"]
    weights = {name: arrays[key] for name, key in record.get("weights", {}).items()}
    if kind == "Replace":
        return Replace(record["node"], _nodes(record), weights)
    if kind == "Insert":
        site = site_of(*record["site"])
        if not isinstance(site, Tensor | Input):
            raise EditError(f"nodes cannot be inserted at {site}")
        return Insert(site, _nodes(record), weights)
    if kind == "SetWeights":
        return SetWeights(weights, record["compensates"] is True)
    if kind == "TrainedWeights":
        return TrainedWeights(weights)
    if kind == "AddBias":
        return AddBias(record["node"], arrays[record["value"]], record["compensates"] is True)
    if kind == "Unshare":
        return Unshare(record["weight"], record["node"])
    if kind == "Slice":
        return _slice(record)
    if kind == "SliceTogether":
        return SliceTogether(tuple(_slice(part) for part in record["slices"]))
    raise EditError(f"unknown edit {kind!r}")


def _slice(record: Mapping[str, Any]) -> Slice:
    return Slice(record["tensor"], tuple(record["keep"]))


def _nodes(record: Mapping[str, Any]) -> tuple[NewNode, ...]:
    return tuple(
        NewNode(
            node["op"],
            tuple(node["operands"]),
            {key: tuple(value) if isinstance(value, list) else value for key, value in node["attributes"].items()},
        )
        for node in record["nodes"]
    )
