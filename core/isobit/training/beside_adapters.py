"""What training does beside adapters: the grids of the base stay, and an adapter with a format must have a range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import ModelError
from isobit.graph.adapters import find_adapters
from isobit.graph.graph import Graph
from isobit.placement.plan import Placement, Plan, constant_name


def is_of_base(graph: Graph) -> Callable[[Placement], bool]:
    """Says of a placement whether it is that of a constant beside adapters, and of none of them.

    Its grid stays unless the user says how weights are learned: adapters are exchanged over one base.
    """
    adapters = find_adapters(graph)
    own = {name for adapter in adapters for name in adapter.weights}

    def answer(placement: Placement) -> bool:
        return bool(own) and placement.kind != "activation" and constant_name(graph, placement.site) not in own

    return answer


def check_formats(graph: Graph, plan: Plan, read: Callable[[str], NDArray[Any]]) -> None:
    """Raise ModelError for an adapter with a format whose weights are all 0: its grid has no range to train in."""
    placements = {constant_name(graph, p.site): p for p in plan.placements.values() if p.kind == "weight"}
    for adapter in find_adapters(graph):
        for name in adapter.weights:
            if name in placements and not np.any(read(name)):
                raise ModelError(
                    f"the weight {name!r} of an adapter is 0, so its {placements[name].spec.type_name} grid has no "
                    "range to train in: train adapters in float (leave out their override), and give them a format "
                    "when the trained model is opened"
                )
