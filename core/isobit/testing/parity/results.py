"""What one framework found of one network at one stage, as files: JSON and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encodings
from isobit.formats import isobit_json
from isobit.graph.graph import Graph
from isobit.graph.records import graph_from_record, graph_to_record
from isobit.graph.sites import Site, site_key, site_of
from isobit.placement.plan import Placement, Plan

Array = NDArray[Any]
Stage = Literal["as built", "folded"]
STAGES: tuple[Stage, ...] = ("as built", "folded")

#: What of a placement must be equal in every framework: format, kind, whether it is simulated, fixed range.
PlacementFacts = tuple[str, str, bool, str]


@dataclass(frozen=True, eq=False)
class Result:
    """A graph with its constants, the plan for each target, encodings by scheme, and outputs on the same data.

    `plans` hold, by site, format, kind, whether the simulator rounds there, and the fixed range. `outputs` are those of
    the float model, and of the simulator with the encodings of the first framework.
    """

    graph: Graph
    weights: Mapping[str, Array]
    plans: Mapping[str, Mapping[Site, PlacementFacts]]
    encodings: Mapping[str, Encodings]
    floats: Mapping[str, Array] = field(default_factory=dict)
    outputs: Mapping[str, Array] = field(default_factory=dict)

    def write(self, folder: Path, network: str, stage: Stage) -> None:
        """Two files in `folder`."""
        from safetensors.numpy import save_file

        record = {
            "graph": graph_to_record(self.graph),
            "plans": {
                target: [[*site_key(site), *facts] for site, facts in plan.items()]
                for target, plan in self.plans.items()
            },
            "encodings": {scheme: isobit_json.dumps(encodings) for scheme, encodings in self.encodings.items()},
        }
        parts = (("weight", self.weights), ("float", self.floats), ("output", self.outputs))
        arrays = {f"{kind}:{name}": np.asarray(a, order="C") for kind, part in parts for name, a in part.items()}
        json_path, array_path = _paths(folder, network, stage)
        save_file(arrays, array_path)
        json_path.write_text(json.dumps(record), "utf-8")

    @classmethod
    def read(cls, folder: Path, network: str, stage: Stage) -> Result:
        """What `write` wrote."""
        from safetensors.numpy import load_file

        json_path, array_path = _paths(folder, network, stage)
        record, arrays = json.loads(json_path.read_text("utf-8")), load_file(array_path)
        plans = {
            target: {site_of(kind, name, index): tuple(facts) for kind, name, index, *facts in plan}
            for target, plan in record["plans"].items()
        }
        weights, floats, outputs = (
            {name.partition(":")[2]: a for name, a in arrays.items() if name.startswith(f"{kind}:")}
            for kind in ("weight", "float", "output")
        )
        encodings = {scheme: isobit_json.loads(text, scheme) for scheme, text in record["encodings"].items()}
        return cls(graph_from_record(record["graph"]), weights, plans, encodings, floats, outputs)


def placement_facts(plan: Plan) -> dict[Site, PlacementFacts]:
    """The facts of a plan that must be equal in every framework, by site."""
    return {site: _facts(placement) for site, placement in plan.placements.items()}


def _facts(p: Placement) -> PlacementFacts:
    return (str(p.spec), p.kind, p.simulated, str(p.fixed_range))


def _paths(folder: Path, network: str, stage: Stage) -> tuple[Path, Path]:
    stem = f"{network}.{stage.replace(' ', '_')}"
    return folder / f"{stem}.json", folder / f"{stem}.safetensors"
