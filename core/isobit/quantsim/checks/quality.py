"""How near the simulator is to the float model, as a figure and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]

#: Part of the largest magnitude of a tensor in float by which sums in another order may differ.
ROUNDING = 2.0**-16

_WORDS = ((40.0, "excellent"), (30.0, "good"), (20.0, "fair"))

#: What to try where the result is poor.
ADVICE = (
    "that is poor: try recipe='ptq' (or 'transformer'); method='auto' if you asked for another; "
    "then activations='int16', for all tensors or by overrides for those that isobit.analyze names"
)

#: In its place, where the outputs of the float model differ from run to run.
NOISY_ADVICE = (
    "the model is different in every run, and these figures hold its own noise: where an input scales the noise, "
    "calibrate with 0 there to see what quantization costs"
)


def sqnr(exact: Outputs, other: Outputs) -> dict[str, float]:
    """Decibels of each float output that both have; infinite where they are equal."""
    return {
        name: decibels(values, other[name])
        for name, values in exact.items()
        if values.dtype.kind == "f" and name in other and values.shape == other[name].shape and values.size
    }


def decibels(exact: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to noise over the elements that are finite in both; infinite without noise."""
    signal, noisy = exact.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    finite = np.isfinite(signal) & np.isfinite(noisy)
    signal, noise = signal[finite], noisy[finite] - signal[finite]
    power, error = float(signal @ signal), float(noise @ noise)
    if error == 0:
        return math.inf
    return 10 * math.log10(power / error) if power > 0 else -math.inf


def output_sqnr(float_outputs: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """Signal to quantization noise in dB: mean over the float outputs; 200 where nothing differs."""
    values = []
    for name, first in float_outputs[0].items():
        if first.dtype.kind != "f":
            continue
        signal = sum(float(np.square(batch[name], dtype=np.float64).sum()) for batch in float_outputs)
        pairs = zip(float_outputs, outputs, strict=True)
        noise = sum(_noise(a[name], b[name]) for a, b in pairs)
        values.append(200.0 if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise)))
    return float(np.mean(values)) if values else 200.0


def _noise(exact: NDArray[Any], other: NDArray[Any]) -> float:
    """The energy of what differs; all of it where the shapes differ, which may depend on values."""
    difference = exact - other if exact.shape == other.shape else exact
    return float(np.square(difference, dtype=np.float64).sum())


def sample_decibels(exact: Outputs, other: Outputs) -> list[float]:
    """The decibels of each sample of each float output, from -200 to 200, where nothing differs.

    By their mean, one sample that goes astray does not decide, as it would by the sum of all errors. Axis 0 of an
    output is taken to hold the samples. An output whose shape depends on values, and is another one, counts as noise; a
    sample that became infinite or no number has -200.
    """
    ratios = []
    for name, values in exact.items():
        if values.dtype.kind != "f" or not values.size:
            continue
        if other[name].shape != values.shape:
            ratios.append(0.0)
            continue
        changed = other[name]
        if values.ndim > 1 and np.isfinite(values).all() and np.isfinite(changed).all():
            ratios += _finite_decibels(values, changed)
            continue
        rows = zip(values, changed, strict=True) if values.ndim > 1 else [(values, changed)]
        ratios += [-200.0 if _is_lost(row, now) else min(max(decibels(row, now), -200.0), 200.0) for row, now in rows]
    return ratios


def _finite_decibels(exact: NDArray[Any], other: NDArray[Any]) -> list[float]:
    """Those of the rows of finite arrays, from -200 to 200."""
    signal = exact.reshape(len(exact), -1).astype(np.float64)
    noise = other.reshape(len(other), -1) - signal
    power, error = (np.einsum("ij,ij->i", part, part) for part in (signal, noise))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(error == 0, 200.0, np.clip(10 * np.log10(power / error), -200.0, 200.0))
    return [float(ratio) for ratio in ratios]


def _is_lost(exact: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool((np.isfinite(exact) & ~np.isfinite(other)).any())


def judgement(ratio: float) -> str:
    """A signal-to-noise ratio in one word: excellent, good, fair or poor."""
    return next((word for least, word in _WORDS if ratio >= least), "poor")


def judged(ratio: float) -> str:
    """``34.2 dB, good``; ``equal`` where nothing differs."""
    return "equal" if ratio == math.inf else f"{ratio:.1f} dB, {judgement(ratio)}"


def is_rounding(
    expected: NDArray[Any], values: NDArray[Any], *, relative: float = ROUNDING, absolute: float = 0.0
) -> NDArray[np.bool_]:
    """Where two float outputs differ by no more than sums in another order do, in parts of the largest magnitude."""
    if expected.dtype.kind != "f":
        return np.zeros(expected.shape, bool)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        differences = np.abs(expected.astype(np.float64) - values.astype(np.float64))
    largest = np.abs(expected[np.isfinite(expected)], dtype=np.float64).max(initial=0.0)
    return np.asarray(differences <= max(absolute, relative * largest))
