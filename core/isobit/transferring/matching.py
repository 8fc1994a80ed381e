"""Which node of one graph is which of another: found by content and structure, never by names, and never guessed.

Nodes that one fingerprint tells apart on both sides are anchors; from them the match spreads along inputs and readers.
What symmetry leaves open is kept open. The method is that of binary diffing: Dullien and Rolles, "Graph-based
comparison of executable objects", SSTIC 2005; the fingerprints are colours of Weisfeiler and Lehman's refinement
(1968).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from isobit.graph import Node
from isobit.transferring.skeleton import COMMUTATIVE, Reader, Skeleton, digest, is_anchor


class Matching:
    """Pairs of nodes, source to target, and what follows for values and inputs."""

    def __init__(self, source: Skeleton, target: Skeleton) -> None:
        self.source, self.target = source, target
        self.nodes: dict[str, str] = {}  # target's to the source's
        self.twins: dict[str, str] = {}  # the source's to the target's, the other way round
        self.open: list[tuple[tuple[str, ...], tuple[str, ...]]] = []  # alike beyond telling apart: source, target
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
            whole = [_whole(side, strict) for side in sides]
            yield whole[0], whole[1]
        past = [_past(side) for side in sides]
        yield past[0], past[1]
        future = [side.backward(strict=False) for side in sides]
        yield future[0], future[1]
        alone = [_anchored(side) for side in sides]
        yield alone[0], alone[1]

    def _anchor(self, source: Mapping[str, str], target: Mapping[str, str]) -> None:
        """Match the nodes that a fingerprint tells apart, and spread from each."""
        ours = _grouped((name, key) for name, key in source.items() if name not in self.twins)
        theirs = _grouped((name, key) for name, key in target.items() if name not in self.nodes)
        for key, names in ours.items():
            others = theirs.get(key, [])
            if len(names) == len(others) == 1 and names[0] not in self.twins and others[0] not in self.nodes:
                self._spread(names[0], others[0])

    # --- spreading -------------------------------------------------------------------------------------------------

    def _spread(self, source: str, target: str) -> None:
        """Match a pair, and every pair that its inputs and readers then force."""
        waiting = [(source, target)]
        while waiting:
            a, b = waiting.pop()
            if a in self.twins or b in self.nodes:
                continue
            self.nodes[b], self.twins[a] = a, b
            first, second = self.source.nodes[a], self.target.nodes[b]
            waiting += self._along_inputs(first, second)
            for ours, theirs in zip(first.outputs, second.outputs, strict=False):
                waiting += self._along_readers(ours, theirs)

    def _along_inputs(self, a: Node, b: Node) -> list[tuple[str, str]]:
        order = self._input_order(a, b)
        if order is None:
            return []
        self.order[b.name] = order
        ours, theirs = self.source.operands(a), self.target.operands(b)
        found = []
        for theirs_index, ours_index in order.items():
            x, y = self.source.producer(ours[ours_index]), self.target.producer(theirs[theirs_index])
            if x is None and y is None:
                self._inputs.setdefault(theirs[theirs_index], ours[ours_index])
                found += self._along_readers(ours[ours_index], theirs[theirs_index])
            elif x is not None and y is not None and self._alike(x, y):
                found.append((x.name, y.name))
        return found

    def _input_order(self, a: Node, b: Node) -> dict[int, int] | None:
        """Which input of `a` each input of `b` is; None where a commutative pair could be either way round."""
        ours, theirs = self.source.operands(a), self.target.operands(b)
        if a.op not in COMMUTATIVE or len(ours) != 2 or len(theirs) != 2:
            if a.op in COMMUTATIVE and len(ours) == len(theirs) == 1:
                return dict(zip(theirs, ours, strict=True))
            return {index: index for index in theirs if index in ours}
        i, j = theirs
        ways = [dict(zip((i, j), way, strict=True)) for way in (tuple(ours), tuple(reversed(tuple(ours))))]
        fits = [way for way in ways if all(self._may_be(ours[way[k]], theirs[k]) for k in (i, j))]
        if len(set(ours.values())) == 1 and len(set(theirs.values())) == 1:
            return ways[0]
        certain = [way for way in fits if any(self._are(ours[way[k]], theirs[k]) for k in (i, j))]
        for chosen in (certain, fits):
            if len(chosen) == 1:
                return chosen[0]
        return None

    def _are(self, source: str, target: str) -> bool:
        """Whether two values are known to be one."""
        x, y = self.source.producer(source), self.target.producer(target)
        if x is None or y is None:
            return x is None and y is None and self._inputs.get(target) == source
        return self.nodes.get(y.name) == x.name

    def _may_be(self, source: str, target: str) -> bool:
        x, y = self.source.producer(source), self.target.producer(target)
        if x is None or y is None:
            return x is None and y is None and self._inputs.get(target, source) == source
        if x.name in self.twins or y.name in self.nodes:
            return self.nodes.get(y.name) == x.name
        return self._alike(x, y)

    def _along_readers(self, source: str, target: str) -> list[tuple[str, str]]:
        """Readers that are the only ones of their kind on both sides."""
        ours = self._unmatched(self.source, source, self.twins)
        theirs = self._unmatched(self.target, target, self.nodes)
        return [
            (names[0], others[0])
            for kind, names in ours.items()
            for others in [theirs.get(kind, [])]
            if len(names) == len(others) == 1
        ]

    def _unmatched(self, side: Skeleton, root: str, known: Mapping[str, str]) -> dict[str, list[str]]:
        readers = [r for r in side.readers.get(root, ()) if r.node not in known]
        kinds = ((r.node, self._kind(side, r)) for r in readers)
        return _grouped(dict.fromkeys(kinds))

    def _kind(self, side: Skeleton, reader: Reader) -> str:
        return digest((side.own(side.nodes[reader.node], strict=False), str(side.place(reader))))

    def _alike(self, a: Node, b: Node) -> bool:
        return a.op == b.op and self.source.own(a, strict=False) == self.target.own(b, strict=False)

    # --- what is left ----------------------------------------------------------------------------------------------

    def _find_open(self) -> None:
        """Nodes that no fingerprint tells apart, as many on both sides."""
        ours, theirs = (_whole(side, False) for side in (self.source, self.target))
        left = _grouped((name, key) for name, key in ours.items() if name not in self.twins)
        others = _grouped((name, key) for name, key in theirs.items() if name not in self.nodes)
        for key, names in left.items():
            if len(names) == len(others.get(key, ())):
                self.open.append((tuple(names), tuple(others[key])))

    def settle(self, group: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        """Pair the nodes of an open group in execution order: for one whose every pairing says the same."""
        self.open.remove(group)
        for a, b in zip(*group, strict=True):
            self.nodes[b], self.twins[a] = a, b
            self.settle_order(b)
        self.values = self._values()

    def settle_order(self, target: str) -> None:
        """Take the inputs of a matched node of the target in the order of the source's."""
        ours = self.source.operands(self.source.nodes[self.nodes[target]])
        theirs = self.target.operands(self.target.nodes[target])
        self.order.setdefault(target, dict(zip(theirs, ours, strict=False)))

    def _find_copies(self) -> None:
        """A node of the target that computes what a matched one computes has the same counterpart."""
        known = {key: name for name, key in _past(self.source, strict=True).items() if name in self.twins}
        unsure = {name for _, names in self.open for name in names}
        for name, key in _past(self.target, strict=True).items():
            if name not in self.nodes and name not in unsure and key in known:
                self.nodes[name] = known[key]
                self.settle_order(name)

    def _values(self) -> dict[str, str]:
        """The value of the source that each value of the target is: by who makes it, else by who reads it."""
        found = {**self._like_inputs(), **self._inputs}
        for b, a in self.nodes.items():
            found.update(zip(self.target.nodes[b].outputs, self.source.nodes[a].outputs, strict=False))
        read: dict[str, set[str]] = {}
        for b, order in self.order.items():
            ours = self.source.operands(self.source.nodes[self.nodes[b]])
            theirs = self.target.operands(self.target.nodes[b])
            for theirs_index, ours_index in order.items():
                read.setdefault(theirs[theirs_index], set()).add(ours[ours_index])
        for root, candidates in read.items():
            if root not in found and len(candidates) == 1:
                found[root] = candidates.pop()
        return found

    def _like_inputs(self) -> dict[str, str]:
        """Model inputs that are the only ones of their type and size, whoever reads them."""
        kinds = [(side, side.forward(strict=False)) for side in (self.source, self.target)]
        ours, theirs = (_grouped((name, made[name]) for name in side.graph.inputs) for side, made in kinds)
        alone = (key for key, names in ours.items() if len(names) == len(theirs.get(key, ())) == 1)
        return {theirs[key][0]: ours[key][0] for key in alone}


def _whole(side: Skeleton, strict: bool) -> dict[str, str]:
    """All that a node is computed from, and all that is computed from it."""
    past, future = _past(side, strict=strict), side.backward(strict=strict)
    return {name: digest((past[name], future[name])) for name in side.nodes}


def _past(side: Skeleton, *, strict: bool = False) -> dict[str, str]:
    made = side.forward(strict=strict)
    return {name: made[node.outputs[0]] for name, node in side.nodes.items()}


def _anchored(side: Skeleton) -> dict[str, str]:
    """The nodes with weights, by what these hold."""
    found = {}
    for name, node in side.nodes.items():
        held = [side.classes[n] for i, n in enumerate(node.inputs) if n in side.classes and n and is_anchor(node.op, i)]
        if held:
            found[name] = digest((node.op, *held))
    return found


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by key."""
    groups: dict[str, list[str]] = {}
    for name, key in pairs:
        groups.setdefault(key, []).append(name)
    return groups
