"""What the user asked for beyond the target's defaults, and which names it reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

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

    def excludes(self, node: Node) -> bool:
        """Whether a node is to stay in float."""
        return any(matches(node.name, pattern) or node.op == pattern for pattern in self.exclude)

    def single_inputs(self, graph: Graph) -> Iterable[tuple[Input, str, str | QuantSpec | None]]:
        """Overrides of one input of one node, with the text that named it."""
        sites = {str(Input(node.name, i)): Input(node.name, i) for node in graph.nodes for i in range(len(node.inputs))}
        for pattern, override_format in (self.overrides or {}).items():
            if pattern in sites:
                yield sites[pattern], pattern, override_format

    def check(self, graph: Graph) -> None:
        """Raise FormatError for a pattern that reaches nothing in `graph`."""
        names = [*graph.tensors, *graph.weights]
        single = {pattern for _, pattern, _ in self.single_inputs(graph)}
        for pattern in self.overrides or {}:
            if pattern not in single and not any(matches(name, pattern) for name in names):
                raise FormatError(f"override {pattern!r} matches no tensor or weight{did_you_mean(pattern, names)}")
        nodes = [text for node in graph.nodes for text in (node.name, node.op)]
        for pattern in self.exclude:
            if not any(matches(name, pattern) for name in nodes):
                raise FormatError(f"exclude {pattern!r} matches no node name or op type{did_you_mean(pattern, nodes)}")


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern reaches a name; names with brackets are reached by themselves."""
    return name == pattern or fnmatchcase(name, pattern)
