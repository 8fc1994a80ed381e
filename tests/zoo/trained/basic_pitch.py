"""Which notes sound: basic-pitch (Bittner et al. 2022), an NHWC export full of transposes, with its own spectrogram."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "basic-pitch==0.4.0"
FILE = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
INPUT, RATE, SAMPLES, FRAMES, LOWEST_KEY = "serving_default_input_2:0", 22_050, 43_844, 172, 21
NOTES = 1  # which of the outputs says what sounds in a frame


def chords(seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Audio (count, 43844, 1) of one to four notes with harmonics, and which keys sound (count, 172, 88)."""
    rng = np.random.default_rng(seed)
    time = np.arange(SAMPLES) / RATE
    audio = np.zeros((count, SAMPLES, 1), np.float32)
    sounds = np.zeros((count, FRAMES, 88), bool)
    for index in range(count):
        for key in rng.choice(np.arange(40, 76), rng.integers(1, 5), replace=False):
            start, length = rng.uniform(0, 1.0), rng.uniform(0.4, 0.9)
            inside = (time >= start) & (time < start + length)
            since = time[inside] - start
            tone = sum(
                0.6**harmonic * np.sin(2 * np.pi * harmonic * 440 * 2 ** ((key - 69) / 12) * since)
                for harmonic in range(1, 7)
            )
            envelope = np.minimum(since / 0.01, 1) * np.exp(-1.5 * since)
            audio[index, inside, 0] += (0.25 * tone * envelope).astype(np.float32)
            frames = np.arange(FRAMES) * 256 / RATE
            sounds[index, (frames >= start) & (frames < start + length), key - LOWEST_KEY] = True
        audio[index] += 0.001 * rng.standard_normal((SAMPLES, 1))
    return audio, sounds


def figure(run: Run) -> float:
    """F-measure of keys in frames, in percent."""
    audio, sounds = chords(1, 64)
    found = np.concatenate([run({INPUT: audio[i : i + 4]})[NOTES] for i in range(0, 64, 4)]) > 0.3
    return 100 * 2 * np.count_nonzero(found & sounds) / (np.count_nonzero(found) + np.count_nonzero(sounds))


@cache
def data() -> list[Batch]:
    audio, _ = chords(0, 16)
    return [{INPUT: audio[i : i + 4]} for i in range(0, 16, 4)]


NETWORKS = (
    ZooNetwork(
        name="basic-pitch",
        wheel=WHEEL,
        file=FILE,
        task="keys that sound, F-measure over frames, of 64 synthesised chords",
        model=lambda: shipped(WHEEL, FILE),
        data=data,
        held_out=lambda: {INPUT: chords(2, 4)[0]},
        figure=figure,
    ),
)
