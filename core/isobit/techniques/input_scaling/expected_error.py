"""The output error of linear layers whose inputs are rescaled, estimated from moments and ranges alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.encodings.quant_spec import PerTensor
from isobit.encodings.ranges import candidate_grids
from isobit.graph.graph import Node
from isobit.graph.sites import Tensor
from isobit.placement.plan import Placement, Plan
from isobit.statistics.channel_moments import ChannelMoments
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests
from isobit.techniques.input_scaling.rescaling import (
    Rescaling,
    ScaledInput,
    in_steps,
    input_placement,
    weight_placement,
)
from isobit.techniques.input_scaling.rounding_noise import rounding_noise
from isobit.techniques.layers.weighted_layer import Floats, groups_of, summed_by_input

#: A shift is rounded to so many bits below the power of two above its channel's range, as coarsely as factors.
_SHIFT_BITS = 7


def input_requests(items: Iterable[ScaledInput]) -> Requests:
    """The moments to observe of each input."""
    return Requests([Request(Tensor(item.tensor), ChannelMoments()) for item in items])


def in_steps_of_range(shift: Floats, moments: ChannelMoments) -> Floats:
    """`shift` in steps of a hundredth of each channel's range: the same bits in every framework (decision 0018)."""
    size = moments.maximum - moments.minimum
    return np.where(size > 0, in_steps(shift, size, _SHIFT_BITS), shift)


@dataclass(frozen=True, eq=False)
class ExpectedError:
    """The expected squared output error of one row, over all readers of an input, once it is rescaled.

    Both roundings are taken as noise that is independent from value to value, of variance ``scale**2 / 12`` on a grid
    of integers: that of the input meets the squared weights, that of the weights the mean squares of the input. New
    data will reach beyond the range that was seen, the more so the fewer rows there were, and be clipped where the grid
    ends: a factor that fits each channel to the whole grid would fit the calibration data alone. The encodings are
    those that the plan would give; neither data nor rounded weights are needed.
    Source: Widrow and Kollár, "Quantization Noise", Cambridge University Press 2008, chapter 4.
    """

    moments: ChannelMoments
    input: Placement | None
    weights: tuple[tuple[NDArray[np.float32], Placement, int], ...]  # the last: groups of the layer
    energy: Floats  # sum of the squared weights that meet each channel
    bounds: tuple[float, float] = (-np.inf, np.inf)  # beyond which nothing changes what is read
    to_zero: bool = False  # whether a channel below a step of the grid loses what it holds, and no more

    @classmethod
    def of(cls, model: CheckedModel, plan: Plan, item: ScaledInput, moments: ChannelMoments) -> ExpectedError:
        """For the layers of `item` whose weights the plan quantizes."""
        weights = quantized_weights(model, plan, item.readers)
        squares = [summed_by_input(np.square(weight, dtype=np.float64), groups) for weight, _, groups in weights]
        return cls(moments, input_placement(item.readers[0], plan), tuple(weights), np.sum(squares, axis=0))

    def without_weights(self) -> ExpectedError:
        """The error from rounding the input alone."""
        return replace(self, weights=())

    def after(self, changes: Sequence[Rescaling]) -> Floats:
        """The error with the input changed like each of these."""
        factors, shift = (
            np.stack([getattr(change, field_name) for change in changes]) for field_name in ("factors", "shift")
        )
        power = self.moments.mean_square(shift) / np.square(factors)
        total = (self._input_error(factors, shift) * self.energy).sum(axis=1)
        for weight, placement, groups in self.weights:
            total += (rounding_noise(weight, factors.astype(np.float32), placement, groups) * power).sum(axis=1)
        return np.asarray(total)

    def _input_error(self, factors: Floats, shift: Floats) -> Floats:
        """The mean squared error of each channel, (changes, channels), in units of the input as it came.

        It is 0 where the input stays in float.
        """
        if self.input is None or not self.input.spec.is_integer:
            return np.zeros_like(factors)
        moments, spec = self.moments, self.input.spec.with_granularity(PerTensor())
        minimum, maximum = (np.clip(end, *self.bounds) for end in (moments.minimum, moments.maximum))
        low, high = (minimum - shift) / factors, (maximum - shift) / factors
        grids = candidate_grids(low.min(axis=1), high.max(axis=1), spec)
        scale, zero = grids.scale[:, None].astype(np.float64), grids.zero_point[:, None]
        above = ((spec.q_max - zero) * scale - high) * factors
        below = (low - (spec.q_min - zero) * scale) * factors
        clipped = np.where(
            moments.maximum > self.bounds[1], 0.0, _beyond(above, moments.maximum - moments.mean, moments.count)
        ) + np.where(
            moments.minimum < self.bounds[0], 0.0, _beyond(below, moments.mean - moments.minimum, moments.count)
        )
        rounded = np.square(scale * factors) / 12
        return np.asarray((np.minimum(rounded, moments.mean_square(shift)) if self.to_zero else rounded) + clipped)


def quantized_weights(
    model: CheckedModel, plan: Plan, layers: Iterable[Node]
) -> list[tuple[NDArray[np.float32], Placement, int]]:
    """Of those layers whose weights the plan quantizes: the weight, how, and the groups."""
    placed = [(node, weight_placement(node, plan)) for node in layers]
    return [
        (np.ascontiguousarray(model.weight(node.inputs[1] or ""), np.float32), placement, groups_of(node))
        for node, placement in placed
        if placement is not None
    ]


def _beyond(margin: Floats, reach: Floats, count: int) -> Floats:
    """The mean square of what exceeds a limit that lies by `margin` beyond the farthest of `count` values.

    The tail is taken as exponential: the farthest value lies at ``tail * log(count)``, one of `count` new values
    exceeds it, by `tail` on average.
    Source: Coles, "An Introduction to Statistical Modeling of Extreme Values", Springer 2001, sections 3.1 and 4.2.
    """
    tail = np.maximum(reach, np.finfo(np.float32).tiny) / np.log(count + 1)
    return np.asarray(2 * np.square(tail) / count * np.exp(-np.maximum(margin, 0.0) / tail), np.float64)


def best_alpha(error: ExpectedError, families: Sequence[Callable[[float], Rescaling]]) -> Rescaling | None:
    """The rescaling of the least expected error; None where none at all is as good.

    Each family is tried at tenths of alpha from 0 to 1, the best one at the half-tenths beside its best.
    """
    tried = [(family, tenth / 10) for family in families for tenth in range(11)]
    rescalings = [family(alpha) for family, alpha in tried]
    errors = error.after([*rescalings, Rescaling.nothing(rescalings[0].factors.size)])
    best_index = int(errors[:-1].argmin())
    family, best_tenth = tried[best_index]
    neighbours = [family(alpha) for alpha in (best_tenth - 0.05, best_tenth + 0.05) if 0 < alpha < 1]
    scored = [(errors[best_index], rescalings[best_index]), *zip(error.after(neighbours), neighbours, strict=True)]
    least, best = min(scored, key=lambda item: item[0])
    return best if least < errors[-1] else None
