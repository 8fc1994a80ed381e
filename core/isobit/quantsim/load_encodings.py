"""Encodings from a file or another tool put on a simulator: mapped to its plan, checked, then set all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from isobit.calibration.fitting import apart_in_file
from isobit.calibration.resolve import bias_encoding
from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import Lpbq, PerBlock, PerChannel, PerTensor
from isobit.encodings.same_levels import same_levels
from isobit.errors import EncodingError, did_you_mean
from isobit.graph.graph import Graph
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.plan import Placement, Plan, constant_name
from isobit.quantsim.simulation import Simulation

_ADDED = "the layer has no bias of its own here; a correction gave it one, whose scale follows from input and weight"


@dataclass(frozen=True)
class LoadReport:
    """What became of the encodings that were loaded.

    `ignored` says for each entry that was not used why; `missing` are the quantized sites that the file says nothing
    of; `changed` are the formats that the file set instead of the target's.
    """

    loaded: tuple[Site, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[Site, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} encodings loaded, {len(self.missing)} sites without one"]
        lines += [f"not used: {name}: {why}" for name, why in self.ignored.items()]
        lines += [f"without an encoding: {site}" for site in self.missing]
        lines += [f"format of {name}: {text}" for name, text in self.changed.items()]
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Mapped:
    """Encodings on the sites of a plan, in the plan's formats, and all that did not fit.

    `added` are biases that the corrections of another simulator added, and this model does not have: nothing is lost.
    """

    encodings: dict[Site, Encoding]
    ignored: dict[str, str]
    added: dict[str, str]
    formats: dict[str, str]  # formats of the file that the plan does not have, by tensor or constant
    conflicts: dict[str, str]


def load_encodings(
    simulation: Simulation, encodings: Encodings, where: str, *, strict: bool, partial: bool, freeze: bool
) -> LoadReport:
    """Put encodings on a simulator; `QuantSim.load_encodings` says what the settings mean, `where` their origin."""
    config, plan = simulation.config, simulation.plan
    apart = apart_in_file(simulation.graph, plan, encodings)
    if apart:
        plan = simulation.place(simulation.graph, config, apart)
    mapped = map_to_plan(encodings, simulation.graph, plan)
    if strict:
        unmapped = [name for name in encodings.unmapped if not _is_added_bias(name, simulation.graph)]
        _refuse(mapped, unmapped, simulation.target.name)
    changed = mapped.formats
    if changed:  # a user who loads a file asks for its formats
        config = replace(config, overrides={**(config.overrides or {}), **changed})
        plan = simulation.place(simulation.graph, config, apart)
        mapped = map_to_plan(encodings, simulation.graph, plan)
        mapped.ignored.update({name: f"the plan cannot give it {text}" for name, text in mapped.formats.items()})
    if not partial:
        float_names = {
            _name(simulation.graph, plan.placements[site]): None for site in _missing(plan, mapped.encodings)
        }
        if float_names:
            config = replace(config, overrides={**(config.overrides or {}), **float_names})
            plan = simulation.place(simulation.graph, config, apart)
            mapped = map_to_plan(encodings, simulation.graph, plan)
    crossed = _across_the_axis(simulation.graph, plan, mapped.encodings)
    if crossed and strict:
        name, why = next(iter(crossed.values()))
        raise EncodingError(f"{name!r}: {why}")
    for site, (name, why) in crossed.items():
        del mapped.encodings[site]
        mapped.ignored[name] = why
    _check_constants(simulation.graph, plan, mapped.encodings)
    everything = _with_the_rest(plan, mapped.encodings, simulation.encodings if partial else Encodings())
    missing = tuple(site for site in plan.placements if site not in everything)
    simulation.adopt(plan, config, everything, f"encodings of {where}")
    if freeze:
        simulation.freeze(mapped.encodings)
    ignored = {**dict.fromkeys(encodings.unmapped, "the model has no such name"), **mapped.added, **mapped.ignored}
    return LoadReport(tuple(mapped.encodings), ignored, missing, changed, encodings.notes)


def map_to_plan(encodings: Mapping[Site, Encoding], graph: Graph, plan: Plan) -> Mapped:
    """Each encoding on the sites of the plan that it speaks of; one tensor of a tied group speaks for all of it."""
    mapped = Mapped({}, {}, {}, {}, {})
    groups: dict[str, tuple[Site, Encoding]] = {}
    members = plan.groups()
    for site, encoding in encodings.items():
        placements = list(_placements(site, graph, plan))
        if not placements and _is_added_bias(str(site), graph):
            mapped.added[str(site)] = _ADDED
        elif not placements:
            mapped.ignored[str(site)] = _why_not(site, graph, plan)
        for placement in placements:
            fitted = _fitted(encoding, placement, graph)
            if fitted is None:
                problem = f"{encoding.spec} in the file, {placement.spec} in the plan"
                if placement.kind == "bias":
                    mapped.ignored[str(site)] = f"a bias has the format of the plan: {problem}"
                    mapped.conflicts[str(site)] = problem
                else:
                    mapped.formats[_name(graph, placement)] = str(encoding.spec)
                continue
            if placement.kind != "activation":
                mapped.encodings[placement.site] = fitted
                continue
            first, agreed = groups.setdefault(placement.group, (site, fitted))
            if agreed != fitted:
                problem = f"the target gives it the encoding of {str(first)!r}, and the file has another"
                mapped.ignored[str(site)] = mapped.conflicts[str(site)] = problem
            for member in members[placement.group]:
                mapped.encodings.setdefault(member.site, agreed)
    return mapped


def _placements(site: Site, graph: Graph, plan: Plan) -> Iterator[Placement]:
    """The placements that an entry for `site` speaks of: its own, or those of its single readers."""
    if site in plan.placements:
        yield plan.placements[site]
    elif isinstance(site, Input):
        name = (graph.node(site.node).input(site.index) or "") if graph.has_site(site) else ""
        whole = Weight(name) if name in graph.weights else Tensor(name)
        if whole in plan.placements:
            yield plan.placements[whole]
    else:
        for placement in plan.placements.values():
            if isinstance(placement.site, Input) and graph.node(placement.site.node).input(placement.site.index) == str(
                site
            ):
                yield placement


def _fitted(encoding: Encoding, placement: Placement, graph: Graph) -> Encoding | None:
    """The encoding in the placement's format, or None where the format has other values."""
    granularity = placement.spec.granularity
    if isinstance(granularity, PerChannel) and isinstance(encoding.spec.granularity, PerTensor):
        shape = graph.weights[constant_name(graph, placement.site)].shape  # each channel gets the one scale
        axis, count = placement.channel_axis, shape[placement.channel_axis] if shape else 1
        scale, zero_point = np.broadcast_to(encoding.scale, (count,)), np.broadcast_to(encoding.zero_point, (count,))
        encoding = Encoding(encoding.spec.with_granularity(granularity), scale, zero_point, axis)
    elif isinstance(granularity, PerTensor) and isinstance(encoding.spec.granularity, PerChannel):
        if encoding.scale.size != 1:
            return None
        bare = encoding.spec.with_granularity(granularity)  # a single channel is the whole tensor
        encoding = Encoding(bare, encoding.scale.reshape(()), encoding.zero_point.reshape(()))
    elif isinstance(granularity, PerChannel) and isinstance(encoding.spec.granularity, PerBlock):
        encoding = _by_channel(encoding, placement.channel_axis)
    return same_levels(encoding, placement.spec)


def _by_channel(encoding: Encoding, axis: int) -> Encoding:
    """One block a channel, the same along all other axes, is a scale a channel; anything else stays as it is."""
    first = tuple(slice(None) if i == axis else slice(0, 1) for i in range(encoding.scale.ndim))
    scale, zero_point = encoding.scale[first], encoding.zero_point[first]
    if np.any(encoding.scale != scale) or np.any(encoding.zero_point != zero_point):
        return encoding
    spec = encoding.spec.with_granularity(PerChannel())
    return Encoding(spec, scale.reshape(-1), zero_point.reshape(-1), axis)


def _name(graph: Graph, placement: Placement) -> str:
    """What an override calls a placement."""
    return placement.tensor or constant_name(graph, placement.site)


def _is_added_bias(name: str, graph: Graph) -> bool:
    """Whether this is the name of a bias that a correction gave a layer: it has none here, or shares one."""
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose", "Linear"):
            bias = node.input(2)
            if name == (f"{node.name}.bias" if bias is None else f"{bias}@{node.name}"):
                return True
    return False


def _why_not(site: Site, graph: Graph, plan: Plan) -> str:
    if not graph.has_site(site):
        kind = "tensor" if isinstance(site, Tensor) else "input" if isinstance(site, Input) else "weight"
        return f"the model has no such {kind}{did_you_mean(str(site), [*graph.tensors, *graph.weights])}"
    return f"it is not quantized: {plan.floats.get(str(site), 'the plan has no quantizer there')}"


def _refuse(mapped: Mapped, unmapped: Iterable[str], target: str) -> None:
    """The error of strict loading, naming all that does not fit."""
    problems = [f"{name!r}: the model has no such name" for name in unmapped]
    problems += [f"{name!r}: {why}" for name, why in mapped.ignored.items()]
    problems += [f"{name!r}: the file says {text}, the plan another format" for name, text in mapped.formats.items()]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise EncodingError(
            f"{len(problems)} encodings do not fit the model: {'; '.join(problems[:3])}{more}; "
            f"the simulator is for target {target!r}: give it the target of the file (isobit.quantize takes "
            "'onnxruntime-cpu' unless said), or load with strict=False to take what fits and the file's formats"
        )


def _missing(plan: Plan, encodings: Mapping[Site, Encoding]) -> list[Site]:
    """Sites without an encoding, biases left out: theirs follow from others."""
    return [site for site, placement in plan.placements.items() if site not in encodings and placement.kind != "bias"]


def _across_the_axis(graph: Graph, plan: Plan, encodings: Mapping[Site, Encoding]) -> dict[Site, tuple[str, str]]:
    """Constants whose scales lie along another axis than that of the graph: name and reason."""
    crossed = {}
    for site, encoding in encodings.items():
        placement = plan.placements[site]
        granularity = encoding.spec.granularity
        if placement.kind == "activation" or not isinstance(granularity, PerChannel | PerBlock | Lpbq):
            continue
        own_axis = placement.channel_axis if isinstance(granularity, PerChannel) else placement.block_axis
        if encoding.axis != own_axis:
            why = f"its scales lie along axis {encoding.axis}, in the graph along {own_axis}"
            crossed[site] = constant_name(graph, site), why
    return crossed


def _check_constants(graph: Graph, plan: Plan, encodings: Mapping[Site, Encoding]) -> None:
    """Refuse scales that do not fit the constant."""
    for site, encoding in encodings.items():
        if plan.placements[site].kind == "activation":
            continue
        name = constant_name(graph, site)
        try:
            encoding.broadcast(graph.weights[name].shape)
        except EncodingError as error:
            raise EncodingError(f"{name!r}: {error}") from error


def _with_the_rest(plan: Plan, loaded: Mapping[Site, Encoding], kept: Mapping[Site, Encoding]) -> dict[Site, Encoding]:
    """What was loaded, what stays as it was, and the biases whose scales follow from both."""
    encodings = {site: encoding for site, encoding in kept.items() if site in plan.placements}
    for site, encoding in list(encodings.items()):
        if same_levels(encoding, plan.placements[site].spec) is None:  # its format has changed
            del encodings[site]
    encodings.update(loaded)
    for placement in plan.of_kind("bias"):
        follows = placement.scale_of is not None and all(source in encodings for source in placement.scale_of)
        if placement.site not in loaded and follows:
            encodings[placement.site] = bias_encoding(placement, encodings)
    return encodings
