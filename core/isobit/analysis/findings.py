"""What an analysis found of single quantizers, tensors and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Site
from isobit.html_report import Counted

#: What one change of a quantizer is.
Change = Literal["range", "bias", "channel grids", "16 bits", "float"]


#: Decibels below which a change is not worth the words.
LEAST = 0.1

#: Decibels, up and down, beyond which more do not count.
CAP = 100.0


@dataclass(frozen=True)
class SiteError:
    """One quantizer, or several that share a grid, and its part in the error of the output.

    Shares are of the whole error, 0 to 1, as estimated from one float and one simulated pass. `causes` add up to
    `share`: ``clipping`` (values outside the grid), ``wide range`` (levels beyond what was seen), ``channel
    spread`` (levels that smaller channels do not reach), ``mean shift``, and ``rounding``, which is the width's own.
    `inherited` is how much of the error at that tensor came in with its input. `without` is the signal-to-noise ratio
    of the output in dB with this quantizer alone off, `alone` with it alone on; None where they were not measured.
    `scatter` is the standard error of what its absence gains, in dB, as samples differ.
    `step` is the distance of two levels, the largest of all channels; `channel_ranges` is what was seen of the first
    channels, `ranges_on_grid` the same behind the quantizer.
    """

    name: str
    kind: str
    node: str
    op: str
    readers: tuple[str, ...]
    format: str
    grid: tuple[float, float]
    seen: tuple[float, float]
    share: float
    causes: Mapping[str, float]
    inherited: float = 0.0
    sqnr: float = math.inf
    outside: float = 0.0
    channels: int = 1
    dead: int = 0
    without: float | None = None
    scatter: float | None = None
    alone: float | None = None
    step: float = 0.0
    histogram: Counted | None = field(default=None, repr=False)
    channel_ranges: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    ranges_on_grid: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    sites: tuple[Site, ...] = field(default=(), repr=False, compare=False)

    @property
    def cause(self) -> str:
        """The largest of the causes."""
        return max(self.causes, key=lambda name: self.causes[name]) if self.causes else "rounding"


@dataclass(frozen=True)
class Advice:
    """The one change that would repair a site.

    `predicted` is the gain at the output in dB that was expected before anything was run with the change, `measured`
    what it was on the samples; None where it was not tried. `settings` says how a user asks for it. `scatter` is the
    standard error of the prediction in dB, as samples differ; None where no run of single samples tells.
    """

    site: str
    change: Change
    text: str
    settings: str
    predicted: float
    measured: float | None = None
    encodings: Mapping[Site, Encoding | None] = field(default_factory=dict, repr=False, compare=False)
    bias: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    scatter: float | None = None


@dataclass(frozen=True)
class Depth:
    """The error at one tensor: its ratio in dB, and how much of it came in with the inputs of its node, 0 to 1."""

    tensor: str
    op: str
    sqnr: float
    inherited: float


@dataclass(frozen=True)
class RangeSetter:
    """A sample of the data that sets the ranges of tensors alone.

    `sample` is its number in the data, from 0; `tensors` are those whose range would be at most half as wide without.
    """

    sample: int
    tensors: tuple[str, ...]
    times: float


@dataclass(frozen=True)
class Drifted:
    """A tensor whose range has moved: what it reached in the first data and in the second.

    `cost` are the decibels by which its noise on the second data is larger with the range of the first than with one of
    its own.
    """

    tensor: str
    first: tuple[float, float]
    second: tuple[float, float]
    cost: float


@dataclass(frozen=True)
class Drift:
    """What a second set of data, of so many samples, makes of the ranges: those that moved, the costliest first.

    `loss` is what that comes to at the output in dB.
    """

    samples: int
    moved: tuple[Drifted, ...]
    loss: float


@dataclass(frozen=True)
class DataJudged:
    """What the data is worth.

    `duplicates` are pairs of equal samples by their numbers from 0. `unstable` has, for each tensor, the decibels that
    its noise grows by where one of `parts` parts of the data has no say in its range, the mean over the parts; `more`
    what that comes to at the output, the mean in dB over the part that is left out and the parts of which the outputs
    are: as much data again as a part holds gains no more. It is None for data of one
    batch. There are four parts, or as many as batches where those are fewer. `drift` compares with a second
    set of data.
    """

    samples: int
    duplicates: tuple[tuple[int, int], ...]
    range_setters: tuple[RangeSetter, ...]
    unstable: Mapping[str, float]
    more: float | None
    parts: int = 1
    drift: Drift | None = None
