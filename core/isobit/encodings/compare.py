"""What differs between two sets of encodings, where, and by how many steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from isobit.encodings.encoding import Encoding
from isobit.encodings.same_levels import same_levels
from isobit.graph.sites import Site, site_key


@dataclass(frozen=True)
class Difference:
    """One site that differs.

    `what` is ``only in A``, ``only in B``, ``format`` (other width, granularity or type of number), ``axis``, ``shape``
    or ``grid``. For ``grid`` `steps` is how far the real value of one and the same integer is apart at most, in steps
    of A, `channels` how many of the scales differ, and `zero_points` the largest difference of zero points.
    """

    site: Site
    what: str
    a: str = ""
    b: str = ""
    steps: float | None = None
    channels: int = 0
    zero_points: int = 0

    def record(self) -> dict[str, object]:
        """The difference as plain data."""
        kind, name, index = site_key(self.site)
        site = {"kind": kind, "name": name, **({"index": index} if kind == "input" else {}), "what": self.what}
        values = {"a": self.a, "b": self.b, "steps": self.steps}
        return {**site, **values, "channels": self.channels, "zero_points": self.zero_points}


def compare(a: Mapping[Site, Encoding], b: Mapping[Site, Encoding]) -> list[Difference]:
    """The differences, in the order of `a`, then what only `b` has; the same levels under two types do not differ."""
    differences = [Difference(site, "only in A", str(encoding.spec)) for site, encoding in a.items() if site not in b]
    for site, encoding in a.items():
        difference = _difference(site, encoding, b[site]) if site in b else None
        if difference is not None:
            differences.append(difference)
    order = {site: number for number, site in enumerate(a)}
    differences.sort(key=lambda difference: order[difference.site])
    return [*differences, *(Difference(site, "only in B", "", str(e.spec)) for site, e in b.items() if site not in a)]


def _difference(site: Site, a: Encoding, b: Encoding) -> Difference | None:
    b_in_a = same_levels(b, a.spec)
    if b_in_a is None and a.spec.is_integer and b.spec.is_integer:
        unsigned = "uint" if a.spec.dtype == "uint" or b.spec.dtype == "uint" else "int"
        b_in_a, a = _as_asymmetric(b, unsigned), _as_asymmetric(a, unsigned) or a
        b_in_a = None if b_in_a is None else same_levels(b_in_a, a.spec)
    if b_in_a is None:
        return Difference(site, "format", str(a.spec), str(b.spec))
    if a.axis != b_in_a.axis:
        return Difference(site, "axis", str(a.axis), str(b_in_a.axis))
    if a.scale.shape != b_in_a.scale.shape:
        return Difference(site, "shape", str(a.scale.shape), str(b_in_a.scale.shape))
    differs = (a.scale != b_in_a.scale) | (a.zero_point != b_in_a.zero_point)
    if not np.any(differs):
        return None
    zero = np.abs(a.zero_point.astype(np.int64) - b_in_a.zero_point)
    steps = float(_distance(a, b_in_a).max())
    return Difference(site, "grid", _shown(a), _shown(b_in_a), steps, int(differs.sum()), int(zero.max()))


def _as_asymmetric(encoding: Encoding, dtype: str) -> Encoding | None:
    """The same levels in an asymmetric type, to compare zero points that one of two formats cannot have."""
    if encoding.spec.strict:
        return None
    return same_levels(encoding, replace(encoding.spec, dtype=dtype, symmetric=False))


def _distance(a: Encoding, b: Encoding) -> np.ndarray:
    """The largest distance of two grids' values for one integer, in steps of `a`."""
    if not a.spec.is_integer:
        return np.abs(a.scale.astype(np.float64) - b.scale) / a.scale
    ends = (a.spec.q_min, a.spec.q_max)
    values = [[(q - e.zero_point.astype(np.float64)) * e.scale.astype(np.float64) for q in ends] for e in (a, b)]
    return np.asarray(np.max(np.abs(np.asarray(values[0]) - np.asarray(values[1])), axis=0) / a.scale)


def _shown(encoding: Encoding) -> str:
    if encoding.scale.size == 1:
        return f"{encoding.scale.reshape(-1)[0]:.6g} @ {encoding.zero_point.reshape(-1)[0]}"
    return f"{encoding.scale.min():.4g}..{encoding.scale.max():.4g} ({encoding.scale.size} scales)"
