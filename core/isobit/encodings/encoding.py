"""Encoding: the grid found for one tensor. Encodings: the grids of a whole model, by site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isobit import arithmetic
from isobit.encodings.quant_spec import Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.errors import EncodingError, did_you_mean
from isobit.graph.sites import Input, Site, Tensor, Weight


@dataclass(frozen=True, eq=False)
class Encoding:
    """Scale and zero point of a tensor on the grid of `spec`, whose granularity is always set.

    ``scale`` is float32 and ``zero_point`` int32, of one shape: ``()`` per tensor; ``(channels,)`` per channel, along
    ``axis``; for blocks the tensor's rank, with ``dimension / block size`` entries along the block axis ``axis`` and
    each other dimension either whole or 1. For float types without a scale (float16, bfloat16) the scale is 1.

    LPBQ also keeps its parts: ``scale = channel_scale * multiplier``, rounded to float32.
    """

    spec: QuantSpec
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int | None = None
    multiplier: NDArray[np.int32] | None = None
    channel_scale: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls, spec: str | QuantSpec, scale: ArrayLike, zero_point: ArrayLike = 0, axis: int | None = None
    ) -> Encoding:
        """An encoding from plain numbers: ``Encoding.of("uint8", 0.1, 128)``."""
        return cls(QuantSpec.parse(spec), np.asarray(scale, np.float32), np.asarray(zero_point), axis)

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, np.float32)
        if np.asarray(self.zero_point).dtype.kind not in "iu":
            raise EncodingError(f"zero points are integers, not {np.asarray(self.zero_point).dtype}")
        zero_point = np.asarray(self.zero_point, np.int64)
        if self.spec.granularity is None:
            object.__setattr__(self, "spec", self.spec.with_granularity(PerTensor()))
        if zero_point.shape not in (scale.shape, ()):
            raise EncodingError(f"zero points of shape {zero_point.shape} do not fit scales of shape {scale.shape}")
        zero_point = np.broadcast_to(zero_point, scale.shape)
        self._check(scale, zero_point)
        self._check_parts(scale)
        frozen_scale, frozen_zero = scale.copy(), zero_point.astype(np.int32)
        frozen_scale.flags.writeable = frozen_zero.flags.writeable = False
        object.__setattr__(self, "scale", frozen_scale)
        object.__setattr__(self, "zero_point", frozen_zero)

    def _check(self, scale: NDArray[np.float32], zero_point: NDArray[np.int64]) -> None:
        granularity = self.spec.granularity
        if isinstance(granularity, PerTensor) and scale.shape != ():
            raise EncodingError(f"a per-tensor encoding has one scale, not an array of shape {scale.shape}")
        if self.axis is not None and self.axis < 0:
            raise EncodingError(f"an axis is counted from 0, not {self.axis}")
        if isinstance(granularity, PerChannel) and (scale.ndim != 1 or self.axis is None):
            raise EncodingError(f"a per-channel encoding has a list of scales and an axis, not shape {scale.shape}")
        if isinstance(granularity, PerBlock | Lpbq) and (self.axis is None or not 0 <= self.axis < scale.ndim):
            raise EncodingError("a per-block encoding needs the axis of its blocks")
        if not np.all(np.isfinite(scale)) or np.any(scale < arithmetic.SMALLEST_SCALE):
            raise EncodingError(
                f"scales must be finite and at least {arithmetic.SMALLEST_SCALE:.4g}, found {_worst(scale)!r}"
            )
        if not self.spec.is_integer:
            if np.any(zero_point != 0):
                raise EncodingError(f"{self.spec.type_name} has no zero point")
            return
        low, high = self.spec.q_min, self.spec.q_max
        if np.any(zero_point < low) or np.any(zero_point > high):
            raise EncodingError(f"zero points of {self.spec.type_name} lie in [{low}, {high}]")
        if self.spec.symmetric and np.any(zero_point != 0):
            raise EncodingError(f"the zero point of a symmetric {self.spec.type_name} is 0")

    def _check_parts(self, scale: NDArray[np.float32]) -> None:
        if self.multiplier is None and self.channel_scale is None:
            return
        if self.multiplier is None or self.channel_scale is None or not isinstance(self.spec.granularity, Lpbq):
            raise EncodingError("multiplier and channel_scale are the two parts of an lpbq encoding, and of no other")
        multiplier, channel = np.asarray(self.multiplier, np.int32), np.asarray(self.channel_scale, np.float32)
        if np.any(multiplier < 1) or np.any(multiplier > 1 << self.spec.bits):
            raise EncodingError(f"multipliers of {self.spec} lie in [1, {1 << self.spec.bits}]")
        if multiplier.shape != scale.shape or not _broadcasts(channel.shape, scale.shape):
            raise EncodingError(
                f"multiplier of shape {multiplier.shape} and channel_scale of shape {channel.shape} "
                f"do not fit scales of shape {scale.shape}"
            )
        if not np.array_equal(multiplier.astype(np.float32) * channel, scale):
            raise EncodingError("the scale of an lpbq encoding is multiplier * channel_scale, and these differ")
        multiplier, channel = multiplier.copy(), channel.copy()
        multiplier.flags.writeable = channel.flags.writeable = False
        object.__setattr__(self, "multiplier", multiplier)
        object.__setattr__(self, "channel_scale", channel)

    @property
    def minimum(self) -> NDArray[np.float32]:
        """The lowest real value of the grid, of the shape of ``scale``."""
        return self._bound(self.spec.q_min if self.spec.is_integer else -1)

    @property
    def maximum(self) -> NDArray[np.float32]:
        """The highest real value of the grid, of the shape of ``scale``."""
        return self._bound(self.spec.q_max if self.spec.is_integer else 1)

    def _bound(self, end: int) -> NDArray[np.float32]:
        if not self.spec.is_integer:
            largest = arithmetic.largest_float(self.spec.dtype)
            return np.asarray(self.scale * np.float32(end * largest), np.float32)
        return arithmetic.dequantize(np.full(self.scale.shape, end), self.scale, self.zero_point)

    def broadcast(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scale and zero point in a shape that broadcasts against a tensor of `shape`.

        Raises EncodingError when the encoding does not fit a tensor of that shape.
        """
        if isinstance(self.spec.granularity, PerTensor):
            return self.scale, self.zero_point
        axis = self.axis
        if axis is None or axis >= len(shape):
            raise EncodingError(f"axis {axis} does not exist in a tensor of shape {shape}")
        if isinstance(self.spec.granularity, PerChannel):
            if shape[axis] != self.scale.shape[0]:
                raise EncodingError(
                    f"{self.scale.shape[0]} channel scales along axis {axis} do not fit a tensor of shape {shape}"
                )
            view = [1] * len(shape)
            view[axis] = -1
            return self.scale.reshape(view), self.zero_point.reshape(view)
        return self._expand_blocks(shape, axis)

    def _expand_blocks(self, shape: tuple[int, ...], axis: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        blocks = self.scale.shape[axis]
        fits = len(shape) == self.scale.ndim and shape[axis] % blocks == 0
        fits = fits and all(
            s in (1, n) for i, (s, n) in enumerate(zip(self.scale.shape, shape, strict=False)) if i != axis
        )
        if not fits:
            raise EncodingError(f"block scales of shape {self.scale.shape} do not fit a tensor of shape {shape}")
        repeat = shape[axis] // blocks
        return np.repeat(self.scale, repeat, axis), np.repeat(self.zero_point, repeat, axis)

    def quantize(self, x: ArrayLike) -> NDArray[np.int32]:
        """Integers of `x`. Raises EncodingError for a float format, which has none."""
        if not self.spec.is_integer:
            raise EncodingError(f"{self.spec.type_name} has no integers")
        scale, zero_point = self.broadcast(np.shape(x))
        return arithmetic.quantize(x, scale, zero_point, self.spec.q_min, self.spec.q_max)

    def dequantize(self, q: ArrayLike) -> NDArray[np.float32]:
        """Real values of the integers `q`."""
        scale, zero_point = self.broadcast(np.shape(q))
        return arithmetic.dequantize(q, scale, zero_point)

    def fake_quantize(self, x: ArrayLike) -> NDArray[np.float32]:
        """`x` rounded to the grid, float32."""
        scale, zero_point = self.broadcast(np.shape(x))
        if self.spec.is_integer:
            return arithmetic.fake_quantize(x, scale, zero_point, self.spec.q_min, self.spec.q_max)
        values = np.asarray(x, np.float32)
        return np.asarray(arithmetic.cast(values / scale, self.spec.dtype) * scale, np.float32)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoding):
            return NotImplemented
        return (
            self.spec == other.spec
            and self.axis == other.axis
            and _same(self.scale, other.scale)
            and _same(self.zero_point, other.zero_point)
            and _same(self.multiplier, other.multiplier)
            and _same(self.channel_scale, other.channel_scale)
        )

    def __hash__(self) -> int:
        return hash((self.spec, self.axis, self.scale.tobytes(), self.zero_point.tobytes()))

    def __repr__(self) -> str:
        if self.scale.ndim == 0:
            return f"Encoding({self.spec}, scale={float(self.scale):.6g}, zero_point={int(self.zero_point)})"
        return f"Encoding({self.spec}, {self.scale.size} scales along axis {self.axis})"


def _broadcasts(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return len(shape) == len(whole) and all(n in (1, m) for n, m in zip(shape, whole, strict=True))


def _worst(scale: NDArray[np.float32]) -> float:
    bad = ~np.isfinite(scale) | (scale < arithmetic.SMALLEST_SCALE)
    return float(scale[bad].flat[0])


def _same(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and bool(np.array_equal(a, b))


class Encodings(Mapping[Site, Encoding]):
    """The encodings of a model, by site; a plain name finds the tensor or weight of that name.

    Those read from a file also carry what the reader has to say: `notes`, in words, and `unmapped`, the names in the
    file that the model does not have.
    """

    def __init__(
        self,
        items: Mapping[Site, Encoding] | None = None,
        *,
        notes: Iterable[str] = (),
        unmapped: Iterable[str] = (),
    ) -> None:
        self._items: dict[Site, Encoding] = dict(items or {})
        self.notes = tuple(notes)
        self.unmapped = tuple(unmapped)

    def __getitem__(self, key: Site | str) -> Encoding:
        if isinstance(key, str):
            site = next((s for s in (Tensor(key), Weight(key)) if s in self._items), None)
            if site is None:
                names = [str(s) for s in self._items]
                raise EncodingError(f"no encoding for {key!r}{did_you_mean(key, names)}")
            return self._items[site]
        return self._items[key]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str):
            return Tensor(key) in self._items or Weight(key) in self._items
        return key in self._items

    def of_kind(self, kind: type[Tensor] | type[Weight] | type[Input]) -> Encodings:
        """The part that belongs to activations (Tensor), constants (Weight) or single readers (Input)."""
        return Encodings({site: e for site, e in self._items.items() if isinstance(site, kind)})

    def __repr__(self) -> str:
        return f"Encodings({len(self)} sites)"
