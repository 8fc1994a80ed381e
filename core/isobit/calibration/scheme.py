"""The contract of a calibration scheme, and reading one from a text such as ``"percentile=99.9"``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import FormatError, did_you_mean
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram


@runtime_checkable
class Calibrator(Protocol):
    """Finds the range of a tensor. Implementations are frozen dataclasses; `name` is what users type."""

    @property
    def name(self) -> str:
        """The scheme's name, lower case."""
        ...

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """Minimum and maximum to represent, for values as counted in `histogram` on the grid of `spec`."""
        ...

    @classmethod
    def from_text(cls, value: str | None) -> Calibrator:
        """The scheme with the setting written after ``=``, or with its default (None). ValueError if it is no good."""
        ...


@runtime_checkable
class Channelwise(Protocol):
    """Optional, asked for by ``isinstance``: a scheme for activations with one scale a channel."""

    def channel_range(self, channels: ChannelRange, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Minimum and maximum to represent in each channel."""
        ...


@runtime_checkable
class SeesReaders(Protocol):
    """Optional, asked for by ``isinstance``: a scheme that uses what elementwise function reads a tensor."""

    def range_behind(
        self, histogram: Histogram, spec: QuantSpec, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> tuple[float, float]:
        """Minimum and maximum to represent, for values that `function` alone reads."""
        ...


@runtime_checkable
class HasSchemeBehind(Protocol):
    """Optional, asked for by ``isinstance``: a scheme that is another one where one function reads a tensor.

    Ranges behind functions are then searched once for all that share it.
    """

    def behind(self, spec: QuantSpec) -> Calibrator:
        """The scheme that gives the same ranges behind functions for a format."""
        ...


@runtime_checkable
class HasPlainScheme(Protocol):
    """Optional, asked for by ``isinstance``: a scheme that is another one for tensors that no function alone reads.

    Their ranges are then searched once for both.
    """

    @property
    def elsewhere(self) -> Calibrator:
        """The other scheme."""
        ...


@runtime_checkable
class SumsErrors(Protocol):
    """Optional, asked for by ``isinstance``: a scheme whose cost is a sum over values, so that counts may be weights.

    Tensors that share a grid count by what they hold (`isobit.calibration.shared_grid`), not by their size.
    """

    @property
    def sums_errors(self) -> bool:
        """Whether it does; one for which it is false is as one without it."""
        ...


@runtime_checkable
class Noting(Protocol):
    """Optional, asked for by ``isinstance``: a scheme that does something else for some formats says so."""

    def note(self, spec: QuantSpec) -> str | None:
        """What it does instead for `spec`, in words; None where it does what its name says."""
        ...


def parse_calibrator(text: str | Calibrator, schemes: Mapping[str, type[Calibrator]]) -> Calibrator:
    """The scheme named by `text`, ``NAME`` or ``NAME=VALUE``. Raises FormatError that lists the known ones."""
    if isinstance(text, Calibrator):
        return text
    if not isinstance(text, str):
        raise FormatError(f"a calibration method is a name or a Calibrator, not {text!r}")
    name, equals, value = text.strip().lower().partition("=")
    if name not in schemes:
        raise FormatError(
            f"unknown calibration method {name!r}{did_you_mean(name, schemes)}; known are {', '.join(sorted(schemes))}"
        )
    try:
        return schemes[name].from_text(value if equals else None)
    except (ValueError, FormatError) as error:
        raise FormatError(f"calibration method {text!r}: {error}") from error
