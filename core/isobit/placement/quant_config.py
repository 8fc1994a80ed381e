"""What the user asked for beyond the target's defaults, and which names it reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from isobit.edits.edit import Removed
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import FormatError, did_you_mean
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input


@dataclass(frozen=True)
class QuantConfig:
    """Formats, overrides and exclusions.

    `overrides` maps patterns of tensor or weight names (or one input, ``node[1]``) to a format, or None for float;
    the last match wins. `exclude` holds patterns of node names or op types that stay in float altogether. A pattern is
    a name as it is, or one with ``*`` and ``?``.
    """

    weights: str | QuantSpec | None = None
    activations: str | QuantSpec | None = None
    overrides: Mapping[str, str | QuantSpec | None] | None = None
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        # a single text is one pattern, not a sequence of characters
        object.__setattr__(self, "exclude", (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude))
        for what, patterns in (("overrides", self.overrides or {}), ("exclude", self.exclude)):
            for pattern in patterns:
                if not isinstance(pattern, str):
                    raise FormatError(f"{what}: a pattern is a text such as 'conv1*', not {pattern!r}")

    def override(self, name: str) -> tuple[bool, str | QuantSpec | None]:
        """Whether an override names this tensor or weight, and its format."""
        last_match: tuple[bool, str | QuantSpec | None] = (False, None)
        for pattern, override_format in (self.overrides or {}).items():
            if matches(name, pattern):
                last_match = (True, override_format)
        return last_match

    def carried(self, removed: Sequence[Removed], graph: Graph) -> QuantConfig:
        """The same wishes for a graph of which nodes were removed: what named one means what stands in its place.

        A batch norm that was folded is part of the layer before it. An excluded operation type means nodes that are
        still there.
        """
        overrides: dict[str, str | QuantSpec | None] = {}
        for pattern, override_format in (self.overrides or {}).items():
            names = [_now(gone.tensor, removed) for gone in removed if matches(gone.tensor, pattern)]
            for name in (pattern, *(name for name in names if name in graph.tensors)):
                overrides.pop(name, None)  # the last one wins, so it comes last
                overrides[name] = override_format
        producers = [
            producer.name
            for gone in removed
            if any(matches(gone.node, pattern) for pattern in self.exclude)
            and (producer := graph.producer(_now(gone.tensor, removed))) is not None
        ]
        return replace(self, overrides=overrides, exclude=(*self.exclude, *dict.fromkeys(producers)))

    def excludes(self, node: Node) -> bool:
        """Whether a node is to stay in float."""
        return any(matches(node.name, pattern) or node.op == pattern for pattern in self.exclude)

    def single_inputs(self, graph: Graph) -> Iterable[tuple[Input, str, str | QuantSpec | None]]:
        """Overrides of one input of one node, with the text that named it."""
        sites = {str(Input(node.name, i)): Input(node.name, i) for node in graph.nodes for i in range(len(node.inputs))}
        for pattern, override_format in (self.overrides or {}).items():
            if pattern in sites:
                yield sites[pattern], pattern, override_format

    def check(self, graph: Graph, removed: Sequence[Removed] = ()) -> None:
        """Raise FormatError for a pattern that reaches nothing in `graph`, and reached nothing that was removed.

        The bias that folding gives a layer without one is known before it is there.
        """
        names = [*graph.tensors, *graph.weights, *(gone.tensor for gone in removed), *_biases_to_be(graph)]
        single = {pattern for _, pattern, _ in self.single_inputs(graph)}
        for pattern in self.overrides or {}:
            if pattern not in single and not any(matches(name, pattern) for name in names):
                raise FormatError(f"override {pattern!r} matches no tensor or weight{did_you_mean(pattern, names)}")
        nodes = [text for node in graph.nodes for text in (node.name, node.op)]
        nodes += [text for gone in removed for text in (gone.node, gone.op)]
        for pattern in self.exclude:
            if not any(matches(name, pattern) for name in nodes):
                raise FormatError(f"exclude {pattern!r} matches no node name or op type{did_you_mean(pattern, nodes)}")


def _now(name: str, removed: Sequence[Removed]) -> str:
    """The tensor that stands in the place of one that was removed, through every removal."""
    for gone in removed:
        if gone.tensor == name:
            name = gone.now
    return name


def _biases_to_be(graph: Graph) -> Iterable[str]:
    layers = (node for node in graph.nodes if node.op in ("Conv", "ConvTranspose", "Linear"))
    return (f"{node.name}.bias" for node in layers if node.input(2) is None)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern reaches a name; names with brackets are reached by themselves."""
    return name == pattern or fnmatchcase(name, pattern)
