"""What a network does only while it trains: dropout, and the moving statistics of batch norm.

The neutral graph is that of inference. Beside it the simulator keeps where the user's model drops values, and how fast
its batch norms forget, so that `fit` trains the network that the user described.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from isobit.graph import Graph


@dataclass(frozen=True)
class Dropout:
    """Values that readers of `tensor` lose: `rate` of them, one decision for each size of `noise` that is not 1.

    `readers` are (node, input index) of the raw graph; an output of the model is ("", name).
    `noise` is in canonical axes, -1 for the tensor's own size.
    """

    name: str
    tensor: str
    rate: float
    seed: int | None = None
    noise: tuple[int, ...] | None = None
    readers: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Training:
    """Dropouts in order, and the momentum of each batch norm by its node's name."""

    dropouts: tuple[Dropout, ...] = ()
    momentum: Mapping[str, float] = field(default_factory=dict)

    def for_graph(self, graph: Graph) -> Training:
        """With the readers that a graph has: fused nodes stand for their parts, edits may have removed some."""
        nodes = {part: node for node in graph.nodes for part in (*node.parts, node.name)}
        dropouts = []
        for dropout in self.dropouts:
            readers: set[tuple[str, Any]] = set()
            for name, index in dropout.readers:
                if not name:
                    if graph.outputs.get(index) == dropout.tensor:
                        readers.add((name, index))
                elif name in nodes:
                    node = nodes[name]
                    readers.update((node.name, i) for i, read in enumerate(node.inputs) if read == dropout.tensor)
            if readers:
                dropouts.append(replace(dropout, readers=tuple(sorted(readers, key=str))))
        names = {node.name for node in graph.nodes if node.op == "BatchNormalization"}
        return Training(tuple(dropouts), {name: value for name, value in self.momentum.items() if name in names})

    def to_record(self) -> dict[str, Any]:
        """As JSON data."""
        return {"dropouts": [asdict(dropout) for dropout in self.dropouts], "momentum": dict(self.momentum)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Training:
        """The inverse of `to_record`."""
        dropouts = tuple(
            Dropout(
                entry["name"],
                entry["tensor"],
                entry["rate"],
                entry["seed"],
                None if entry["noise"] is None else tuple(entry["noise"]),
                tuple((name, index) for name, index in entry["readers"]),
            )
            for entry in record["dropouts"]
        )
        return cls(dropouts, dict(record["momentum"]))
