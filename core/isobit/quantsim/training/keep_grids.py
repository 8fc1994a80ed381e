"""What training has learned of grids, for a model of which batch norms were folded or measured anew since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit import arithmetic
from isobit.calibration.resolve import bias_encoding, resolve_weights
from isobit.edits.edit import Removed
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import Lpbq, PerTensor
from isobit.graph.graph import Graph
from isobit.graph.sites import Site, Tensor
from isobit.placement.plan import Plan, constant_name

Factors = Mapping[str, NDArray[np.floating] | None]


def kept_encodings(
    graph: Graph,
    plan: Plan,
    learned: Mapping[Site, Encoding],
    rescaled: Factors,
    removed: Sequence[Removed],
    read: Callable[[str], NDArray[Any]],
) -> dict[Site, Encoding] | None:
    """The encodings of the plan of the edited `graph`, from those that were `learned` before; None where some lack.

    `rescaled` are weights whose output channels were multiplied, by these factors: scales a channel are multiplied too,
    so the integers stay. None stands for factors of another axis: such a grid follows from the values. A tensor that
    takes the place of one that was `removed` takes its grid.
    """
    known: dict[Site, Encoding] = {}
    for site, encoding in learned.items():
        if site not in plan.placements or not graph.has_site(site):
            continue
        name = "" if plan.placements[site].kind == "activation" else constant_name(graph, site)
        moved = _rescaled(encoding, rescaled[name]) if name in rescaled else encoding
        if moved is not None:
            known[site] = moved
    for gone in removed:  # in the order of the edits: the last that was folded into a tensor has its values
        if Tensor(gone.tensor) in learned and Tensor(gone.now) in plan.placements:
            known[Tensor(gone.now)] = learned[Tensor(gone.tensor)]
    known = {site: encoding for site, encoding in known.items() if encoding.spec == plan.placements[site].spec}
    known |= resolve_weights(graph, plan, read, frozen=known)
    for members in plan.groups().values():  # sites that are not simulated have the grid of their group
        shared = next((known[member.site] for member in members if member.site in known), None)
        if shared is None:
            return None
        known |= {member.site: shared for member in members if member.site not in known}
    for placement in plan.of_kind("bias"):
        if placement.scale_of is not None and all(site in known for site in placement.scale_of):
            known[placement.site] = bias_encoding(placement, known)
    return known if all(site in known for site in plan.placements) else None


def _rescaled(encoding: Encoding, factors: NDArray[np.floating] | None) -> Encoding | None:
    """The grid of a weight whose output channels, axis 0, were multiplied; None where it has no scale for each."""
    granularity = encoding.spec.granularity
    if factors is None or not encoding.spec.symmetric or isinstance(granularity, PerTensor | Lpbq):
        return None
    if encoding.scale.shape[0] != factors.size:
        return None
    sizes = np.abs(factors).reshape(-1, *(1,) * (encoding.scale.ndim - 1))
    scale = np.maximum(encoding.scale * sizes, arithmetic.SMALLEST_SCALE).astype(np.float32)
    return replace(encoding, scale=scale)
