"""Sensitivity: how every quantizer was measured, what that took, and whether the estimate ranks them alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal["on", "off"]


@dataclass(frozen=True)
class Sensitivity:
    """How every quantizer was measured: ``"on"`` or ``"off"`` alone.

    `passes` is the work of all runs, in passes over the samples of the analysis with one model: multiply-adds and
    elements of outputs of what was run, to those of the whole. Each site was run on `fewest` samples at least, and
    `whole` of the `sites` on all of them. `error` is the standard error in dB of a site that was run on `fewest`, the
    median of those. `rank` is the rank correlation (Spearman) of what was measured with the estimated shares, None
    where it has none.
    """

    measure: Measure
    sites: int
    passes: float
    fewest: int
    whole: int
    error: float
    rank: float | None

    def __str__(self) -> str:
        """In a line."""
        some = "" if self.whole == self.sites else f" and the other {self.sites - self.whole} on {self.fewest}"
        exact = "" if not some else f", to {self.error:.2g} dB"
        rank = "" if self.rank is None else f"; rank correlation with the estimated shares {self.rank:.2f}"
        return (
            f"each of {self.sites} quantizers {self.measure} alone, in the work of {self.passes:.3g} passes: "
            f"{self.whole} on all samples{some}{exact}{rank}"
        )
