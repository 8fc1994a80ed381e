"""`isobit.plan`: what quantizing a model for a target would bring, in seconds and without data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from os import PathLike
from typing import Any

from isobit.budget.cost_model import element_bytes, milliseconds, open_inputs
from isobit.data import Dataset
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import IsobitError
from isobit.forecast.example_sizes import one_sample, with_sizes_of
from isobit.forecast.float_pass import FloatPass, float_pass
from isobit.forecast.forecast import Forecast, NodeForecast, TimeForecast
from isobit.forecast.recipe_cost import recipe_forecast
from isobit.graph.graph import Graph, Node
from isobit.graph.multiply_adds import multiply_adds
from isobit.graph.ops import RECURRENT, WEIGHTED
from isobit.graph.sites import Input, Weight
from isobit.placement.coverage import Coverage
from isobit.plugins import registry
from isobit.quantsim.quantize import open_simulator
from isobit.quantsim.simulation import Simulation
from isobit.search.cost_tables import Milliseconds
from isobit.search.formats import Candidate
from isobit.search.groups import Groups
from isobit.search.operations import costs_of
from isobit.targets.costs import Costs
from isobit.targets.target import Target
from isobit.techniques.fold_batch_norms import FoldBatchNorms

#: Said of an If whose branches hold weights, where no example was given.
_UNDECIDED = (
    "{name}: an input decides which of its branches runs, so that the weights of both count and the work of neither; "
    "isobit.plan(model, example_inputs) counts the one that runs on the example, as isobit.quantize does"
)

#: A float model that takes so many times as long as its operations do by the table has something else that counts.
_MUCH_LONGER = 2.0

#: Channels below which a convolution takes longer than tables say (they are of 64), and the part of the multiply-adds
#: that may be in such ones without a word.
_NARROW, _SOME = 32, 0.25

#: The part of the weights that operations without times may hold where a time is told.
_UNTIMED_WEIGHTS = 0.1


def plan(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | PathLike[str] | Target | None = None,
    samples: int = 256,
    **settings: Any,
) -> Forecast:
    """Say what `isobit.quantize` would do with a model, without data.

    Coverage, how each operation would run, conversions, the size of the weights and, where the target has a table of
    costs, the time of a sample; where the table gives no gain, none is promised. Then what every installed recipe takes
    with `samples` samples: passes, minutes and memory, for which the float model runs a few times on made-up values.
    Sizes that the model leaves open beside the batch, such as lengths, are those of the first sample of
    `example_inputs`, else 1. `target` and `settings` are those of `isobit.quantize`; batch norms are folded first, as
    there. Raises FormatError for a format that the target lacks, DataError for an example that does not fit.
    """
    sim = open_simulator(model, example_inputs, target=target, **settings)
    sim.apply(FoldBatchNorms())
    simulation, graph, sample = sim.simulation, sim.graph, None
    if example_inputs is not None:
        sample = one_sample(graph, Dataset([example_inputs], graph).first())
        graph = with_sizes_of(simulation.model, sample) if open_inputs(graph) else graph
    groups = Groups(simulation, graph)
    nodes = tuple(_node(simulation, groups, node) for node in graph.nodes)
    times, no_time = _times(simulation, groups, nodes)
    quantize, dequantize = _conversions(groups)
    notes = [*sim.report.notes, *_open_sizes(graph)]
    if example_inputs is None:
        notes += [_UNDECIDED.format(name=node.name) for node in nodes if node.op == "If" and node.bytes_before]
    weights = sum(node.bytes_before for node in nodes)
    in_table, processor = (times[0].in_float, times[0].processor) if times else (None, "")
    float_time = float_pass(simulation.model, weights, in_table, processor, sample)
    recipes = []
    for name in sorted(registry().recipes()):
        try:
            recipes.append(recipe_forecast(simulation, registry().recipe(name), samples, weights, float_time, graph))
        except IsobitError as error:  # a recipe of another package that has a fault
            notes.append(f"nothing is told of recipe {name!r}: {error}")
    return Forecast(
        sim.target.name,
        Coverage.of(graph, sim.plan),
        nodes,
        quantize,
        dequantize,
        weights,
        sum(node.bytes_after for node in nodes),
        times,
        no_time,
        tuple(_unknown(graph, max(time.in_float for time in times), float_time)) if times else (),
        float_time,
        tuple(recipes),
        tuple(notes),
    )


def _open_sizes(graph: Graph) -> list[str]:
    """What is said where times and multiply-adds are those of inputs of size 1."""
    names = open_inputs(graph)
    if not names:
        return []
    what = f"{', '.join(names)}: sizes that are left open beside the batch count as 1, in times and multiply-adds"
    return [f"{what}; those of a sample count where one is given (example_inputs, --example)"]


def _unknown(graph: Graph, in_float: float, float_time: FloatPass) -> Iterator[str]:
    """What the times leave out: sizes, and what the float model was seen to take beside its operations.

    Those take `in_float` milliseconds by the slowest table.
    """
    if names := open_inputs(graph):
        yield f"with the sizes of a sample in place of the open ones of {', '.join(names)} the ratio may be another"
    convolutions = {
        node.name: multiply_adds(graph, node, of_one=True) or 0 for node in graph.nodes if node.op == "Conv"
    }
    narrow = sum(count for name, count in convolutions.items() if _is_narrow(graph, graph.node(name)))
    if narrow > _SOME * sum(convolutions.values()):
        share = f"{100 * narrow / sum(convolutions.values()):.0f} %"
        yield (
            f"{share} of the multiply-adds of convolutions are in grouped ones or ones of fewer than {_NARROW} "
            "channels, which have no times of their own in the table and may gain nothing"
        )
    took = float_time.milliseconds
    if took is not None and in_float > 0 and took > _MUCH_LONGER * in_float:
        yield (
            f"here a sample takes {took / in_float:.2g} times as long in float as these operations do by the "
            "table: the rest, such as starting each of them, is in neither figure, and may shrink or grow with "
            "quantization (isobit quantize measures both files)"
        )


def _is_narrow(graph: Graph, node: Node) -> bool:
    """Whether a convolution is grouped, or has fewer channels than those that tables are made with."""
    info = graph.weights.get(node.input(1) or "")
    return node.attributes.get("group", 1) != 1 or (info is not None and min(info.shape[:2]) < _NARROW)


def _node(simulation: Simulation, groups: Groups, node: Node) -> NodeForecast:
    graph, placed = groups.graph, simulation.plan.placements
    runs, why = "integers", ""
    before = after = 0.0
    is_stored = False
    for index, name in enumerate(node.inputs):
        if name is None or name not in graph.weights or not graph.weights[name].is_float:
            continue
        first = graph.uses(name)[0]
        if (first.node.name, first.index) != (node.name, index):
            continue  # a constant that several read is counted at the first
        info = graph.weights[name]
        size = prod(info.shape)
        before += size * element_bytes(info.dtype)
        site = next((s for s in (Input(node.name, index), Weight(name)) if s in placed), None)
        after += size * (element_bytes(info.dtype) if site is None else placed[site].spec.bits / 8)
        is_stored |= site is not None and placed[site].kind == "weight"
    if groups.of_node(node) is None or node.name in groups.weights_only:
        runs = "weights in integers" if is_stored else "float"
        floats = (simulation.plan.floats.get(name, "") for name in node.outputs)
        why = next((reason for reason in floats if reason), "")
    return NodeForecast(node.name, node.op, runs, why, multiply_adds(graph, node) or 0, before, after)


def _conversions(groups: Groups) -> tuple[int, int]:
    """How many tensors are rounded for readers on integers, and how many on a grid are read or returned in float."""
    graph = groups.graph
    to_integers = to_float = 0
    for name in graph.tensors:
        if groups.of_tensor(name) is None:
            continue
        producer = graph.producer(name)
        on_integers = producer is not None and groups.of_node(producer) is not None
        to_integers += not (on_integers and name in groups.whole)
        readers = [groups.of_node(use.node) for use in graph.uses(name)]
        to_float += name in groups.whole and (None in readers or name in graph.output_tensors)
    return to_integers, to_float


def _times(
    simulation: Simulation, groups: Groups, nodes: Sequence[NodeForecast]
) -> tuple[tuple[TimeForecast, ...], str]:
    """The time of a sample by each table of the target, or why it is not told."""
    target, config, graph = simulation.target, simulation.config, groups.graph
    tables = [table for table in target.costs if table.multiply and table.integer_multiply]
    if not tables:
        return (), f"not told: target {target.name!r} has no times of multiply-adds (docs/targets.md, Costs)"
    own = Candidate(
        "own",
        target.activation_format(config.activations),
        target.weights if config.weights is None else QuantSpec.parse(config.weights),
    )
    formats, times = (own, Candidate("float", None, None)), []
    for table in tables:
        costs = costs_of(groups, formats, Milliseconds(table))
        rest = sum(_in_float(graph, node, table) for node in graph.nodes if groups.of_node(node) is None)
        quantized, in_float = (costs.of([index] * len(groups.all)) + rest for index in (0, 1))
        untimed = [told for node, told in zip(graph.nodes, nodes, strict=True) if not _is_timed(graph, node, table)]
        unknown, held = Counter(node.op for node in untimed), sum(node.bytes_before for node in untimed)
        if in_float <= 0 or held > _UNTIMED_WEIGHTS * sum(node.bytes_before for node in nodes):
            share = f", which hold {held / 1e6:.3g} MB of the weights" if held else ""
            return (), f"not told: no times are known of {', '.join(unknown) or 'any operation'}{share}"
        times.append(TimeForecast(table.processor, in_float, quantized, dict(unknown)))
    return tuple(times), ""


def _in_float(graph: Graph, node: Node, table: Costs) -> float:
    """What an operation takes that runs in float in either file."""
    return milliseconds(graph, node, float(multiply_adds(graph, node, of_one=True) or 0), table)


def _is_timed(graph: Graph, node: Node, table: Costs) -> bool:
    """Whether an operation is in the table, or takes no time to speak of: it works on settings, or changes views."""
    if node.op in WEIGHTED | RECURRENT:
        return node.op in table.multiply
    moves = ("Reshape", "Transpose", "Slice", "Split", "Gather", "Relu", "Clip", "Shape", "Cast", "Pad", "Expand")
    is_float = any(name in graph.tensors and graph.is_float(name) for name in node.outputs)
    return node.op in table.floats or node.op in moves or not is_float
