"""How the grid of a site takes part in training, as a user says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from isobit.errors import FormatError, did_you_mean
from isobit.graph.graph import Graph
from isobit.placement.plan import Placement, Plan, constant_name
from isobit.placement.quant_config import matches

#: What each mode does with a scale.
MODES = {
    "learned": "moved by the errors of rounding and of cutting off (LSQ, LSQ+)",
    "pact": "moved by what the grid cuts off alone (PACT)",
    "frozen": "stays; gradients pass straight through the rounding",
}


@dataclass(frozen=True)
class TrainingModes:
    """`mode` for all, `weights` and `activations` for one kind, `overrides` by patterns of tensor or weight names.

    The last pattern that matches wins; of a grid that several tensors share, the last that matches any of them.
    Raises FormatError for an unknown mode.
    """

    mode: str = "learned"
    weights: str | None = None
    activations: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mode in (self.mode, self.weights, self.activations, *self.overrides.values()):
            if mode is not None and mode not in MODES:
                raise FormatError(
                    f"unknown mode {mode!r} of training{did_you_mean(str(mode), MODES)}; known are {', '.join(MODES)}"
                )

    def of(self, graph: Graph, *sharing: Placement) -> str:
        """The mode of one grid, by the sites that share it.

        Without a pattern it is that of the first site, or frozen where that of any is.
        """
        kinds = [self.activations if placement.kind == "activation" else self.weights for placement in sharing]
        said = [self.mode if own is None else own for own in kinds]
        mode = "frozen" if "frozen" in said else said[0]
        names = [name for placement in sharing for name in _names(graph, placement)]
        for pattern, asked in self.overrides.items():
            if any(matches(name, pattern) for name in names):
                mode = asked
        return mode

    def check(self, graph: Graph, plan: Plan) -> None:
        """Raise FormatError for a pattern that reaches no quantized tensor or weight."""
        names = [name for placement in plan.placements.values() for name in _names(graph, placement)]
        for pattern in self.overrides:
            if not any(matches(name, pattern) for name in names):
                raise FormatError(
                    f"the mode of {pattern!r} reaches no quantized tensor or weight{did_you_mean(pattern, names)}"
                )


def _names(graph: Graph, placement: Placement) -> tuple[str, ...]:
    constant = "" if placement.kind == "activation" else constant_name(graph, placement.site)
    return tuple(dict.fromkeys(filter(None, (placement.tensor, constant, str(placement.site)))))
