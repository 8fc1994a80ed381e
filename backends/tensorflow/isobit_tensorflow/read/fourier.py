"""Frames of a signal, and their Fourier transform as a product with cosines and sines, which every runtime has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def transform(window: NDArray[np.float64], fft_length: int) -> NDArray[np.float32]:
    """(samples, 2 * bins): cosines times the window, then negative sines: real and imaginary parts.

    `window` has a value for each sample of a frame, at most `fft_length`; the rest of the transform sees zeros.
    """
    phase = 2 * np.pi * np.outer(np.arange(len(window)), np.arange(fft_length // 2 + 1)) / fft_length
    waves: NDArray[np.float64] = np.concatenate([np.cos(phase), -np.sin(phase)], 1) * window[:, None]
    return waves.astype(np.float32)


def frame_places(size: int, length: int, step: int) -> NDArray[np.int32]:
    """(frames, length): where the values of each frame lie in a signal of `size` values; whole frames alone."""
    starts = np.arange(0, size - length + 1, step)
    return (starts[:, None] + np.arange(length)).astype(np.int32)
