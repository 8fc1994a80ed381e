"""The contract of a technique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from isobit.budget import Candidate, Choice, Cost
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph
from isobit.graph.sites import Site
from isobit.targets.costs import Costs
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.layers.normal import NormalPerChannel


@dataclass(frozen=True)
class TechniqueReport:
    """What a technique changed, what it left alone and why, and the encodings that its weights were made for.

    `notes` are what a user should know of the result, such as data that is too little for it.
    `encodings` are frozen: calibration keeps them, because weights that were rounded to a grid need that very grid.
    `batch_norms` is what is known of the distribution of tensors, from batch norms that are gone now; later techniques
    find it in their context. `touched` are the tensors that hold other values now, None where any may: what was
    observed of the others holds on. `rescaled` are weights whose output channels were multiplied, by these factors
    (None: along another axis), where grids that training has learned fit the model otherwise; None where they do not.
    `kept` are tensors that lost channels, with those that are left.
    """

    technique: str
    changed: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    encodings: Mapping[Site, Encoding] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    batch_norms: Mapping[str, NormalPerChannel] = field(default_factory=dict, repr=False)
    touched: frozenset[str] | None = field(default=None, repr=False)
    rescaled: Mapping[str, NDArray[np.floating] | None] | None = field(default=None, repr=False)
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)


class Technique(Protocol):
    """Improves a model before it is calibrated."""

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Edit ``context.model`` through the contract alone.

        One that finds nothing to do says so in its report and changes nothing; one that needs data and has none raises
        DataError (`TechniqueContext.observe` does).
        """
        ...


@runtime_checkable
class RoundsWeights(Protocol):
    """Optional, asked for by ``isinstance``: a technique that changes nothing but how weights are rounded.

    A recipe whose steps are judged leaves it out where the outputs lose next to nothing by weights.
    """

    @property
    def rounds_weights(self) -> bool:
        """Whether that is so with its present settings."""
        ...


@runtime_checkable
class Observes(Protocol):
    """What a technique that observes the model has besides `apply`: it lists beforehand what it must observe.

    So a recipe observes for several steps in one pass, and a technique runs again from statistics, without the data.
    """

    @property
    def uses_data(self) -> bool:
        """Whether it goes through the data with its present settings."""
        ...

    def requests(self, context: TechniqueContext) -> Requests:
        """What it will ask ``context.observe`` for on the model as it is now, as far as that is known beforehand."""
        ...


@runtime_checkable
class SharesCalibration(Protocol):
    """Optional, asked for by ``isinstance``: a technique whose observations may come in the pass of calibration itself.

    It observes the float model alone, `Requests.ranges` among them, and only compensates for quantization
    (`SetWeights.compensates`), so that what was observed holds after it.
    """

    @property
    def shares_calibration(self) -> bool:
        """Whether that is so with its present settings."""
        ...


@runtime_checkable
class CostsTogether(Protocol):
    """Optional, asked for by ``isinstance``: a technique that compresses, whose candidates share layers.

    What two of them save together is not the sum of what each saves alone, so a budget needs to be told.
    """

    def cost_together(self, graph: Graph, choices: Mapping[str, Choice], table: Costs | None = None) -> Cost:
        """What the whole network costs with these choices, by candidate, from shapes alone."""
        ...


@runtime_checkable
class Compresses(Technique, Protocol):
    """Optional, asked for by ``isinstance``: a technique that makes layers smaller, each by a choice of its own.

    `isobit.compress` asks for its candidates, chooses under a budget over the whole network, and applies what `chosen`
    returns, which is also what the recipe of the result holds. What its errors are computed from is what `Observes`
    lists, so that several methods share one pass over the data.
    """

    @property
    def method(self) -> str:
        """The name that users write, such as ``"spatial-svd"``."""
        ...

    def candidates(
        self, context: TechniqueContext, *, multiple: int = 1, table: Costs | None = None
    ) -> list[Candidate]:
        """Every layer, or group of coupled layers, that it knows how to make smaller, or why it cannot.

        Errors follow from ``context.observe(self.requests(context))``, or from the weights alone where there is no data
        (`TechniqueContext.can_observe`); nothing is edited and nothing evaluated. Sizes are multiples of `multiple`
        where a candidate has as many; `table` gives milliseconds.
        """
        ...

    def chosen(self, choices: Mapping[str, Choice]) -> Technique:
        """The technique that carries out these choices, by candidate, and nothing else.

        It is a frozen dataclass whose settings TOML takes, and needs no data to do the same again but for weights that
        are solved from data.
        """
        ...
