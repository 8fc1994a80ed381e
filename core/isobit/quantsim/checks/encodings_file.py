"""Whether an export says all that its target needs: a runtime makes up the encodings that it misses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from isobit.encodings.encoding import Encoding
from isobit.encodings.same_levels import same_levels
from isobit.errors import OutputError
from isobit.formats.format import EncodingsFormat
from isobit.formats.names import Names
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.plan import Placement, Plan


def check_file(
    path: Path, form: EncodingsFormat, encodings: Mapping[Site, Encoding], names: Names | None, plan: Plan
) -> None:
    """Read an encodings file back and raise OutputError when a site of the plan is not in it with its encoding."""
    in_file = form.read(path, names)
    groups = plan.groups()
    for site, placement in plan.placements.items():
        if placement.spec.type_name in form.omitted_types:
            continue
        may_be_omitted = form.omits_moved_tensors and not placement.simulated
        tied: tuple[Placement, ...] = tuple(groups.get(placement.group, ())) if may_be_omitted else ()
        sites = [alias for each in (site, *(member.site for member in tied)) for alias in _aliases(each, names)]
        written = next((in_file[alias] for alias in sites if alias in in_file), None)
        if written is None:
            raise OutputError(
                f"{path.name} has no encoding for {str(site)!r}, which the target quantizes: the runtime would make "
                f"one up; leave it in float (exclude or overrides={{{str(site)!r}: None}}) or export in another format"
            )
        if not holds(written, encodings[site]):
            raise OutputError(
                f"{path.name} has another encoding for {str(site)!r} than the simulator: {written!r}, not "
                f"{encodings[site]!r}; this is a bug in format {form.name!r}"
            )


def holds(written: Encoding, simulated: Encoding) -> bool:
    """Whether both have the same scales, and `written` at least the levels of `simulated`: strict grids may widen."""
    written = same_levels(written, simulated.spec) or written
    return bool(
        written.scale.size == simulated.scale.size
        and (written.scale.reshape(-1) == simulated.scale.reshape(-1)).all()
        and written.minimum.min() <= simulated.minimum.min()
        and written.maximum.max() >= simulated.maximum.max()
    )


def _aliases(site: Site, names: Names | None) -> list[Site]:
    """A site, and the whole tensor or constant for formats that know no single readers."""
    if not isinstance(site, Input) or names is None:
        return [site]
    name = names.graph.node(site.node).input(site.index) or ""
    return [site, Tensor(name), Weight(name)]
