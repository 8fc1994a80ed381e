"""Ranges that schemes chose, remembered as long as nothing more is seen of the tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

from isobit.calibration.reader_functions import Function
from isobit.calibration.scheme import Calibrator
from isobit.encodings.quant_spec import QuantSpec
from isobit.statistics.histogram import Histogram

_Range = tuple[float, float]


class _Chosen(NamedTuple):
    """A range, and references to the histograms that it was chosen by, with how many elements each had counted."""

    histograms: tuple[ref[Histogram], ...]
    elements: tuple[int, ...]
    range: _Range


class RangeMemo:
    """What schemes chose for groups of tensors.

    The schemes of a recipe that judges its steps are compared before a step, behind it and in the end, and most tensors
    hold the same values each time. Counts only grow, so that their number tells whether a histogram is as it was.
    """

    def __init__(self) -> None:
        self._chosen: dict[Any, _Chosen] = {}

    def range(
        self,
        calibrator: Calibrator,
        spec: QuantSpec,
        function: Function | None,
        histograms: Sequence[Histogram],
        choose: Callable[[], _Range],
    ) -> _Range:
        """The range that `choose` gives, asked for once for each scheme, format, reader and state of the histograms."""
        key = (calibrator, spec, function, *map(id, histograms))
        try:
            hash(key)
        except TypeError:  # a scheme from elsewhere that is no frozen dataclass
            return choose()
        elements = tuple(histogram.elements for histogram in histograms)
        known = self._chosen.get(key)
        if known is None or known.elements != elements:

            def forget(_: object) -> None:  # before another histogram can get the address of one that is gone
                self._chosen.pop(key, None)

            references = tuple(ref(histogram, forget) for histogram in histograms)
            known = self._chosen[key] = _Chosen(references, elements, choose())
        return known.range
