"""Which grids of a plan training moves, and by how much: decided here for every backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod, sqrt

import numpy as np

from isobit.encodings.encoding import Encoding
from isobit.encodings.learned_grid import LearnedGrid
from isobit.graph.graph import Graph
from isobit.graph.sites import Site
from isobit.placement.plan import Placement, Plan, constant_name
from isobit.training.beside_adapters import is_of_base
from isobit.training.modes import TrainingModes

#: Grids of more levels are moved as slowly, in levels, as one of so many: 8 bits need far less of it than 4.
_UNIT_LEVELS = 16


def learned_grids(
    graph: Graph,
    plan: Plan,
    encodings: Mapping[Site, Encoding],
    modes: TrainingModes,
    frozen: Collection[Site] = (),
) -> dict[Site, LearnedGrid]:
    """The grids that are learned, by the first of the sites that share one; all others stay or follow.

    Biases follow their input and weight. What no data decides stays (`Relations.fixed`), and so do float formats, the
    `frozen` sites, and a shared grid of which one site is among them. `modes` says how a shared grid is learned.
    Beside adapters, weights of the base are learned only where `modes` says how weights are.
    """
    relations = plan.relations().that_hold(encodings)
    shared: dict[Site, list[Site]] = {}
    for site, leader in relations.ties.items():
        shared.setdefault(leader, []).append(site)
    of_base = is_of_base(graph)
    base_modes = modes if modes.weights is not None else replace(modes, weights="frozen")
    grids = {}
    for site, placement in plan.placements.items():
        if site not in encodings or site in relations.ties or placement.kind == "bias":
            continue
        sites = [site, *shared.get(site, ())]
        mode = (base_modes if of_base(placement) else modes).of(graph, *(plan.placements[member] for member in sites))
        kept = any(member in relations.fixed or member in frozen for member in sites)
        if not kept and mode != "frozen" and placement.spec.is_integer:
            grids[site] = _grid(encodings[site], mode, _values(graph, placement, encodings[site]))
    return grids


def _grid(encoding: Encoding, mode: str, values: int) -> LearnedGrid:
    """A factor of ``g / (unit * start**2)`` makes a step of SGD that of LSQ, whose g is ``1 / sqrt(values * q_max)``.

    It is at most 1: then the step is that of a logarithmic threshold, which no small scale makes explode.
    """
    spec, start = encoding.spec, encoding.scale.astype(np.float64)
    unit = min(1.0, _UNIT_LEVELS / (1 << spec.bits))
    if mode == "pact":
        return LearnedGrid(np.ones(start.shape, np.float32), unit, rounding=False)
    lsq = 1 / sqrt(values * spec.q_max)
    factor = np.minimum(lsq / (unit * np.square(start)), 1.0).astype(np.float32)
    # A range with one end at 0 keeps it: the levels beyond would stand for values that never occur.
    two_sided = bool(np.all((encoding.zero_point > spec.q_min) & (encoding.zero_point < spec.q_max)))
    learns_zero = two_sided and not spec.symmetric
    return LearnedGrid(factor, unit, zero_point_levels=min(spec.q_max - spec.q_min, _UNIT_LEVELS) if learns_zero else 0)


def _values(graph: Graph, placement: Placement, encoding: Encoding) -> int:
    """How many values one scale is of: of a weight, or of a sample's activations; unknown sizes count once."""
    if placement.kind == "activation":
        shape = (graph.tensors[placement.tensor].shape or ())[1:]
    else:
        shape = graph.weights[constant_name(graph, placement.site)].shape
    total = prod(size for size in shape if isinstance(size, int))
    return max(total // max(encoding.scale.size, 1), 1)
