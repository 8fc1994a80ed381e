"""Whether an export says all that its target needs: a runtime makes up the encodings that it misses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from isobit.encoding import Encoding
from isobit.errors import OutputError
from isobit.formats.names import Names
from isobit.plan import Plan
from isobit.plugins import registry
from isobit.same_levels import same_levels
from isobit.sites import Input, Site, Tensor, Weight

#: Formats whose files leave these out by their nature.
LEFT_OUT = {"aimet-0.6.1": ("int32",), "aimet-1.0.0": ("int32",), "aimet-2.0.0": ("float16", "bfloat16")}
#: Formats that leave out tensors which only hold values of another one of their tie.
TIED = ("aimet-0.6.1", "aimet-1.0.0")


def check_file(path: Path, form: str, encodings: Mapping[Site, Encoding], names: Names | None, plan: Plan) -> None:
    """Read an encodings file back and raise OutputError when a site of the plan is not in it with its encoding."""
    read = registry().formats()[form].read(path, names)
    groups = plan.groups()
    for site, placement in plan.placements.items():
        if placement.spec.type_name in LEFT_OUT.get(form, ()):
            continue
        tied = groups.get(placement.group, ()) if form in TIED and not placement.simulated else ()
        sites = [alias for each in (site, *(member.site for member in tied)) for alias in _aliases(each, names)]
        found = next((read[alias] for alias in sites if alias in read), None)
        if found is None:
            raise OutputError(
                f"{path.name} has no encoding for {str(site)!r}, which the target quantizes: the runtime would make "
                f"one up; leave it in float (exclude or overrides={{{str(site)!r}: None}}) or export in another format"
            )
        if not same_values(found, encodings[site]):
            raise OutputError(
                f"{path.name} has another encoding for {str(site)!r} than the simulator: {found!r}, not "
                f"{encodings[site]!r}; this is a bug in format {form!r}"
            )


def same_values(found: Encoding, wanted: Encoding) -> bool:
    """Whether two encodings have the same scales and, at least, the levels of `wanted`: strict grids may be wider."""
    moved = same_levels(found, wanted.spec) or found
    return bool(
        moved.scale.size == wanted.scale.size
        and (moved.scale.reshape(-1) == wanted.scale.reshape(-1)).all()
        and moved.minimum.min() <= wanted.minimum.min()
        and moved.maximum.max() >= wanted.maximum.max()
    )


def _aliases(site: Site, names: Names | None) -> list[Site]:
    """A site, and the whole tensor or constant for formats that know no single readers."""
    if not isinstance(site, Input) or names is None:
        return [site]
    name = names.graph.node(site.node).input(site.index) or ""
    return [site, Tensor(name), Weight(name)]
