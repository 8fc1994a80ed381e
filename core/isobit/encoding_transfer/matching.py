"""Which node of one graph corresponds to which of another: by content and structure, never by names or guesses.

Nodes that one fingerprint tells apart on both sides are anchors; from them the match spreads along inputs and readers.
Nodes that symmetry makes equal stay open. The method is that of binary diffing: Dullien and Rolles, "Graph-based
comparison of executable objects", SSTIC 2005; the fingerprints are colours of Weisfeiler and Lehman's refinement
(1968).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from isobit.encoding_transfer.skeleton import COMMUTATIVE, Reader, Skeleton, digest, is_anchor
from isobit.graph.graph import Node


class Matching:
    """Pairs of nodes, source to target, and what follows for values and inputs."""

    def __init__(self, source: Skeleton, target: Skeleton) -> None:
        self.source, self.target = source, target
        self.to_source: dict[str, str] = {}  # node of the source, by node of the target
        self.to_target: dict[str, str] = {}  # the other way round, without copies
        self.open: list[tuple[tuple[str, ...], tuple[str, ...]]] = []  # groups that nothing tells apart: source, target
        self.order: dict[str, Mapping[int, int]] = {}  # by node of the target: its input to the source's
        self._inputs: dict[str, str] = {}  # model inputs, target to source
        for keys in self._fingerprints():
            self._anchor(*keys)
        self._find_open()
        self._find_copies()
        self.values = self._values()

    # --- anchors ---------------------------------------------------------------------------------------------------

    def _fingerprints(self) -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
        """Fingerprints of the nodes of both sides, from those that say most to those that say least."""
        sides = (self.source, self.target)
        for strict in (True, False):
            complete = [_whole(side, strict) for side in sides]
            yield complete[0], complete[1]
        past = [_past(side) for side in sides]
        yield past[0], past[1]
        future = [side.backward(strict=False) for side in sides]
        yield future[0], future[1]
        alone = [_anchored(side) for side in sides]
        yield alone[0], alone[1]

    def _anchor(self, source: Mapping[str, str], target: Mapping[str, str]) -> None:
        """Match the nodes that a fingerprint tells apart, and spread from each."""
        in_source = _grouped((name, key) for name, key in source.items() if name not in self.to_target)
        in_target = _grouped((name, key) for name, key in target.items() if name not in self.to_source)
        for key, names in in_source.items():
            target_names = in_target.get(key, [])
            if (
                len(names) == len(target_names) == 1
                and names[0] not in self.to_target
                and target_names[0] not in self.to_source
            ):
                self._spread(names[0], target_names[0])

    # --- spreading -------------------------------------------------------------------------------------------------

    def _spread(self, source: str, target: str) -> None:
        """Match a pair, and every pair that its inputs and readers then force."""
        waiting = [(source, target)]
        while waiting:
            source_name, target_name = waiting.pop()
            if source_name in self.to_target or target_name in self.to_source:
                continue
            self.to_source[target_name], self.to_target[source_name] = source_name, target_name
            source_node, target_node = self.source.nodes[source_name], self.target.nodes[target_name]
            waiting += self._along_inputs(source_node, target_node)
            for value, target_value in zip(source_node.outputs, target_node.outputs, strict=False):
                waiting += self._along_readers(value, target_value)

    def _along_inputs(self, source_node: Node, target_node: Node) -> list[tuple[str, str]]:
        order = self._input_order(source_node, target_node)
        if order is None:
            return []
        self.order[target_node.name] = order
        inputs, target_inputs = self.source.operands(source_node), self.target.operands(target_node)
        pairs = []
        for target_index, index in order.items():
            source_producer, target_producer = (
                self.source.producer(inputs[index]),
                self.target.producer(target_inputs[target_index]),
            )
            if source_producer is None and target_producer is None:
                self._inputs.setdefault(target_inputs[target_index], inputs[index])
                pairs += self._along_readers(inputs[index], target_inputs[target_index])
            elif (
                source_producer is not None
                and target_producer is not None
                and self._alike(source_producer, target_producer)
            ):
                pairs.append((source_producer.name, target_producer.name))
        return pairs

    def _input_order(self, source_node: Node, target_node: Node) -> dict[int, int] | None:
        """Input of the source's node by that of the target's; None where a commutative pair could be either way."""
        inputs, target_inputs = self.source.operands(source_node), self.target.operands(target_node)
        if source_node.op not in COMMUTATIVE or len(inputs) != 2 or len(target_inputs) != 2:
            if source_node.op in COMMUTATIVE and len(inputs) == len(target_inputs) == 1:
                return dict(zip(target_inputs, inputs, strict=True))
            return {index: index for index in target_inputs if index in inputs}
        i, j = target_inputs
        ways = [dict(zip((i, j), way, strict=True)) for way in (tuple(inputs), tuple(reversed(tuple(inputs))))]
        possible = [way for way in ways if all(self._may_be(inputs[way[k]], target_inputs[k]) for k in (i, j))]
        if len(set(inputs.values())) == 1 and len(set(target_inputs.values())) == 1:
            return ways[0]
        certain = [way for way in possible if any(self._are(inputs[way[k]], target_inputs[k]) for k in (i, j))]
        for chosen in (certain, possible):
            if len(chosen) == 1:
                return chosen[0]
        return None

    def _are(self, source: str, target: str) -> bool:
        """Whether two values are known to be one."""
        source_producer, target_producer = self.source.producer(source), self.target.producer(target)
        if source_producer is None or target_producer is None:
            return source_producer is None and target_producer is None and self._inputs.get(target) == source
        return self.to_source.get(target_producer.name) == source_producer.name

    def _may_be(self, source: str, target: str) -> bool:
        source_producer, target_producer = self.source.producer(source), self.target.producer(target)
        if source_producer is None or target_producer is None:
            return source_producer is None and target_producer is None and self._inputs.get(target, source) == source
        if source_producer.name in self.to_target or target_producer.name in self.to_source:
            return self.to_source.get(target_producer.name) == source_producer.name
        return self._alike(source_producer, target_producer)

    def _along_readers(self, source: str, target: str) -> list[tuple[str, str]]:
        """Readers that are the only ones of their kind on both sides."""
        in_source = self._unmatched(self.source, source, self.to_target)
        in_target = self._unmatched(self.target, target, self.to_source)
        return [
            (names[0], target_names[0])
            for kind, names in in_source.items()
            for target_names in [in_target.get(kind, [])]
            if len(names) == len(target_names) == 1
        ]

    def _unmatched(self, side: Skeleton, root: str, matched: Mapping[str, str]) -> dict[str, list[str]]:
        readers = [r for r in side.readers.get(root, ()) if r.node not in matched]
        kinds = ((r.node, self._kind(side, r)) for r in readers)
        return _grouped(dict.fromkeys(kinds))

    def _kind(self, side: Skeleton, reader: Reader) -> str:
        return digest((side.own(side.nodes[reader.node], strict=False), str(side.place(reader))))

    def _alike(self, source_node: Node, target_node: Node) -> bool:
        return source_node.op == target_node.op and self.source.own(source_node, strict=False) == self.target.own(
            target_node, strict=False
        )

    # --- what is left ----------------------------------------------------------------------------------------------

    def _find_open(self) -> None:
        """Nodes that no fingerprint tells apart, as many on both sides."""
        in_source, in_target = (_whole(side, False) for side in (self.source, self.target))
        source_groups = _grouped((name, key) for name, key in in_source.items() if name not in self.to_target)
        target_groups = _grouped((name, key) for name, key in in_target.items() if name not in self.to_source)
        for key, names in source_groups.items():
            if len(names) == len(target_groups.get(key, ())):
                self.open.append((tuple(names), tuple(target_groups[key])))

    def settle(self, group: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        """Pair the nodes of an open group in execution order: for one where every pairing gives the same encodings."""
        self.open.remove(group)
        for source_name, target_name in zip(*group, strict=True):
            self.to_source[target_name], self.to_target[source_name] = source_name, target_name
            self.settle_order(target_name)
        self.values = self._values()

    def settle_order(self, target: str) -> None:
        """Take the inputs of a matched node of the target in the order of the source's."""
        inputs = self.source.operands(self.source.nodes[self.to_source[target]])
        target_inputs = self.target.operands(self.target.nodes[target])
        self.order.setdefault(target, dict(zip(target_inputs, inputs, strict=False)))

    def _find_copies(self) -> None:
        """A node of the target that computes what a matched one computes has the same counterpart."""
        matched = {key: name for name, key in _past(self.source, strict=True).items() if name in self.to_target}
        unsure = {name for _, names in self.open for name in names}
        for name, key in _past(self.target, strict=True).items():
            if name not in self.to_source and name not in unsure and key in matched:
                self.to_source[name] = matched[key]
                self.settle_order(name)

    def _values(self) -> dict[str, str]:
        """The value of the source that each value of the target is: by who makes it, else by who reads it."""
        values = {**self._like_inputs(), **self._inputs}
        for target_name, source_name in self.to_source.items():
            values.update(
                zip(self.target.nodes[target_name].outputs, self.source.nodes[source_name].outputs, strict=False)
            )
        source_values: dict[str, set[str]] = {}
        for target_name, order in self.order.items():
            inputs = self.source.operands(self.source.nodes[self.to_source[target_name]])
            target_inputs = self.target.operands(self.target.nodes[target_name])
            for target_index, index in order.items():
                source_values.setdefault(target_inputs[target_index], set()).add(inputs[index])
        for root, candidates in source_values.items():
            if root not in values and len(candidates) == 1:
                values[root] = candidates.pop()
        return values

    def _like_inputs(self) -> dict[str, str]:
        """Model inputs that are the only ones of their type and size, whoever reads them."""
        kinds = [(side, side.forward(strict=False)) for side in (self.source, self.target)]
        in_source, in_target = (_grouped((name, kind[name]) for name in side.graph.inputs) for side, kind in kinds)
        alone = (key for key, names in in_source.items() if len(names) == len(in_target.get(key, ())) == 1)
        return {in_target[key][0]: in_source[key][0] for key in alone}


def _whole(side: Skeleton, strict: bool) -> dict[str, str]:
    """All that a node is computed from, and all that is computed from it."""
    past, future = _past(side, strict=strict), side.backward(strict=strict)
    return {name: digest((past[name], future[name])) for name in side.nodes}


def _past(side: Skeleton, *, strict: bool = False) -> dict[str, str]:
    forward = side.forward(strict=strict)
    return {name: forward[node.outputs[0]] for name, node in side.nodes.items()}


def _anchored(side: Skeleton) -> dict[str, str]:
    """The nodes with weights, by what these hold."""
    keys = {}
    for name, node in side.nodes.items():
        contents = [
            side.classes[n] for i, n in enumerate(node.inputs) if n in side.classes and n and is_anchor(node.op, i)
        ]
        if contents:
            keys[name] = digest((node.op, *contents))
    return keys


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by key."""
    groups: dict[str, list[str]] = {}
    for name, key in pairs:
        groups.setdefault(key, []).append(name)
    return groups
